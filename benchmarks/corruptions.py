"""What a suite of corruptions costs beside its bare scoring passes.

    python -m benchmarks.corruptions

A small convolutional network scores 32x32 RGB images: 15 kinds at 5 severities are measured as a
worker does, column by column, saved and joined; against 75 bare passes over images that are
corrupted already, and the corruption itself by the same clock. Processor time of one thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.audit import measuring
from adap.core.audit.network import as_input
from adap.core.config.corruptions import Corruptions
from adap.core.corruptions.suite import corrupted
from adap.core.figures.corruptions import corruption_figures
from adap.core.figures.worst_case import worst_corruption
from adap.core.report import APFigure, Difference
from adap.core.scores import Scores, load_scores, save_scores
from adap.models import architectures

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--architecture", default="small_cnn")
    args = parser.parse_args()

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.images, 3, 32, 32), dtype=np.uint8)
    ids = [str(i) for i in range(args.images)]
    targets = (np.arange(args.images) % 5 == 0).astype(np.int64)
    network = nn.Sequential(
        architectures.build(args.architecture, channels=3, seed=0), nn.Flatten(0)
    ).eval()
    clean = Scores(ids, targets, rng.normal(size=args.images), {})
    suite = Corruptions().each()

    began = time.process_time()
    made = [corrupted(images, ids, corruption=each, seed=0) for each in suite]
    corrupting = time.process_time() - began

    began = time.process_time()
    with attacking(network), torch.no_grad():
        for pictures in made:
            for start in range(0, args.images, BATCH):
                network(as_input(pictures[start : start + BATCH], torch.device("cpu")))
    bare = time.process_time() - began

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, each in enumerate(suite):
            column = measuring.corrupt_shard(
                network,
                clean,
                images,
                corruption=each,
                seed=0,
                shard=0,
                batch_size=BATCH,
                device=torch.device("cpu"),
                on_progress=lambda _: None,
            )
            paths.append(Path(folder) / f"{i}.safetensors")
            save_scores([column], paths[-1])
        parts = [load_scores(path)[0] for path in paths]
    whole = Scores(
        ids,
        targets,
        clean.clean,
        {},
        corrupted={of: part.corrupted[of] for part in parts for of in part.corrupted},
        corruption_table=parts[0].corruption_table,
    )
    worst_corruption(whole)
    corruption_figures(whole, APFigure(ap=0.5), drop=Difference(value=0.0))
    all_of_it = time.process_time() - began

    print(f"{args.architecture}, {args.images} images of 32x32, {len(suite)} columns")
    print(f"bare passes {bare:.1f} s, corruption {corrupting:.1f} s, the suite {all_of_it:.1f} s")
    print(f"beyond the corruption: {(all_of_it - corrupting) / bare:.2f} of the bare passes")


if __name__ == "__main__":
    main()
