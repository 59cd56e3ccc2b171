"""Waiting time of one tenant for a score while another keeps the service as busy as it may.

    ADAP_URL=http://127.0.0.1:8000 ADAP_ADMIN_KEY=... python -m benchmarks.isolation [--seconds 20]

The victim asks for one small image at a time. The attacker sends, without pause, as many images a
request as go, of a network that is as costly as the service accepts for its batches. Told are the
victim's median and 99th percentile, alone and meanwhile, and how many times longer the 99th is
then than alone, before and after; and what the attacker was answered.
"""

import argparse
import io
import json
import os
import statistics
import threading
import time
from collections import Counter

import httpx
import numpy as np
import torch
from torch import nn

SIDE = 64
PARALLEL = 4  # requests of the attacker at a time


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

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 8, 8) -> (B, 1)."""
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


def ask(client: httpx.Client, model: str, count: int, side: int) -> int:
    """The status of one request for the scores of `count` images."""
    out = io.BytesIO()
    np.savez(out, images=np.zeros((count, side, side, 1), np.uint8))
    headers = {"Content-Type": "application/octet-stream"}
    url = f"/v1/models/{model}/scores"
    return client.post(url, content=out.getvalue(), headers=headers).status_code


def waits(client: httpx.Client, model: str, seconds: float) -> list[float]:
    """Milliseconds of each of the victim's requests, one after another."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        status = ask(client, model, 1, 8)
        if status != 200:
            raise SystemExit(f"expected 200 for the victim, got {status}")
        found.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)
    return found


def told(name: str, found: list[float]) -> float:
    """Print one row of the table; the 99th percentile."""
    p99 = statistics.quantiles(found, n=100)[98]
    print(f"| {name} | {len(found)} | {statistics.median(found):.1f} | {p99:.1f} |", flush=True)
    return p99


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    headers = {"Authorization": f"Bearer {os.environ['ADAP_ADMIN_KEY']}"}
    admin = httpx.Client(base_url=os.environ["ADAP_URL"], headers=headers, timeout=120)
    victim, attacker = tenant(admin, "victim"), tenant(admin, "attacker")
    small, large = uploaded(victim, Cheap(), 8), uploaded(attacker, Costly(), SIDE)
    ask(attacker, large, 1, SIDE)
    waits(victim, small, 2)
    print("| | requests | median, ms | p99, ms |\n|---|---|---|---|")
    before = told("alone", waits(victim, small, seconds))
    ends = threading.Event()

    answers: Counter[int] = Counter()

    def attack() -> None:
        while not ends.is_set():
            answers[ask(attacker, large, 256, SIDE)] += 1

    threads = [threading.Thread(target=attack) for _ in range(PARALLEL)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    meanwhile = told("while another tenant attacks", waits(victim, small, seconds))
    ends.set()
    for thread in threads:
        thread.join()
    after = told("afterwards", waits(victim, small, seconds))
    print(f"\np99 {meanwhile / before:.1f} times that before, {meanwhile / after:.1f} that after;")
    print(f"the attacker's answers by status: {dict(answers)};")
    print(f"load {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
