"""Memory and time of training and auditing, over the number of images: tiny ones, in a file.

    python -m benchmarks.scaling                           # the table, on standard output
    python -m benchmarks.scaling --write benchmarks/results/scaling.md

The images are 3x32x32 noise (3,072 bytes each) with a brighter positive class of a tenth, in the
stored form of the service, and the network is a linear one on 4x4 means, so that what is measured
is the handling of images. Trained is an epoch of CE with crops and flips, of four fifths of them,
and validated on the rest; audited are all, clean and by FGSM, without checks and bounds.

Memory is the most anonymous memory that a process of its own held, everything that it imports
included, looked at 200 times a second; a thousand images went through it before. Pages of the file
are the kernel's, which takes them back when it needs them, and are not counted. Bytes an image are
those by which it grew from the row above.
"""

import argparse
import datetime
import multiprocessing
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import adap
from adap.core.config.data import Task
from adap.core.config.methods import CEMethod
from adap.core.config.training import Augment, TrainingConfig
from adap.core.datasets import Draft, ImageSet, stored_images
from adap.core.objectives.registry import build_objective
from adap.core.training.loop import fit
from adap.core.training.splitting import training_split
from adap.worker.pipelines.learning import examples

SIDE, WARM, ROWS = 32, 1000, 10_000
TASK = Task(positive=["bright"])


@dataclass(frozen=True)
class Measured:
    """What one work took."""

    images: int
    mib: float
    seconds: float

    def above(self, fewer: "Measured") -> float:
        """Bytes for each image more than those."""
        return (self.mib - fewer.mib) * 2**20 / (self.images - fewer.images)


def store(path: Path, count: int) -> None:
    """A data set of so many images, in the form in which the service keeps it."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 10 == 0).astype(np.int64)
    draft = Draft(path)
    images = draft.room(labels, (count, 3, SIDE, SIDE))
    some = rng.integers(0, 200, (ROWS, 3, SIDE, SIDE), np.uint8)
    some[::10] += 20
    for start in range(0, count, ROWS):
        images[start : start + ROWS] = np.roll(some, start // ROWS, axis=3)[: count - start]
    ids = [f"{number:08d}" for number in range(count)]
    draft.finish(ImageSet(images, labels, ["dark", "bright"], ids))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 1), nn.Flatten(0))


def train(path: Path) -> None:
    """An epoch, as a worker has it."""
    image_set = ImageSet.load(path)
    config = TrainingConfig(
        method=CEMethod(), epochs=1, batch_size=1024, augment=Augment(crop_padding=4, flip=True)
    )
    index, held_out = training_split(image_set, TASK, config)
    images, targets = examples(image_set, index, TASK)
    fit(
        _network(),
        build_objective(config.method, examples=len(targets)),
        images=images,
        targets=targets,
        validation=examples(image_set, held_out, TASK),
        config=config,
        device=torch.device("cpu"),
        on_epoch=lambda _: None,
    )


def audit(path: Path) -> None:
    """Clean and FGSM scores of all, and their AP."""
    image_set = ImageSet.load(path)
    adap.audit(
        _network(),
        stored_images(path),
        image_set.targets(TASK),
        attacks=["fgsm"],
        checks="off",
        certify="off",
        batch_size=1024,
        progress=False,
    )


WORKS: dict[str, Callable[[Path], None]] = {"training": train, "audit": audit}


def measure(work: str, count: int) -> Measured:
    """In a process of its own, so that nothing of it was there before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, count))


def _measure(work: str, count: int) -> Measured:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        store(few, WARM)
        store(many, count)
        WORKS[work](few)
        most, done = [_anonymous_mib()], threading.Event()

        def look() -> None:
            while not done.wait(0.005):
                most.append(max(most.pop(), _anonymous_mib()))

        looking = threading.Thread(target=look)
        looking.start()
        started = time.perf_counter()
        WORKS[work](many)
        seconds = time.perf_counter() - started
        done.set()
        looking.join()
    return Measured(count, most[0], seconds)


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("expected Linux, which says how much memory of a process is anonymous")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--images", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Memory and time over the number of images",
        "",
        f"`python -m benchmarks.scaling`, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}, 1 thread. What is measured is said in "
        "benchmarks/scaling.py.",
        "",
        "| work | images | their size | most memory | more bytes an image | seconds | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in arguments.works:
        last: Measured | None = None
        for count in arguments.images:
            found = measure(work, count)
            more = "" if last is None else f"{found.above(last):,.0f}"
            last = found
            lines.append(
                f"| {work} | {count:,} | {count * 3 * SIDE**2 / 2**20:,.0f} MiB | "
                f"{found.mib:,.0f} MiB | {more} | {found.seconds:.1f} | "
                f"{count / found.seconds:,.0f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
