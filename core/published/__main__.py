"""`python -m adap.core.published cifar10 ROOT -o cifar10.npz`: pack a published set for upload.

The NPZ holds images, labels, classes and splits, as `POST /v1/datasets` takes them. The file is
whole or not there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import AdapError, ConfigError
from adap.core.published import PUBLISHED, load
from adap.core.published.base import replacing
from adap.core.training.splitting import hold_out, make_rare


def pack(image_set: ImageSet, target: Path) -> None:
    """Write a data set as an NPZ."""
    arrays: dict[str, NDArray[Any]] = {
        "images": image_set.images,
        "labels": image_set.labels,
        "classes": np.array(list(image_set.classes)),
    }
    if image_set.splits is not None:
        arrays["split"] = np.array(SPLITS)[image_set.splits]
    with replacing(target) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def main(arguments: list[str] | None = None) -> None:
    """Read, split, pack; progress on standard error."""
    names = "; ".join(f"{entry.name}: {entry.description}" for entry in PUBLISHED.values())
    parser = argparse.ArgumentParser(
        prog="python -m adap.core.published", description=__doc__, epilog=names
    )
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("root", type=Path, help="the folder in which the publisher's files lie")
    parser.add_argument("-o", "--output", type=Path, help="by default NAME.npz")
    parser.add_argument("--labels", help="superclass or class; an attribute; weather or scene")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--cache", type=Path, help="where decoded images are kept")
    parser.add_argument(
        "--validation", type=float, metavar="SHARE", help="of each class, held out of training"
    )
    parser.add_argument("--positive", action="append", help="class to make rare, with --prevalence")
    parser.add_argument(
        "--prevalence", type=float, help="share of positives, training and validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is held out and dropped")
    asked = parser.parse_args(arguments)
    if (asked.positive is None) != (asked.prevalence is None):
        parser.error("expected --positive and --prevalence together")
    progress = "Read {:,} of {:,} images" if sys.stderr.isatty() else ""

    def on_progress(done: int, total: int) -> None:
        if progress and (done % 100 == 0 or done == total):
            end = "\n" if done == total else "\r"
            sys.stderr.write(progress.format(done, total) + end)

    try:
        image_set = load(
            asked.name,
            asked.root,
            labels=asked.labels,
            size=asked.size,
            cache=asked.cache,
            on_progress=on_progress,
        )
        if asked.prevalence is not None:
            task = Task(positive=asked.positive)
            image_set = make_rare(image_set, task, prevalence=asked.prevalence, seed=asked.seed)
        if asked.validation is not None:
            image_set = hold_out(image_set, fraction=asked.validation, seed=asked.seed)
        target = asked.output or Path(f"{asked.name}.npz")
        try:
            pack(image_set, target)
        except OSError as error:
            raise ConfigError(f"expected to be able to write {target}: {error}") from error
    except AdapError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{target}: {len(image_set):,} images\n")


if __name__ == "__main__":
    main()
