"""Can an audit be believed? Questions asked of the audit itself, each answered by figures.

An attack that fails says one of two things: the model is robust, or the attack cannot see. These
checks tell which, on a small sample of the audited images. They follow Carlini et al., "On
evaluating adversarial robustness" (2019), Athalye, Carlini & Wagner, "Obfuscated gradients give a
false sense of security" (ICML 2018), Croce & Hein, "Reliable evaluation of adversarial robustness"
(ICML 2020) and Tramer et al., "On adaptive attacks to adversarial example defenses" (2020);
`docs/trust.md` says which check is whose, and what each has caught.

    planned_passes  what the checks of a task will cost, before they run
    check_audit     one task's checks
    merge           the checks of all tasks, and the verdict (`verdicts`)

They find what blinds an attack by accident or by a known trick. They prove nothing: a defence made
against these very checks may pass them, and the certified floor alone would notice.

Cost, in forward passes of each sampled image: up to 497 (`full`, at most 128 positives and 128
negatives; 265 of them are followed by a backward pass) or 143 (`quick`, at most 48 and 48; 79), and
22 or 12 more with a surrogate. A data set's size changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.audit.checks.gradients import gradient_predicts, gradients
from adap.core.audit.checks.judging import Judged, fuzzy
from adap.core.audit.checks.planned import (
    DEPTHS,
    examined_attack,
    passes_of_image,
    plan_runs,
)
from adap.core.audit.checks.runs import Bench, Logits, box_epsilon, sample_rows
from adap.core.audit.checks.scoring import batch_independent, repeatable
from adap.core.audit.checks.searches import (
    black_box_weaker,
    converged,
    monotone,
    noise_weaker,
    reaches_floor,
    restarts,
)
from adap.core.audit.checks.units import eight_bit, units
from adap.core.audit.drawing import mean_of
from adap.core.audit.network import Pixels
from adap.core.config.attacks import Attack
from adap.core.config.threats import Threat
from adap.core.precision import float32_products
from adap.core.report import Check


def planned_passes(
    targets: NDArray[np.int64],
    *,
    threat: Threat,
    attacks: Sequence[Attack],
    level: Literal["quick", "full"],
    surrogate: bool,
    has_gradients: bool = True,
    draws: int = 1,
) -> int:
    """What `on_progress` of `check_audit` will have been told in the end: forward passes of single
    images, the surrogate's included; each counts for as many as the draws behind a score."""
    each = passes_of_image(threat, attacks, level, surrogate=surrogate, gradients=has_gradients)
    return draws * each.forward * len(sample_rows(targets, DEPTHS[level].images))


@float32_products("float32")
def check_audit(
    scorer: nn.Module,
    images: Pixels,
    targets: NDArray[np.int64],
    *,
    threat: Threat,
    attacks: Sequence[Attack],
    level: Literal["quick", "full"],
    surrogate: nn.Module | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
    has_gradients: bool = True,
    draws: int = 1,
) -> list[Check]:
    """Every check of one task, in a fixed order, on a sample spread evenly over each class.

    scorer, surrogate: (B, C, H, W) floats in [0, 1] -> (B,) logits, on the device.
    images: (N, C, H, W), may be a memory map: only the sample is read.  targets: (N,) in
    {0, 1}, both present.  attacks: those of the audit; the strongest that follows gradients is the
    one examined, cut to one restart and the level's steps (if it has converged by then, it
    has with more).
    has_gradients: whether the scorer lets any through; a function that does not is checked by what
    needs none, and the other checks are skipped.
    draws: behind each score and gradient of a scorer that draws random numbers.
    on_progress: told after each batch how much of `planned_passes` is done. What it raises ends
    the work.

    A scorer that gives NaN or infinity fails the checks in which it does. One that draws random
    numbers, or lets images influence each other, makes the other figures fuzzy: they say so.
    """
    depth = DEPTHS[level]
    scorer = mean_of(scorer, draws)
    rows = sample_rows(targets, depth.images)
    bench = Bench(
        images=images[rows].copy(),
        targets=targets[rows].astype(np.int64),
        seed=seed,
        batch_size=batch_size,
        device=device,
        on_progress=lambda passes: on_progress(draws * passes),
    )
    box = box_epsilon(threat, bench.images)
    runs = plan_runs(
        threat,
        attacks,
        depth,
        surrogate=surrogate is not None,
        box=box,
        gradients=has_gradients,
    )
    with attacking(scorer), attacking(surrogate if surrogate is not None else nn.Identity()):
        clean = bench.score(scorer)
        again, shuffled = bench.score(scorer, draws="again"), bench.score_shuffled(scorer)
        alone = bench.score_alone(scorer, draws="alone")
        alone_again = bench.score_alone(scorer, draws="alone again")
        slopes = None
        if has_gradients:
            slopes = bench.gradients(scorer, examined_attack(attacks), threat)
        found: dict[str, Logits] = {}
        helped: torch.Tensor | None = None
        for name, run in runs.items():
            network = surrogate if run.on_surrogate and surrogate is not None else scorer
            from_others = helped if run.borrowed else None
            found[name], stored = bench.attack(scorer, run, network=network, helped=from_others)
            if name == "white_box":
                found["eight_bit"] = bench.score(scorer, stored)
                with np.errstate(invalid="ignore"):
                    fallen = (2 * bench.targets - 1) * (clean - found[name])
                # infinite logits say nothing here; the checks name them
                helped = bench.helped(stored, np.where(np.isfinite(fallen), fallen, 0))

    repeats = repeatable(clean, again, alone, alone_again, draws=draws)
    independent = batch_independent(clean, repeats, shuffled=shuffled, alone=alone)
    judged = Judged(bench.targets, clean, found)
    checks = [
        units(threat, bench.images, box=box),
        converged(judged, attacks, runs),
        restarts(judged, attacks),
        reaches_floor(judged),
        noise_weaker(judged),
        black_box_weaker(judged, level, threat.norm),
        monotone(judged, threat),
        gradients(clean, bench, slopes),
        gradient_predicts(clean, slopes, judged, norm=threat.norm),
        repeats,
        independent,
        eight_bit(judged, threat),
    ]
    if any(check.status in ("caution", "fail") for check in (repeats, independent)):
        checks = [fuzzy(check) for check in checks]
    return checks
