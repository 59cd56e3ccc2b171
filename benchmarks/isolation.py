"""Waiting time of one tenant for a score while another keeps the service as busy as it may.

    ADAP_URL=http://127.0.0.1:8000 ADAP_ADMIN_KEY=... python -m benchmarks.isolation [--seconds 4]

The victim asks for one small image at a time. The attacker keeps four requests open, without pause:

- `costly`: 256 images each, of a network as costly as the service accepts for its batches;
- `forms`: a form of 500 PNG images of 32x32 each, of a cheap network;
- `large`: a form of one PNG of 1024x1024 each, of a cheap network.

Rounds alternate between alone and meanwhile, so that what else the machine does hits both. Told are
the victim's median and 99th percentile over all rounds, how many times longer the 99th is
meanwhile, and what the attacker was answered.
"""

import argparse
import io
import json
import os
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass

import httpx
import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE = 64
PARALLEL = 4  # requests of the attacker at a time
ROUNDS = 3
SETTLES_S = 3.0  # until what the attacker sent last is done
FORMS = {"forms": (500, 32), "large": (1, 1024)}  # images of a form, and their side
ATTACKS = ("costly", *FORMS)


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
    return httpx.Client(base_url=admin.base_url, headers=headers, timeout=120)


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


def arrays(count: int, side: int) -> bytes:
    """An NPZ of black images."""
    out = io.BytesIO()
    np.savez(out, images=np.zeros((count, side, side, 1), np.uint8))
    return out.getvalue()


def form(count: int, side: int) -> tuple[bytes, str]:
    """A form of so many PNG images, and its content type."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    files = [("images", (f"{number}.png", out.getvalue())) for number in range(count)]
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


def measure(
    victim: httpx.Client, own: Attack, attacker: httpx.Client, attack: Attack, *, seconds: float
) -> str:
    """One row of the table."""
    going, over = threading.Event(), threading.Event()
    answers: Counter[int] = Counter()

    def keep_busy() -> None:
        while not over.is_set():
            if going.wait(0.1):
                answers[send(attacker, attack)] += 1

    threads = [threading.Thread(target=keep_busy) for _ in range(PARALLEL)]
    for thread in threads:
        thread.start()
    alone: list[float] = []
    meanwhile: list[float] = []
    for _ in range(ROUNDS):
        alone += waits(victim, own, seconds)
        going.set()
        time.sleep(1)
        meanwhile += waits(victim, own, seconds)
        going.clear()
        time.sleep(SETTLES_S)
    over.set()
    for thread in threads:
        thread.join()
    cells = (
        attack.name,
        f"{statistics.median(alone):.1f}",
        f"{p99(alone):.1f}",
        f"{statistics.median(meanwhile):.1f}",
        f"{p99(meanwhile):.1f}",
        f"{p99(meanwhile) / p99(alone):.1f}",
        str(dict(answers)),
    )
    return " | ".join(cells)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each of three rounds")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    asked = parser.parse_args()
    headers = {"Authorization": f"Bearer {os.environ['ADAP_ADMIN_KEY']}"}
    admin = httpx.Client(base_url=os.environ["ADAP_URL"], headers=headers, timeout=120)
    victim, attacker = tenant(admin, "victim"), tenant(admin, "attacker")

    def scores_of(model: str) -> str:
        return f"/v1/models/{model}/scores"

    npz = "application/octet-stream"
    own = Attack("own", scores_of(uploaded(victim, Cheap(8), 8)), arrays(1, 8), npz)
    waits(victim, own, 2)
    print("| attack | median alone, ms | p99 | median meanwhile | p99 | p99 times | answers |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.only:
        if name == "costly":
            model = uploaded(attacker, Costly(), SIDE)
            attack = Attack(name, scores_of(model), arrays(256, SIDE), npz)
        else:
            count, side = FORMS[name]
            model = uploaded(attacker, Cheap(side), side)
            attack = Attack(name, scores_of(model), *form(count, side))
        send(attacker, attack)  # loaded beforehand
        row = measure(victim, own, attacker, attack, seconds=asked.seconds)
        print(f"| {row} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
