"""Images a second that the service scores, beside what the same network could do bare.

    pip install litserve
    python -m benchmarks.serving --architecture resnet18_3x3 --seconds 5 --rounds 3

One untrained network (which costs what a trained one does), 32x32 PNG files in base64, one image a
request, the same requests for all. On the same cores, one after another within each round, so that
what else the machine does hits all of them:

- `bare forward`: batches of 64 through the network in a loop, no requests at all;
- `adap`: the API and the scoring process as the service starts them, with a database, checks of
  the caller, and files opened in the sandbox;
- `litserve`: LitServe with batches of up to 64;
- `fastapi`: a FastAPI route that decodes the file and calls the network.

The load is as many connections as the concurrency, each sending its next request when the answer to
the last one is there; it shares the cores with the servers. The median over the rounds is printed,
with what an image costs the processes of the server in time of the processor (`CPU ms`),
and the largest difference of a score of ours, taken under load, from the image's score alone.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from adap.models import architectures, loading
from adap.models.header import InputSpec, Manifest
from adap.models.wrappers import Scorer
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import AssetStatus, ModelRow
from benchmarks.load_ground import free_port

SIDE, BATCH, IMAGES = 32, 64, 256
CONCURRENCY = (1, 8, 64)
START_LIMIT_S = 300.0  # of a server on a machine that others use, too
SPEC = InputSpec(channels=3, height=SIDE, width=SIDE, mean=[0.5] * 3, std=[0.3] * 3)


def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, 32, 32, 3) images."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)


def bodies() -> list[bytes]:
    """A JSON body for each image."""
    made = []
    for image in pixels():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        made.append(json.dumps({"images": [base64.b64encode(file.getvalue()).decode()]}).encode())
    return made


def scorer(path: Path) -> Scorer:
    """The network in eval mode."""
    found, _ = loading.load(path, None, device="cpu")
    return found.requires_grad_(False)


# --- the servers, each in a process of its own ----------------------------------------------------


@dataclass(frozen=True)
class System:
    """A server: where to post to, and the processes that it began with."""

    port: int
    path: str
    pids: tuple[int, ...]

    def used_s(self) -> float:
        """The processor's time of all its processes that run."""
        begun = [psutil.Process(pid) for pid in self.pids]
        running = [*begun, *(child for each in begun for child in each.children(recursive=True))]
        times = [each.cpu_times() for each in running]
        return sum(each.user + each.system for each in times)


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code < 500
    return False


@contextmanager
def process(*command: str, url: str, **environment: str) -> Iterator[int]:
    """A server that answers at this address, by its process id."""
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
        start_new_session=True,
    )
    try:
        until = time.monotonic() + START_LIMIT_S
        while not _answers(url):
            if started.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command} did not start")
            time.sleep(0.1)
        yield started.pid
    finally:
        os.killpg(started.pid, 15)
        started.wait(30)


@contextmanager
def service(home: Path, path: Path) -> Iterator[System]:
    """Our API and scoring process with the model in the database."""
    port = free_port()
    settings = Settings(home=home)
    database = Database(settings)
    migrate(database)
    model_id, manifest = new_id("mdl"), loading.load(path, None, device="cpu")[1]
    with database.writing() as session:
        session.add(
            ModelRow(
                id=model_id,
                tenant="local",
                name="benchmark",
                status=AssetStatus.READY,
                content_sha256=open_blobs(settings).put(path),
                manifest=manifest.model_dump(mode="json"),
            )
        )
    database.dispose()
    environment = {
        "ADAP_HOME": str(home),
        "ADAP_PORT": str(port),
        "ADAP_BROKER_URL": "redis://127.0.0.1:1/0",
        "ADAP_SCORING_URL": f"unix://{home}/scoring.sock",
        "ADAP_LOG_LEVEL": "WARNING",
    }
    url = f"http://127.0.0.1:{port}"
    with (
        process("adap.api", url=f"{url}/livez", **environment) as api,
        process("adap.worker.scoring", url=f"{url}/v2/health/ready", **environment) as scoring,
    ):
        yield System(port, f"/v1/models/{model_id}/scores", (api, scoring))


# --- the load -------------------------------------------------------------------------------------


async def load(
    port: int, path: str, *, concurrency: int, seconds: float
) -> tuple[float, list[float], dict[int, float]]:
    """Requests a second, their latencies in seconds, and the last score of each image."""
    heads = [
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies()
    ]
    latencies: list[float] = []
    scores: dict[int, float] = {}
    end = time.perf_counter() + seconds

    async def connection(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            number = (number + concurrency) % IMAGES
            writer.write(heads[number])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{path}: {head!r} {answer}")
            latencies.append(time.perf_counter() - started)
            (score,) = answer["scores"]
            scores[number] = score["score"] if isinstance(score, dict) else score
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(connection(i) for i in range(concurrency)))
    return len(latencies) / (time.perf_counter() - started), latencies, scores


def bare_forward(network: Scorer, *, seconds: float) -> float:
    """Images a second in batches, nothing else."""
    x = torch.from_numpy(pixels()[:BATCH]).permute(0, 3, 1, 2).float().contiguous() / 255
    done, started = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - started < seconds:
            network(x)
            done += BATCH
    return done / (time.perf_counter() - started)


def measure(architecture: str, *, seconds: float, rounds: int) -> None:
    """Run everything; prints a Markdown table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "model.safetensors"
        network = architectures.build(architecture, channels=3, seed=0).eval()
        loading.save(network, path, Manifest(architecture=architecture, input=SPEC))
        here = scorer(path)
        home = Path(folder) / "home"
        home.mkdir()
        systems = {"adap": stack.enter_context(service(home, path))}
        for name in ("litserve", "fastapi"):
            port = free_port()
            own = ("benchmarks.serving_peers", name, str(path), str(port))
            pid = stack.enter_context(process(*own, url=f"http://127.0.0.1:{port}/"))
            systems[name] = System(port, "/scores", (pid,))
        forward: list[float] = []
        costs: dict[tuple[str, int], list[float]] = {}
        rates: dict[tuple[str, int], list[float]] = {}
        times: dict[tuple[str, int], list[float]] = {}
        ours: dict[int, float] = {}
        bare_forward(here, seconds=1)
        for system in systems.values():
            asyncio.run(load(system.port, system.path, concurrency=8, seconds=2))
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                forward.append(bare_forward(here, seconds=seconds))
                for name, system in systems.items():
                    before = system.used_s()
                    rate, latencies, scores = asyncio.run(
                        load(system.port, system.path, concurrency=concurrency, seconds=seconds)
                    )
                    cost = (system.used_s() - before) / len(latencies)
                    costs.setdefault((name, concurrency), []).append(cost)
                    rates.setdefault((name, concurrency), []).append(rate)
                    times.setdefault((name, concurrency), []).extend(latencies)
                    if name == "adap":
                        ours |= scores
    report(forward, rates, times, costs)
    ours = dict(sorted(ours.items())[:BATCH])  # the others would take as long as the rest together
    with torch.inference_mode():
        x = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 255
        alone = {i: float(here(x[i : i + 1])) for i in ours}
    worst = max(abs(ours[i] - alone[i]) for i in ours)
    same = sorted(ours, key=ours.__getitem__) == sorted(alone, key=alone.__getitem__)
    print(f"\n{len(ours)} scores under load: largest difference from the score alone {worst:.1e};")
    print(f"same ranking: {'yes' if same else 'no'}.")
    print(
        f"{architecture}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end,", end=""
    )
    print(f" torch {torch.__version__}, Python {platform.python_version()}.")


def report(
    forward: list[float],
    rates: dict[tuple[str, int], list[float]],
    times: dict[tuple[str, int], list[float]],
    costs: dict[tuple[str, int], list[float]],
) -> None:
    """The table: medians over the rounds, and of the bare forward measured in the same rounds."""
    print("| system | concurrency | images/s | of the bare forward | p50 ms | p99 ms | CPU ms |")
    print("|---|---|---|---|---|---|---|")
    print(f"| bare forward, batches of {BATCH} | | {statistics.median(forward):.1f} | 1.00 | | | |")
    for (name, concurrency), measured in rates.items():
        beside = forward[CONCURRENCY.index(concurrency) :: len(CONCURRENCY)]
        share = statistics.median(a / b for a, b in zip(measured, beside, strict=True))
        p50, p99 = np.percentile(np.array(times[name, concurrency]) * 1000, [50, 99])
        print(
            f"| {name} | {concurrency} | {statistics.median(measured):.1f} | {share:.2f} "
            f"| {p50:.0f} | {p99:.0f} | {1000 * statistics.median(costs[name, concurrency]):.1f} |"
        )


def main() -> None:
    """Measure on this machine."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--architecture", default="resnet18_3x3")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    measure(arguments.architecture, seconds=arguments.seconds, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
