"""Cost of intervals, and how often they hold what they promise.

    python -m benchmarks.intervals                     # cost
    python -m benchmarks.intervals --coverage 200      # coverage, so many data sets a row
    python -m benchmarks.intervals --coverage 200 --positives 1000 --prevalence 0.1 --kinds normal

Cost: seconds of one processor for 2,000 resamples of one score set, of the two of a paired
difference and of the five of an audit with three attacks, with the most memory that the bootstrap
held. Coverage: the share of simulated data sets whose 95 % interval holds the AP of infinitely many
examples, which is found by integration, with the share of intervals above it and below it, their
mean width, and the same of the plain percentile interval. Clustered scores share half of their
variance with four others of their cluster, whose side all five are of; mixed clusters hold one
positive and four negatives. Rows are in `results/intervals.md`.

Measured on one of two x86-64 cores, shared with much other work: 2,000 resamples of 100,000 scores
with 10,000 positives take 1.6 s and 6 MiB, a paired difference 3.6 s, five score sets 5.3 s and
10 MiB; with 50,000 positives 2.4, 4.1 and 8.9 s. Of 10,000 scores five sets take 0.4 s.
"""

import argparse
import platform
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from adap.core.figures.intervals import percentile_interval, resampled_ap
from adap.core.report import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Scores of one class: distributions with their shares."""

    parts: tuple[tuple[float, Any], ...]

    def above(self, s: Floats) -> Floats:
        return np.asarray(sum(share * of.sf(s) for share, of in self.parts))

    def levels(self, shares: Floats) -> Floats:
        return np.concatenate([of.ppf(shares) for _, of in self.parts])

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        which = rng.choice(len(self.parts), count, p=[share for share, _ in self.parts])
        drawn = np.empty(count)
        for i, (_, of) in enumerate(self.parts):
            drawn[which == i] = of.rvs((which == i).sum(), random_state=rng)
        return drawn


@dataclass(frozen=True)
class Kind:
    """How positives score by their shift, and negatives; rounded to a step if there is one.

    clusters: whose examples share SHARED of their variance; of one side, or a positive in each.
    """

    positives: Callable[[float], Mixture]
    negatives: Mixture
    step: float | None = None
    clusters: Literal["pure", "mixed"] | None = None


NORMAL = Mixture(((1, norm(0)),))
KINDS = {
    "normal": Kind(lambda shift: Mixture(((1, norm(shift)),)), NORMAL),
    "heavy-tailed": Kind(lambda shift: Mixture(((1, t(2, loc=shift)),)), Mixture(((1, t(2)),))),
    "two-humped": Kind(lambda shift: Mixture(((0.5, norm(shift)), (0.5, norm(shift / 2)))), NORMAL),
    "rounded": Kind(lambda shift: Mixture(((1, norm(shift)),)), NORMAL, step=0.5),
    "clustered": Kind(lambda shift: Mixture(((1, norm(shift)),)), NORMAL, clusters="pure"),
    "mixed clusters": Kind(lambda shift: Mixture(((1, norm(shift)),)), NORMAL, clusters="mixed"),
}
APS = [0.1, 0.3, 0.6, 0.9, 0.99, 0.999]
CLUSTER = 5  # examples
SHARED = 0.5
SHARES = np.concatenate(
    [
        np.geomspace(1e-12, 1e-3, 300),
        np.linspace(1e-3, 0.999, 2000),
        1 - np.geomspace(1e-3, 1e-12, 300),
    ]
)


def true_ap(kind: Kind, shift: float, prevalence: float) -> float:
    """AP of infinitely many examples, negatives first among equals: the precision, integrated over
    the positives level by level; between two levels positives and negatives are spread evenly."""
    positives, negatives = kind.positives(shift), kind.negatives
    if kind.step:
        levels = np.arange(-12, shift + 12, kind.step) - kind.step / 2
    else:
        levels = np.unique(np.concatenate([positives.levels(SHARES), negatives.levels(SHARES)]))
    found, alarms = prevalence * positives.above(levels), (1 - prevalence) * negatives.above(levels)
    here, before = found[:-1] - found[1:], found[1:]
    wrong = alarms[:-1] if kind.step else (alarms[:-1] + alarms[1:]) / 2
    some = here > 1e-15
    here, before, wrong = here[some], before[some], wrong[some]
    precision = 1 - wrong / here * np.log1p(here / np.maximum(before + wrong, 1e-300))
    return float((precision * here).sum() / here.sum())


def shift_of(kind: Kind, ap: float, prevalence: float) -> float:
    """By how much positives score higher where this is the true AP."""
    return float(brentq(lambda shift: true_ap(kind, shift, prevalence) - ap, 0, 1e4, xtol=1e-4))


@dataclass(frozen=True)
class Coverage:
    """Of the intervals of many data sets: the shares that hold the truth and that miss it."""

    held: float
    above: float
    below: float
    width: float


def covered(intervals: list[Interval], truth: float) -> Coverage:
    low, high = np.array([(it.low, it.high) for it in intervals]).T
    above, below = float((low > truth).mean()), float((high < truth).mean())
    return Coverage(1 - above - below, above, below, float((high - low).mean()))


def coverage(
    kind: Kind, *, ap: float, positives: int, prevalence: float, trials: int, resamples: int = 400
) -> tuple[Coverage, Coverage]:
    """Of our intervals, and of plain percentiles."""
    shift, rng = shift_of(kind, ap, prevalence), np.random.default_rng(0)
    examples = round(positives / prevalence)
    targets = (np.arange(examples) < positives).astype(np.int64)
    ours, plain = [], []
    for _ in range(trials):
        drawn = [
            kind.positives(shift).draw(positives, rng),
            kind.negatives.draw(examples - positives, rng),
        ]
        logits = np.concatenate(drawn)
        if kind.step:
            logits = np.round(logits / kind.step) * kind.step
        clusters = None
        if kind.clusters:  # normal: sums of parts of these variances are what was drawn before
            of = clusters_of(kind, positives, examples)
            effects = rng.normal(size=of.max() + 1)[of]
            own = logits - shift * targets
            logits = shift * targets + np.sqrt(SHARED) * effects + np.sqrt(1 - SHARED) * own
            clusters = [str(number) for number in of]
        found = resampled_ap(
            {"": logits}, targets, clusters=clusters, resamples=resamples, generator=rng
        )[""]
        ours.append(percentile_interval(found))
        plain.append(percentile_interval(found.ap))
    return covered(ours, ap), covered(plain, ap)


def clusters_of(kind: Kind, positives: int, examples: int) -> NDArray[np.int64]:
    """(examples,) the number of each one's cluster; positives come first."""
    rows = np.arange(examples)
    if kind.clusters == "pure":
        return np.where(rows < positives, rows // CLUSTER, examples + (rows - positives) // CLUSTER)
    with_positive = (rows - positives) // (CLUSTER - 1)
    return np.where(rows < positives, rows, with_positive)


def scores(
    rng: np.random.Generator, *, examples: int, positives: int, shift: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    targets = (np.arange(examples) < positives).astype(np.int64)
    return rng.normal(size=examples) + shift * targets, targets


def cost(*, examples: int, positives: int, sets: int, resamples: int) -> tuple[float, float]:
    """(seconds, MiB at the peak); memory is traced in another run, since tracing takes time."""
    rng = np.random.default_rng(0)
    logits, targets = scores(rng, examples=examples, positives=positives, shift=1.5)
    rankings = {str(i): logits + i * rng.normal(size=examples) for i in range(sets)}
    started = time.process_time()
    resampled_ap(rankings, targets, resamples=resamples, generator=rng)
    seconds = time.process_time() - started
    tracemalloc.start()
    resampled_ap(rankings, targets, resamples=min(resamples, 300), generator=rng)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak


def print_coverage(
    trials: int,
    *,
    counts: list[int],
    prevalences: list[float],
    kinds: list[str],
    aps: list[float],
) -> None:
    """A row for each number of positives, prevalence, true AP and kind of scores."""
    print(
        f"# Coverage of 95 % intervals\n\n{trials} simulated data sets a row, 400 resamples each; "
        f"{np.sqrt(0.95 * 0.05 / trials):.3f} is the standard deviation of a share of 95 %.\n"
    )
    print(
        "| data sets | positives | prevalence | scores | true AP | held | above | below | width "
        "| percentiles: held | above | below | width |"
    )
    print("|" + "---|" * 13, flush=True)
    for positives in counts:
        for prevalence in prevalences:
            for name in kinds:
                for ap in aps:
                    if ap < 1.3 * prevalence:
                        continue  # next to chance
                    rows = coverage(
                        KINDS[name],
                        ap=ap,
                        positives=positives,
                        prevalence=prevalence,
                        trials=trials,
                    )
                    cells = [
                        f"{row.held:.3f} | {row.above:.3f} | {row.below:.3f} | {row.width:.3f}"
                        for row in rows
                    ]
                    print(
                        f"| {trials} | {positives} | {prevalence} | {name} | {ap} "
                        f"| {' | '.join(cells)} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--coverage", type=int, metavar="TRIALS", help="coverage instead of cost")
    parser.add_argument("--positives", type=int, nargs="+", default=[20, 50, 200, 1000])
    parser.add_argument("--prevalence", type=float, nargs="+", default=[0.1, 0.5, 0.01])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ap", type=float, nargs="+", default=APS)
    args = parser.parse_args()
    if args.coverage:
        print_coverage(
            args.coverage,
            counts=args.positives,
            prevalences=args.prevalence,
            kinds=args.kinds,
            aps=args.ap,
        )
        return

    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"\n{args.resamples} resamples\n")
    print("| examples | positives | score sets | processor s | MiB |\n|---|---|---|---|---|")
    for examples, positives in (
        (1_000, 100),
        (10_000, 1_000),
        (100_000, 10_000),
        (100_000, 50_000),
    ):
        for sets in (1, 2, 5):
            seconds, peak = cost(
                examples=examples, positives=positives, sets=sets, resamples=args.resamples
            )
            print(f"| {examples:,} | {positives:,} | {sets} | {seconds:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
