"""Waiting time of one tenant for a score while another keeps the service as busy as it may.

    ADAP_URL=http://127.0.0.1:8000 ADAP_ADMIN_KEY=... python -m benchmarks.isolation [--seconds 4]

The victim asks for one small image at a time. The attacker keeps four requests open, without pause:

- `costly`: 256 images each, of a network as costly as the service accepts for its batches;
- `forms`: a form of 500 PNG images of 32x32 each, of a cheap network;
- `large`: a form of one PNG of 1024x1024 each, of a cheap network.

The attacker is a process of its own. Beside it stands the bare cost: the victim's waits while the
same images are decoded and scored by programs that know nothing of the service, one for each core.

Rounds alternate between alone, beside those programs and meanwhile, so that what else the machine
does hits all. Told are the victim's median and 99th percentile over all rounds, how many times
longer the 99th is than alone, and what the attacker was answered.
"""

import argparse
import io
import json
import os
import statistics
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

SIDE = 64
PARALLEL = 4  # requests of the attacker at a time
ROUNDS = 3
SETTLES_S = 3.0  # until what the attacker sent last is done
FORMS = {"forms": (500, 32), "large": (1, 1024)}  # images of a form, and their side
ATTACKS = ("costly", *FORMS)
BATCH = 64  # images that are decoded and scored at once
TIMEOUT_S = 120  # of a request
ENDS_S = TIMEOUT_S + 10.0  # for a process to end by itself, once it is told to
SPAWN = get_context("spawn")


class Costly(nn.Module):
    """Some 10^9 operations an image, so that 64 of them are a pass of seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 64, 3, padding=1)
        self.layers = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)))
        self.last = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> (B, 1)."""
        made: torch.Tensor = self.last(self.layers(self.first(x)).relu().mean(dim=(2, 3)))
        return made


class Cheap(nn.Module):
    """Next to nothing an image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.last = nn.Linear(side * side, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) -> (B, 1)."""
        made: torch.Tensor = self.last(x.flatten(1))
        return made


def tenant(admin: httpx.Client, name: str) -> httpx.Client:
    """A client of a tenant of this name."""
    asked = {"name": "isolation", "scopes": ["read", "write"], "tenant": name}
    made = admin.post("/v1/api-keys", json=asked).raise_for_status().json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    return httpx.Client(base_url=admin.base_url, headers=headers, timeout=TIMEOUT_S)


def uploaded(client: httpx.Client, network: nn.Module, side: int) -> str:
    """The id of a network that was uploaded as ONNX and taken."""
    out = io.BytesIO()
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, side, side),),
        out,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
        opset_version=17,
    )
    spec = {"channels": 1, "height": side, "width": side, "mean": [0.0], "std": [1.0]}
    made = client.post(
        "/v1/models",
        data={"architecture": "onnx", "input": json.dumps(spec)},
        files={"file": ("m.onnx", out.getvalue())},
    )
    model = made.raise_for_status().json()
    while model["status"] == "validating":
        time.sleep(0.5)
        model = client.get(f"/v1/models/{model['id']}").json()
    if model["status"] != "ready":
        raise SystemExit(f"expected a model that is taken, got {model['reasons']}")
    return str(model["id"])


@dataclass(frozen=True)
class Attack:
    """What the attacker sends again and again."""

    name: str
    url: str
    body: bytes
    content_type: str
    network: nn.Module
    files: list[bytes]  # its images: PNG files, or one NPZ


def arrays(count: int, side: int) -> bytes:
    """An NPZ of black images."""
    out = io.BytesIO()
    np.savez(out, images=np.zeros((count, side, side, 1), np.uint8))
    return out.getvalue()


def png(side: int) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def form(images: list[bytes]) -> tuple[bytes, str]:
    """A form of these images, and its content type."""
    files = [("images", (f"{number}.png", image)) for number, image in enumerate(images)]
    request = httpx.Request("POST", "http://of/nobody", files=files)
    return request.read(), request.headers["Content-Type"]


def waits(client: httpx.Client, attack: Attack, seconds: float) -> list[float]:
    """Milliseconds of each of the victim's requests, one after another."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        status = send(client, attack)
        if status != 200:
            raise SystemExit(f"expected 200 for the victim, got {status}")
        found.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)
    return found


def send(client: httpx.Client, attack: Attack) -> int:
    """The status of one request."""
    headers = {"Content-Type": attack.content_type}
    return client.post(attack.url, content=attack.body, headers=headers).status_code


def p99(found: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(found, n=100)[98]


@dataclass(frozen=True)
class Signs:
    """What processes are told."""

    going: Event
    over: Event

    def go_on(self) -> bool:
        """Whether there is more to do; returns when that is known."""
        self.going.wait()
        return not self.over.is_set()

    def end(self) -> None:
        """Let those that wait know as well."""
        self.over.set()
        self.going.set()


Counts = Counter[int]
"""How often each status was answered."""


def attack_from(
    base_url: str, headers: dict[str, str], attack: Attack, answers: "Queue[Counts]", signs: Signs
) -> None:
    """Entry of the attacker: keeps requests open while it goes, and tells at the end what was
    answered."""

    def keep_busy(_: int) -> Counts:
        counted: Counts = Counter()
        with httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S) as client:
            while signs.go_on():
                counted[send(client, attack)] += 1
        return counted

    with ThreadPoolExecutor(PARALLEL) as threads:
        answers.put(sum(threads.map(keep_busy, range(PARALLEL)), Counter()))


def compute(attack: Attack, signs: Signs) -> None:
    """Entry of a program that decodes and scores the attack's images while it goes."""
    os.setsid()  # as processes of the service do: there are kernels that share by sessions
    torch.set_num_threads(1)
    while signs.go_on():
        for images in decoded(attack.files):
            with torch.inference_mode():
                attack.network(torch.from_numpy(images)[:, None].float() / 255)
            if signs.over.is_set() or not signs.going.is_set():
                break


def decoded(files: list[bytes]) -> Iterator[NDArray[np.uint8]]:
    """The images in batches, (B, H, W)."""
    for start in range(0, len(files), BATCH):
        file = io.BytesIO(files[start])
        if zipfile.is_zipfile(file):
            images = np.load(file)["images"][..., 0]
            yield from (images[at : at + BATCH] for at in range(0, len(images), BATCH))
        else:
            batch = files[start : start + BATCH]
            yield np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in batch])


def started_as(target: Callable[[Signs], None], ready: Semaphore, signs: Signs) -> None:
    """Entry of each process."""
    ready.release()
    target(signs)


@contextmanager
def processes(target: Callable[[Signs], None], *, count: int) -> Iterator[Event]:
    """So many of them, which work while the event is set, and end by themselves with the block.

    What is raised in the block kills them. Raises SystemExit for one that ends in an error, or
    does not begin or end.
    """
    signs, ready = Signs(SPAWN.Event(), SPAWN.Event()), SPAWN.Semaphore(0)
    entry = partial(started_as, target, ready)
    started = [SPAWN.Process(target=entry, args=(signs,), daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        for _ in started:
            if not ready.acquire(timeout=ENDS_S):  # once torch is loaded
                raise SystemExit(f"expected a process to begin within {ENDS_S:.0f} s, got none")
        yield signs.going
        signs.end()
        for process in started:
            process.join(ENDS_S)
        codes = [process.exitcode for process in started]
        if any(code != 0 for code in codes):
            raise SystemExit(f"expected processes to end within {ENDS_S:.0f} s by 0, got {codes}")
    finally:
        for process in started:
            process.kill()
            process.join()


def measure(
    victim: httpx.Client, own: Attack, attacker: httpx.Client, attack: Attack, *, seconds: float
) -> str:
    """One row of the table."""
    answers: Queue[Counts] = SPAWN.Queue()
    through = partial(attack_from, str(attacker.base_url), dict(attacker.headers), attack, answers)
    alone: list[float] = []
    beside: list[float] = []
    meanwhile: list[float] = []
    with (
        processes(partial(compute, attack), count=os.cpu_count() or 1) as bare,
        processes(through, count=1) as attacking,
    ):
        for _ in range(ROUNDS):
            alone += waits(victim, own, seconds)
            for going, found in ((bare, beside), (attacking, meanwhile)):
                going.set()
                time.sleep(1)
                found += waits(victim, own, seconds)
                going.clear()
                time.sleep(SETTLES_S)
    counted = answers.get(timeout=ENDS_S)  # one message, so small that the attacker could end
    cells = [attack.name, f"{statistics.median(alone):.1f}", f"{p99(alone):.1f}"]
    for found in (beside, meanwhile):
        times = f"{p99(found) / p99(alone):.1f}"
        cells += [f"{statistics.median(found):.1f}", f"{p99(found):.1f}", times]
    return " | ".join([*cells, str(dict(counted))])


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each of three rounds")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    asked = parser.parse_args()
    headers = {"Authorization": f"Bearer {os.environ['ADAP_ADMIN_KEY']}"}
    admin = httpx.Client(base_url=os.environ["ADAP_URL"], headers=headers, timeout=TIMEOUT_S)
    victim, attacker = tenant(admin, "victim"), tenant(admin, "attacker")

    def scores_of(model: str) -> str:
        return f"/v1/models/{model}/scores"

    npz = "application/octet-stream"
    cheap, one = Cheap(8), arrays(1, 8)
    own = Attack("own", scores_of(uploaded(victim, cheap, 8)), one, npz, cheap, [one])
    waits(victim, own, 2)
    each = "median, ms | p99 | times"
    print(f"| attack | median alone, ms | p99 | programs: {each} | attack: {each} | answers |")
    print("|" + "---|" * 10)
    for name in asked.only:
        if name == "costly":
            network: nn.Module = Costly()
            files = [arrays(256, SIDE)]
            body, kind = files[0], npz
            side = SIDE
        else:
            count, side = FORMS[name]
            network, files = Cheap(side), [png(side)] * count
            body, kind = form(files)
        model = uploaded(attacker, network, side)
        attack = Attack(name, scores_of(model), body, kind, network, files)
        send(attacker, attack)  # loaded beforehand
        row = measure(victim, own, attacker, attack, seconds=asked.seconds)
        print(f"| {row} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
