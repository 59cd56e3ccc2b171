"""Three tenants of a soak: mixed jobs, each sent under one key until it is accepted."""

import io
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from adap.client.base import ClientError, ConnectionFailedError, ProblemError
from adap.client.client import Client

SEEDS = (0, 1, 2)  # of trainings: each is repeated, and must give the same weights
AGAIN_S = 0.3
LIVE = 3  # jobs of a tenant that wait or run: few, so that all get on
MIX = ("train", "train", "audit", "audit", "rank", "upload", "cancel")


@dataclass(frozen=True)
class Accepted:
    """A job that the service took with 201 or, an upload, will check."""

    id: str
    tenant: str
    what: str  # one of MIX
    seed: int | None = None  # of a training


@dataclass
class Tenant:
    """One customer: a thread with a key of its own."""

    name: str
    url: str
    key: str
    random: Random
    accepted: list[Accepted] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # answers that no outage excuses
    dataset: str = ""
    model: str = ""
    _sent: int = 0

    def __post_init__(self) -> None:
        self.client = Client(self.url, api_key=self.key, timeout_s=30)

    def prepare(self, seeds: tuple[int, ...]) -> None:
        """Upload the data set, and train these seeds while nothing disturbs."""
        added = self._upload()
        self.wait_ended(self.accepted[-1].id)
        self.dataset = added["id"]
        for seed in seeds:
            self._train(seed)
            self.model = self.wait_ended(self.accepted[-1].id)["result"]["model_id"]

    def work(self, over: threading.Event) -> None:
        """Send jobs until it is over, a few at a time."""
        live: deque[str] = deque()
        while not over.is_set():
            while len(live) >= LIVE and not over.is_set():
                first = self.call("GET", f"/v1/jobs/{live[0]}")
                if first["done"]:
                    live.popleft()
                else:
                    time.sleep(AGAIN_S)
            self._send(self.random.choice(MIX))
            live.append(self.accepted[-1].id)

    def wait_ended(self, job_id: str) -> dict[str, Any]:
        """A job that has ended."""
        while not (job := self.call("GET", f"/v1/jobs/{job_id}"))["done"]:
            time.sleep(AGAIN_S)
        return job

    def call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """A request, again until it is answered; what an outage may answer is 503 or nothing."""
        while True:
            try:
                return dict(self.client.request(method, path, **content).json())
            except ConnectionFailedError:
                pass
            except ProblemError as error:
                if error.status != 503:
                    self.wrong.append(f"{method} {path}: {error.status} {error.code}: {error}")
                    if error.status < 500:
                        raise
            time.sleep(AGAIN_S)

    def _send(self, what: str) -> None:
        if what == "upload":
            self._upload()
        elif what in ("train", "cancel"):
            self._train(self.random.choice(SEEDS), what)
        elif what == "audit":
            quick = {"attacks": [{"name": "pgd", "steps": 2}], "threat": {"epsilon": 0.03}}
            self._post("audit", "/v1/audits", {**quick, "checks": "off"})
        else:
            self._post("rank", "/v1/rankings", {})
        if what == "cancel":
            time.sleep(self.random.uniform(0, 3))
            try:
                self.client.jobs.cancel(self.accepted[-1].id)
            except ClientError as error:  # it has ended, or an outage: then it goes on
                status = error.status if isinstance(error, ProblemError) else 503
                if status not in (409, 503):
                    self.wrong.append(f"cancel: {status} {error}")

    def _post(self, what: str, path: str, request: Mapping[str, Any]) -> None:
        both = {"model_id": self.model, "dataset_id": self.dataset, **request}
        job = self.call("POST", path, json=both, headers=self._new_key())
        self.accepted.append(Accepted(job["id"], self.name, what))

    def _train(self, seed: int, what: str = "train") -> None:
        request = {
            "dataset_id": self.dataset,
            "task": {"positive": ["1"]},
            "epochs": 3,
            "batch_size": 32,
            "attack": {"steps": 1},
            "seed": seed,
        }
        job = self.call("POST", "/v1/training-jobs", json=request, headers=self._new_key())
        self.accepted.append(Accepted(job["id"], self.name, what, seed))

    def _upload(self) -> dict[str, Any]:
        """The first is alike for all tenants; the later ones are for nothing but the intake."""
        number = 0 if not self.dataset else self.random.randrange(1, 5)
        added = self.call(
            "POST",
            "/v1/datasets",
            files=[("file", ("set.npz", arrays(number)))],
            headers=self._new_key(),
        )
        self.accepted.append(Accepted(added["job_id"], self.name, "upload"))
        return added

    def _new_key(self) -> dict[str, str]:
        self._sent += 1
        return {"Idempotency-Key": f"{self.name}-{self._sent}"}


def arrays(number: int) -> bytes:
    """An NPZ of 8x8 images in which the bright ones are positive."""
    random = np.random.default_rng(number)
    labels = (np.arange(96) % 4 == 0).astype(np.int64)
    images = random.integers(0, 120, (96, 8, 8))
    images[labels == 1, 2:6, 2:6] += 90
    file = io.BytesIO()
    np.savez(file, images=images.astype(np.uint8), labels=labels)
    return file.getvalue()
