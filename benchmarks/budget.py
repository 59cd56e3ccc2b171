"""Quality and cost of the greedy budget curve, against the best images to change.

    python -m benchmarks.budget

Optimum: on rankings of 5 to 10 images, of distinct scores and of tied ones, the share of curves
whose point at k images is the lowest AP over all sets of k, and the largest gap above it. Cost:
seconds of one processor for the three roles, 100 images each.

Measured on one of two x86-64 cores, shared with much other work: 0.06 s for 10,000 examples, 0.4 s
for 100,000 with 10,000 positives, 1.1 s with 50,000.

One image is always the optimum. Two are for 100 % of the curves that push negatives and that hide
positives, and for 97.9 % of those that do both (at most 0.111 above it); three for 100 %, 99.9 %
(0.029) and 97.3 % (0.143). That is 700 to 1,900 curves each, of 2,000 rankings.
"""

import argparse
import platform
import time

import numpy as np

from adap.core.figures.budget import budget_curve
from tests.core.test_budget import ROLES, ROUNDING, allowed, least_ap, random_attack


def gaps(*, rankings: int, images: int) -> dict[str, list[float]]:
    """For each role greedy's AP minus the optimum, where there is a choice of images."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {role: [] for role in ROLES}
    for _ in range(rankings):
        clean, worst, targets = random_attack(rng, examples=int(rng.integers(5, 11)))
        [point] = budget_curve(clean, worst, targets, budgets=[images])
        for role in ROLES:
            reached = allowed(clean, worst, targets, role)
            if (clean != reached).sum() > images:
                least = least_ap(clean, reached, targets, images=images)
                found[role].append(getattr(point, role) - least)
    return found


def cost(*, examples: int, positives: int) -> float:
    rng = np.random.default_rng(0)
    targets = (np.arange(examples) < positives).astype(np.int64)
    clean = rng.normal(size=examples) + 2 * targets
    worst = clean - (2 * targets - 1) * rng.uniform(0, 2, examples)
    started = time.process_time()
    budget_curve(clean, worst, targets, budgets=[1, 2, 5, 10, 20, 50, 100])
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rankings", type=int, default=2000)
    args = parser.parse_args()

    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"\n{args.rankings} rankings\n")
    print("| role | images | curves | optimal | largest gap |\n|---|---|---|---|---|")
    for images in (1, 2, 3):
        for role, gap in gaps(rankings=args.rankings, images=images).items():
            optimal = np.mean(np.array(gap) < ROUNDING)
            print(f"| {role} | {images} | {len(gap)} | {optimal:.1%} | {max(gap):.3f} |")

    print("\n| examples | positives | processor s |\n|---|---|---|")
    for examples, positives in ((10_000, 1000), (100_000, 10_000), (100_000, 50_000)):
        seconds = cost(examples=examples, positives=positives)
        print(f"| {examples:,} | {positives:,} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
