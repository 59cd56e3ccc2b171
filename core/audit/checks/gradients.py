"""Whether the gradient is there, and whether it foretells what small steps do."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adap.core.audit.checks.judging import (
    Judged,
    change_of,
    check_of,
    correlation_of,
    refused_numbers,
    skipping,
    status_of,
)
from adap.core.audit.checks.limits import (
    AVERAGED_FURTHER,
    AVERAGED_WINS,
    BLOCKED,
    COARSE_ONE,
    CORRELATION,
    CORRELATION_COARSE,
    CORRELATION_NEARER,
    ERRORS,
    LOGIT_CHANGE,
    MOST_ROUNDING,
    MOST_ULPS,
    NEAR_ONE,
    NO_GRADIENTS,
    NOTHING,
    PARALLEL,
    ROUNDING,
    SHARED,
    SLOPE,
    SLOPE_COARSE,
    SLOPE_PART,
    TOLERANCE,
    TURNED,
    ULPS,
    UNROUNDED,
    UNSEEN,
)
from adap.core.audit.checks.parts import weakest
from adap.core.audit.checks.runs import Bench, Logits, Slopes
from adap.core.audit.network import Pixels
from adap.core.config.threats import COUNTED_NORMS, Norm
from adap.core.report import Check


def gradients(clean: Logits, bench: Bench, slopes: Slopes | None) -> Check:
    name = "gradients"
    if slopes is None:
        return skipping(name, NO_GRADIENTS)
    if not_finite := refused_numbers(name, clean):
        return not_finite
    classes = {"positives": bench.targets == 1, "negatives": bench.targets == 0}
    figures = {f"zero_{of}": float(slopes.zero[rows].mean()) for of, rows in classes.items()}
    figures |= {
        f"not_finite_{of}": float(slopes.broken[rows].mean()) for of, rows in classes.items()
    }
    blocked = max(figures, key=figures.__getitem__)
    limits = dict.fromkeys(figures, BLOCKED) | {"equal_scores": SHARED}
    figures["equal_scores"] = _equal_scores(clean, bench.images)
    kind, _, of = blocked.rpartition("_")
    if BLOCKED.status(figures[blocked]) != "pass":
        what = "exactly zero" if kind == "zero" else "NaN or infinite"
        message = (
            f"The gradients of {figures[blocked]:.0%} of the {of} are {what}, so attacks that "
            "follow them see nothing: audit the network before its sigmoid or its rounding, or "
            "trust `square` only."
        )
    elif SHARED.status(figures["equal_scores"]) != "pass":
        message = (
            f"{figures['equal_scores']:.0%} of the images have exactly the score of another image: "
            "the output is rounded, as to bfloat16 or float16, and ties rank negatives first. "
            "Audit the network before that step."
        )
    else:
        message = (
            f"The gradient is zero for {figures['zero_positives']:.1%} of the positives and "
            f"{figures['zero_negatives']:.1%} of the negatives, and "
            f"{figures['equal_scores']:.1%} of the images share their score with another."
        )
    return check_of(name, message, figures, limits)


def gradient_predicts(
    clean: Logits, slopes: Slopes | None, judged: Judged, *, norm: Norm = "linf"
) -> Check:
    """Over all images, without centring, of the size of steps that is foretold best; what rounding
    adds is taken off.

    judged: with the search that follows this gradient, `white_box`. Of a network whose rounding is
    followed straight through, the steps are those of the network without it, and its scores must
    be nearly the same.
    """
    name = "gradient_predicts"
    if slopes is None:
        return skipping(name, NO_GRADIENTS)
    if not len(slopes.predicted):
        return skipping(name, "Epsilon is 0, so there is no attack to look at.")
    searched = judged.margins("white_box")
    scored = (
        *slopes.back,
        *slopes.forth,
        slopes.unseen,
        *slopes.ends,
        slopes.averaged,
        slopes.again,
    )
    if not_finite := refused_numbers(name, clean, searched, *scored):
        return not_finite
    near, coarse = (_stepped(slopes, of) for of in (NEAR_ONE, COARSE_ONE))
    sharp = ROUNDING.status(near.rounding) == "pass"
    by_levels = not sharp or coarse.quality > near.quality
    best = coarse if by_levels else near
    correlation, slope, rounding = best.correlation, best.slope, best.rounding
    figures = {"correlation": correlation, "slope": slope, "rounding": rounding}
    path = _along_paths(slopes)
    # Coarse levels of pixels with a gradient straight through: paths are long enough for them.
    kept = path.slope - path.error
    straight = "fail" not in (SLOPE.status(kept), CORRELATION.status(path.correlation))
    limits = {"correlation": CORRELATION if sharp and not straight else CORRELATION_COARSE}
    parallel = PARALLEL.status(correlation) == "pass"  # all of it points the right way
    if not parallel:
        limits["slope"] = SLOPE_COARSE if straight else SLOPE
    limits["rounding"] = ROUNDING
    if ROUNDING.status(path.rounding) == "pass":
        unit = slope if parallel and slope > 0 else 1.0
        figures |= {
            "slope_path": path.slope / unit,
            "slope_path_high": (path.slope + ERRORS * path.error) / unit,
        }
        limits["slope_path_high"] = SLOPE
    if sharp:
        figures["unseen"] = _unseen(slopes)
        limits["unseen"] = UNSEEN
        # Near steps do nothing to pixels in levels that are followed straight through.
        if slopes.rounded is None and coarse.wrong > near.wrong / 2:
            figures["correlation_nearer"] = _nearer(near, coarse, slopes.coarser)
            limits["correlation_nearer"] = CORRELATION_NEARER
    step = COARSE_ONE if by_levels else NEAR_ONE
    part = weakest(
        slopes.places,
        slopes.by_parts[step],
        slopes.predicted[step],
        (slopes.forth[step] - slopes.back[step]) / 2,
    )
    if part is not None:
        figures |= {"slope_part": part.slope, "slope_part_high": part.high}
        limits["slope_part_high"] = SLOPE_PART
    # Of a network that draws numbers in its scores, too, `repeatable` tells.
    _, moved = change_of(slopes.starts, slopes.again, spread=float(slopes.starts.std()))
    if slopes.rounded is None and LOGIT_CHANGE.status(moved) != "fail":
        figures["turned"] = float(slopes.turned.mean())
        limits["turned"] = TURNED
    averaged = (2 * judged.targets - 1) * slopes.averaged
    figures["averaged_wins"] = float((averaged < searched - judged.real_margin).mean())
    steps, searching = dict(limits), {"averaged_wins": AVERAGED_WINS}
    if norm in COUNTED_NORMS:  # which place is found on one image is luck
        fall, found = (float((judged.margins("clean") - of).mean()) for of in (averaged, searched))
        figures["averaged_further"] = (fall - found) / fall if fall > 0 else 0.0
        searching = {"averaged_further": AVERAGED_FURTHER}
    limits |= searching
    if slopes.rounded is not None:
        figures["unrounded"] = correlation_of(slopes.rounded, slopes.starts)
        limits["unrounded"] = UNROUNDED
    if status_of(figures, steps) == "fail":  # unless arithmetic alone may do as much
        figures["rounding"] = rounding = max(rounding, _arithmetic(slopes))
    if ROUNDING.status(rounding) != "pass":
        message = (
            f"{rounding:.0%} of what small steps do to the scores is their rounding, as to "
            "bfloat16 or float16 (or to float32, where scores are nearly all alike), so nothing "
            "tells whether the gradient foretells the rest: audit the network before that step."
        )
        return check_of(name, message, figures, {"rounding": ROUNDING, **searching})
    message = (
        f"What the gradient foretells of small random steps correlates {correlation:.3f} with what "
        f"they do, and is {slope:.2f} of it"
    )
    if "slope_path" in figures:
        along = figures["slope_path"]
        message += f", along paths of half of epsilon (three levels at least) {along:.2f} of it"
    message += (
        "; one step along the gradient averaged over noise is clearly stronger than the search on "
        f"{figures['averaged_wins']:.0%} of the images"
    )
    if "averaged_further" in figures:
        further = figures["averaged_further"]
        more = "more" if further > 0 else "less"
        message += f", and does {abs(further):.0%} {more} damage on the whole"
    if slopes.rounded is not None:
        message += (
            "; the network rounds and is followed straight through, so these are steps of the "
            f"network without its rounding, whose scores correlate {figures['unrounded']:.3f} with "
            "its own"
        )
    if part is not None and SLOPE_PART.status(part.high) != "pass":
        message += f"; of what {part.name} alone foretell, {part.slope:.2f} happens"
    if "turned" in figures and TURNED.status(figures["turned"]) != "pass":
        message += (
            f"; asked twice, it turns by {figures['turned']:.0%} of its length, as if noise were "
            "added"
        )
    if status_of(figures, limits) == "pass":
        message += "."
    elif status_of(figures, steps) == "pass":
        message += (
            ": within epsilon the gradient turns faster than a search follows it, as fast terms or "
            "a very rough network make it do. Give the attack more steps, or trust `square` with "
            "many queries."
        )
    else:
        message += (
            ": part of the network is hidden from its gradient (rounded, detached, or drowned by "
            "fast terms), so attacks that follow it find less than there is. Audit the network "
            "without that part, or trust `square` with many queries."
        )
    return check_of(name, message, figures, limits)


@dataclass(frozen=True)
class _Foretold:
    """Of steps: correlation and slope of what is foretold with what happens, not centred, the error
    of that slope, and the share of what happens that is rounding, which is taken off them."""

    correlation: float
    slope: float
    error: float
    rounding: float

    @property
    def quality(self) -> float:
        """The lower of the two; a gradient that promises too much is no hidden one."""
        return min(self.correlation, self.slope)

    @property
    def wrong(self) -> float:
        """Share of what is foretold that does not happen."""
        return 1 - max(self.correlation, 0) ** 2


def _stepped(slopes: Slopes, of: int) -> _Foretold:
    back, forth = slopes.back[of], slopes.forth[of]
    return _foretold(slopes.predicted[of], (forth - back) / 2, _rounding(back, forth))


def _nearer(near: _Foretold, coarse: _Foretold, coarser: float) -> float:
    """The correlation at no step at all: of a network that bends here and there the share that is
    wrong falls with the step, of the deepest at least as its fourth root."""
    if coarser <= 1:
        return near.correlation
    wrong = near.wrong - max(coarse.wrong - near.wrong, 0) / (coarser**0.25 - 1)
    return float(np.sqrt(1 - min(max(wrong, 0), 1)))


def _along_paths(slopes: Slopes) -> _Foretold:
    """Rounding doubles where a difference is not halved."""
    rounded = 4 * _rounding(slopes.back[0], slopes.forth[0], *slopes.ends)
    return _foretold(slopes.promised, slopes.ends - slopes.starts, rounded)


def _arithmetic(slopes: Slopes) -> float:
    """Share of what steps of a whole level do that the arithmetic of float32 may have done."""
    back, forth = slopes.back[COARSE_ONE], slopes.forth[COARSE_ONE]
    rounded = _rounding(back, forth, ulps=MOST_ULPS)
    return _foretold(slopes.predicted[COARSE_ONE], (forth - back) / 2, rounded).rounding


def _foretold(
    predicted: NDArray[np.float64], seen: NDArray[np.float64], rounded: float
) -> _Foretold:
    """predicted, seen: (..., n).  rounded: mean square of what rounding does to a change."""
    predicted = np.where(np.isfinite(predicted), predicted, 0)
    # In units of the largest, so that no square leaves float64.
    unit = max(float(np.abs(seen).max()), float(np.abs(predicted).max()))
    if unit == 0:  # no step changes a score, and none is foretold to
        return _Foretold(1.0, 1.0, 0.0, 0.0)
    n = predicted.shape[-1]
    predicted, seen = (values.reshape(-1, n) / unit for values in (predicted, seen))
    together, happened = (predicted * seen).mean(axis=0), np.square(seen).mean(axis=0)
    foretold = float(np.square(predicted).mean())
    share = min(rounded / unit**2 / max(float(happened.mean()), NOTHING), 1.0)
    kept = 1 - min(share, MOST_ROUNDING)
    real = max(float(happened.mean()) * kept, NOTHING)
    slope = float(together.mean()) / real
    correlation = float(together.mean()) / float(np.sqrt(real * max(foretold, NOTHING)))
    # With each image left out in turn (the jackknife): one that crosses a gate is an error, too.
    others = [(of.sum() - of) for of in (together, happened)]
    without = others[0] / np.maximum(others[1] * kept, NOTHING)
    error = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return _Foretold(float(np.clip(correlation, -1, 1)), slope, error, float(share))


def _unseen(slopes: Slopes) -> float:
    """Share of the mean square change by a near step that pixels without gradient make."""
    whole = np.square(slopes.forth[NEAR_ONE] - slopes.back[NEAR_ONE]).mean() / 4
    unseen = np.square(slopes.unseen - slopes.starts).mean()
    return float(unseen / whole) if whole > 0 else float(unseen > 0)


def _rounding(*logits: NDArray[np.float64], ulps: int = ULPS) -> float:
    """Mean square error of half a difference of two logits by their rounding to 16 bits or to
    multiples of one step, or, if they are of float32, by its arithmetic."""
    values = np.concatenate([of.ravel() for of in logits])
    steps = [_step(values, kind) for kind in (torch.bfloat16, torch.float16)]
    if (single := _step(values, torch.float32)) is not None:
        steps.append(ulps * single)
    distinct = np.unique(values)
    if len(distinct) > 1:
        step = np.diff(distinct).min()
        multiples = distinct / step
        if np.abs(multiples - multiples.round()).max() < TOLERANCE:
            steps.append(np.full(1, step))
    # A rounding error is uniform within half a step, of variance step^2 / 12; two are halved.
    return max(
        (float(np.square(step).mean() / 24) for step in steps if step is not None), default=0
    )


def _step(logits: NDArray[np.float64], kind: torch.dtype) -> NDArray[np.float64] | None:
    """From each logit to the next that this type holds; None where it does not hold them all."""
    exact = torch.tensor(logits)
    rounded = exact.to(kind)
    if not (rounded.double() == exact).all():
        return None
    step = torch.nextafter(rounded.abs(), torch.full_like(rounded, torch.inf)) - rounded.abs()
    return step.double().numpy()


def _equal_scores(logits: Logits, images: Pixels) -> float:
    """Share of the distinct images whose logit is also that of another one."""
    distinct = {image.tobytes(): logit for image, logit in zip(images, logits, strict=True)}
    counts = Counter(distinct.values())
    return sum(count for count in counts.values() if count > 1) / len(distinct)
