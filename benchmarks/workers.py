"""Speed-up of an audit when a second worker joins.

    python -m benchmarks.workers --examples 1024 --repeats 3

Real worker processes on a home of their own, one thread each, take the shards of the same audit:
PGD and APGD on random 32x32 images with an untrained ResNet-18, which costs what a trained one
does. One worker and two in turn, other seeds each time so that nothing is known already; the
median of wall-clock seconds from the first claim to the report. Needs as many idle cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adap.core.config.audits import AuditRequest
from adap.core.datasets import ImageSet
from adap.models import architectures, loading
from adap.models.header import InputSpec, Manifest
from adap.store import jobs
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import (
    TERMINAL,
    AssetStatus,
    DatasetRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
)
from adap.worker.intake import summarise

SIDE = 32


def furnish(settings: Settings, database: Database, *, examples: int) -> tuple[str, str]:
    """A data set and a model that are ready; their ids."""
    random = np.random.default_rng(0)
    labels = (np.arange(examples) % 10 == 0).astype(np.int64)
    image_set = ImageSet(
        images=random.integers(0, 256, (examples, 3, SIDE, SIDE), np.uint8),
        labels=labels,
        classes=["negative", "positive"],
        example_ids=[f"{i:06d}" for i in range(examples)],
    )
    image_set.save(settings.home / "set")
    spec = InputSpec(channels=3, height=SIDE, width=SIDE, mean=[0.5] * 3, std=[0.3] * 3)
    manifest = Manifest(architecture="resnet18", input=spec, positive=["positive"])
    network = architectures.build("resnet18", channels=3, seed=0).eval()
    loading.save(network, settings.home / "model", manifest)
    blobs, dataset, model = open_blobs(settings), new_id("ds"), new_id("mdl")
    common = {"tenant": "local", "status": AssetStatus.READY}
    with database.writing() as session:
        session.add(
            DatasetRow(
                id=dataset,
                name="random",
                content_sha256=blobs.put(settings.home / "set"),
                summary={**summarise(image_set), "splits": {}},
                **common,
            )
        )
        session.add(
            ModelRow(
                id=model,
                name="untrained",
                content_sha256=blobs.put(settings.home / "model"),
                manifest=manifest.model_dump(mode="json"),
                **common,
            )
        )
    return dataset, model


@contextmanager
def workers(settings: Settings, count: int) -> Iterator[None]:
    """That many worker processes, one thread each."""
    environment = {
        "ADAP_HOME": str(settings.home),
        "ADAP_BROKER_URL": settings.broker_url or "",
        "ADAP_SWEEP_S": "0.2",
        "ADAP_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "adap.worker", "--queue", "compute"],
            env={**os.environ, **environment},
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    try:
        time.sleep(8)  # until torch is loaded everywhere
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def seconds(database: Database, dataset: str, model: str, *, seed: int) -> float:
    """From the first claim of an audit to its report."""
    request = AuditRequest.model_validate(
        {
            "model_id": model,
            "dataset_id": dataset,
            "attacks": ["pgd", {"name": "apgd", "steps": 10}],
            "checks": "off",
            "certify": "off",
            "shard_size": 64,
            "batch_size": 64,
            "seed": seed,
        }
    )
    with database.writing() as session:
        job = jobs.enqueue(
            session,
            JobKind.AUDIT,
            tenant="local",
            request=request.as_json(),
            dataset_id=dataset,
            model_id=model,
        ).id
    while True:
        with database.reading() as session:
            row = session.get_one(JobRow, job)
        if row.status in TERMINAL:
            assert row.status == JobStatus.SUCCEEDED, row.error
            assert row.finished_at is not None
            assert row.started_at is not None
            return row.finished_at - row.started_at
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adap-workers-") as folder:
        settings = Settings(home=Path(folder), broker_url="redis://127.0.0.1:1/0")
        database = Database(settings)
        migrate(database)
        dataset, model = furnish(settings, database, examples=options.examples)
        taken: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(options.repeats):
            for count in taken:
                with workers(settings, count):
                    taken[count].append(seconds(database, dataset, model, seed=2 * repeat + count))
        database.dispose()
    one, two = (statistics.median(values) for values in taken.values())
    ratio = statistics.median(b / a for a, b in zip(taken[1], taken[2], strict=True))
    print(f"{options.examples} images, {os.cpu_count()} cores, median of {options.repeats}")
    print(f"one worker {one:.1f} s, two workers {two:.1f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
