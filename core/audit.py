"""How much average precision is left: attack in shards, join the scores, draw the figures.

    refuse_unrankable        once a task, before any attack: can these be judged at all?
    attack_shard             a worker's piece: logits of its examples, clean and under attacks
    certify_sample           once a task: would bounds prove anything of this network?
    certify_shard            the examples of a shard: bounds that no attack can break
    combine, join            what was measured piece by piece, as the scores of one task
    resample, figures        numbers from scores; nothing is attacked again
    build_report             the figures of all tasks, and what a reader must know

A scorer maps (B, C, H, W) floats in [0, 1] to (B,) logits of the positive class. It is handed over
on its device; this module puts it into eval mode while it works and leaves it as it was. Scores of
an example depend on the seed, the shard and the place in it, never on who computed them or when.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core import thresholds
from core.acceleration import PROBES, accelerate
from core.attacks.base import attacking
from core.attacks.registry import build_attack
from core.attacks.threat_model import ThreatModel
from core.attacks.worst_case import worst_case
from core.budget import budget_curve
from core.certify.bounds import Method, certified_bounds
from core.config import (
    CURVE_ATTACK,
    APGDAttack,
    Attack,
    AuditConfig,
    PGDAttack,
    SquareAttack,
    Threat,
    TransferAttack,
)
from core.errors import ConfigError, DataError, ModelError
from core.figures import operating_figures
from core.groups import group_figures
from core.intervals import RESAMPLES, percentile_interval, resampled_ap
from core.ranking import average_precision, count_ties, floor_ap
from core.report import (
    APFigure,
    AttackFigure,
    CertifiedFloor,
    Difference,
    EpsilonCurve,
    EpsilonPoint,
    Provenance,
    Report,
    TaskReport,
    Trust,
    WorstCase,
)
from core.scores import Evidence, Scores
from core.scoring import as_input, generator_of, logits_of, loss_of

USES_GRADIENTS = frozenset({"fgsm", "pgd", "apgd"})  # of the audited model itself
EVIDENCE = 12  # positives whose pictures are kept
FEW_POSITIVES = 50
BALANCED = 0.3  # prevalence above which the data set is more balanced than most that are ranked
CERTIFIED_SIDE = 64  # pixels; larger images are bounded on request only
RESAMPLING_SEED = 0


def refuse_unrankable(
    scorer: nn.Module,
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
) -> None:
    """Refuse, at the price of one batch, what would make every figure of an audit meaningless.

    images: (N, C, H, W), all the examples; `batch_size` of them, evenly spread, are scored.
    Raises DataError for fewer than two positives or negatives, ModelError for outputs that are
    of the wrong shape, not finite, or all the same.
    """
    positives = int(targets.sum())
    if min(positives, len(targets) - positives) < 2:
        raise DataError(
            f"expected at least 2 positives and 2 negatives, got {positives} positives and "
            f"{len(targets) - positives} negatives"
        )
    spread = np.unique(np.linspace(0, len(images) - 1, batch_size, dtype=np.int64))
    sample = images[spread]
    with attacking(scorer):
        logits = _score(scorer, as_input(sample, device))
    if (sample != sample[0]).any():
        _refuse_constant(logits)


def attack_shard(
    scorer: nn.Module,
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    surrogate: nn.Module | None,
    seed: int,
    shard: int,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
    clean: NDArray[np.float64] | None = None,
    evidence: int = EVIDENCE,
) -> Scores:
    """Attack every example of a shard with every attack.

    images: (n, C, H, W) uint8.  targets: (n,) in {0, 1}.  attacks: one of each key at most.
    surrogate: the attacker's own scorer, needed by the transfer attack.
    clean: the clean logits, where they are known; otherwise they are computed first.
    on_progress: told after each batch how many images are done, the clean pass and every attack
    counted: n * (1 + len(attacks)) in the end. What it raises ends the work.
    evidence: how many of the most damaged positives are kept, by the fall of their logit.

    Attacks ascend -(2y - 1) * logit, which unlike cross-entropy never saturates, unless their
    configuration asks for that. What an attack returns is scored anew, without gradients. Memory
    is bounded by the batch.

    Raises ConfigError for a transfer attack without surrogate, ModelError for logits of the wrong
    shape or not finite.
    """
    if surrogate is None and any(isinstance(attack, TransferAttack) for attack in attacks):
        raise ConfigError("the transfer attack needs a surrogate model, got none")
    threat_model = ThreatModel(threat.norm, threat.epsilon)
    attacked: dict[str, NDArray[np.float64]] = {
        attack.key: np.empty(len(images)) for attack in attacks
    }
    kept: list[Evidence] = []
    done = 0

    with attacking(scorer), attacking(surrogate if surrogate is not None else nn.Identity()):
        if clean is None:
            # All clean scores first: a model that gives NaN is refused before any attack.
            clean = np.empty(len(images))
            for rows in _batches(len(images), batch_size):
                clean[rows] = _score(scorer, as_input(images[rows], device))
                on_progress(done := rows.stop)
        # Only the search runs on what is cheaper: every score is the scorer's own.
        searched = {
            attack.key: accelerate(
                _network(attack, scorer, surrogate),
                as_input(images[:PROBES], device),
                passes=len(images) * _passes(attack),
            )
            for attack in attacks
        }
        for batch, rows in enumerate(_batches(len(images), batch_size)):
            x = as_input(images[rows], device)
            positives = np.flatnonzero(targets[rows])
            pictures = {"clean": x[positives]}
            for attack in attacks:
                x_adv = build_attack(attack, threat).perturb(
                    loss_of(attack, partial(_logits, searched[attack.key]), targets[rows], device),
                    x,
                    threat_model=threat_model,
                    generator=generator_of(seed, shard, batch, attack.name),
                )
                attacked[attack.key][rows] = _score(scorer, x_adv)
                pictures[attack.key] = x_adv[positives]
                on_progress(done := done + len(x))
            here = np.arange(rows.start, rows.stop)[positives]
            logits = {key: scored[here] for key, scored in attacked.items()}
            ids = [example_ids[i] for i in here]
            if attacks:
                kept += _most_damaged(
                    pictures, clean[here], logits, example_ids=ids, count=evidence
                )
            kept.sort(key=_damage, reverse=True)
            del kept[evidence:]
    return Scores(
        example_ids=list(example_ids),
        targets=targets.astype(np.int64),
        clean=clean,
        attacked=attacked,
        evidence=kept,
    )


def certify_sample(
    scorer: nn.Module,
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    threat: Threat,
    device: torch.device,
) -> Scores:
    """Some images of a task with bounds on their logits, or the reason why `auto` bounds none.

    Bounds by crown_ibp are worth their price where the order of any two of these is proven.

    images: (n, C, H, W) uint8.  targets: (n,) in {0, 1}.
    """
    with attacking(scorer):
        clean = _score(scorer, as_input(images, device))
    sample = Scores(
        example_ids=list(example_ids), targets=targets.astype(np.int64), clean=clean, attacked={}
    )
    if max(images.shape[2:]) > CERTIFIED_SIDE:
        return replace(
            sample,
            no_bounds=f"Images larger than {CERTIFIED_SIDE}x{CERTIFIED_SIDE} pixels are bounded "
            "only on request, as it takes seconds an image: ask for certify crown_ibp.",
        )
    sample = certify_shard(
        scorer,
        sample,
        images,
        threat=threat,
        method="crown_ibp",
        batch_size=len(images),
        device=device,
        on_progress=lambda _: None,
    )
    if sample.bounds is None:
        return sample
    (lo, hi), positive = sample.bounds, targets == 1
    if lo[positive].max(initial=-np.inf) > hi[~positive].min(initial=np.inf):
        return sample
    return replace(
        sample,
        no_bounds=f"Bounds by crown_ibp prove the order of no two of {len(lo)} sampled images: "
        "they say nothing about this network at this epsilon.",
    )


def certify_shard(
    scorer: nn.Module,
    shard: Scores,
    images: NDArray[np.uint8],
    *,
    threat: Threat,
    method: Method,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
) -> Scores:
    """The shard with bounds on every logit, or with the reason why there are none.

    images: the shard's own.
    on_progress: told after each batch how many of the shard's images are done.
    """
    threat_model = ThreatModel(threat.norm, threat.epsilon)
    found = np.empty((2, len(images)))
    with attacking(scorer):
        try:
            for rows in _batches(len(images), batch_size):
                lo, hi = certified_bounds(
                    scorer, as_input(images[rows], device), threat=threat_model, method=method
                )
                found[:, rows] = lo.cpu().numpy(), hi.cpu().numpy()
                on_progress(rows.stop)
        except ModelError as error:
            return replace(shard, no_bounds=f"This network cannot be bounded: {error}.")
    return replace(shard, bounds=found)


def combine(
    clean: Scores,
    *,
    attacked: Mapping[str, Scores],
    curve: Mapping[float, Scores],
    bounds: Scores | None,
    groups: Sequence[str] | None,
) -> Scores:
    """What was measured of the same examples one by one, side by side.

    attacked, curve: each with the scores of a single attack, whose own key does not matter.
    Evidence is kept where the attack that made it is the strongest on that example.
    """
    logits = {key: _only(part) for key, part in attacked.items()}
    row = {example_id: i for i, example_id in enumerate(clean.example_ids)}
    evidence = [
        replace(item, attack=key)
        for key, part in attacked.items()
        for item in part.evidence
        if item.attacked_logit <= min(other[row[item.example_id]] for other in logits.values())
    ]
    return replace(
        clean,
        attacked=logits,
        curve={epsilon: _only(part) for epsilon, part in curve.items()},
        bounds=None if bounds is None else bounds.bounds,
        no_bounds=None if bounds is None else bounds.no_bounds,
        groups=groups,
        evidence=list({item.example_id: item for item in evidence}.values()),
    )


def _only(part: Scores) -> NDArray[np.float64]:
    (logits,) = part.attacked.values()
    return logits


def join(shards: Sequence[Scores], *, evidence: int = EVIDENCE) -> Scores:
    """The shards' scores as one, in the order given.

    A shard knows its own examples only, so it chose evidence by the fall of the logit; here the
    whole ranking is known, and the positives that lost most ranks are kept.

    Raises DataError for shards of different attacks or with an example twice, ModelError for a
    model that gave every clean example the same logit.
    """
    names, epsilons = list(shards[0].attacked), list(shards[0].curve)
    for other in shards:
        if list(other.attacked) != names or list(other.curve) != epsilons:
            raise DataError(
                f"expected shards with scores under {names} and {epsilons}, "
                f"got {list(other.attacked)} and {list(other.curve)}"
            )
    unbounded = [shard for shard in shards if shard.bounds is None]
    joined = Scores(
        example_ids=[example_id for shard in shards for example_id in shard.example_ids],
        targets=np.concatenate([shard.targets for shard in shards]),
        clean=np.concatenate([shard.clean for shard in shards]),
        attacked={name: np.concatenate([s.attacked[name] for s in shards]) for name in names},
        curve={epsilon: np.concatenate([s.curve[epsilon] for s in shards]) for epsilon in epsilons},
        bounds=(
            None
            if unbounded
            else np.concatenate([s.bounds for s in shards if s.bounds is not None], axis=1)
        ),
        no_bounds=unbounded[0].no_bounds if unbounded else None,
        groups=(
            None
            if shards[0].groups is None
            else [name for shard in shards for name in shard.groups or []]
        ),
    )
    if len(set(joined.example_ids)) < len(joined):
        raise DataError(
            f"expected every example once, got {len(joined)} scores for "
            f"{len(set(joined.example_ids))} examples"
        )
    _refuse_constant(joined.clean)
    row = {example_id: i for i, example_id in enumerate(joined.example_ids)}
    lost = _ranks(worst_case(joined)[0], joined.targets) - _ranks(joined.clean, joined.targets)
    found = [item for shard in shards for item in shard.evidence]
    found.sort(key=lambda item: (-lost[row[item.example_id]], item.example_id))
    return replace(joined, evidence=found[:evidence])


# --- figures --------------------------------------------------------------------------------------


def rankings(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """(N,) logits behind every AP of a task, by name: clean, worst_case, certified_floor, each
    attack's key, and each epsilon of the curve as text."""
    named = {"clean": scores.clean, **scores.attacked, "worst_case": worst_case(scores)[0]}
    named |= {f"epsilon {epsilon:g}": logits for epsilon, logits in scores.curve.items()}
    if scores.bounds is not None:
        # in float64, so an attacked float32 logit may lie beyond by its rounding
        lo, hi = scores.bounds
        named["certified_floor"] = np.where(scores.targets == 1, lo, hi)
    return named


def resample(
    scores: Scores, *, resamples: int = RESAMPLES, seed: int = RESAMPLING_SEED
) -> dict[str, NDArray[np.float64]]:
    """(resamples,) bootstrapped APs of every ranking of a task.

    The seed is no part of an audit's configuration: two audits of the same examples see the same
    resamples, so that their difference is paired.
    """
    return resampled_ap(
        rankings(scores),
        scores.targets,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )


def figures(
    scores: Scores,
    *,
    positive: Sequence[str],
    config: AuditConfig,
    resampled: Mapping[str, NDArray[np.float64]] | None = None,
) -> TaskReport:
    """The figures of one task. AP ranks negatives first in ties, so it is a lower bound.

    positive: the names of the positive classes.  config: of the audit; its attacks are shown in
    its order.  resampled: as from `resample`, where it is known already.
    """
    attacks = config.resolved_attacks()
    if {attack.key for attack in attacks} != set(scores.attacked):
        raise DataError(
            f"expected scores under {sorted(attack.key for attack in attacks)}, "
            f"got {sorted(scores.attacked)}"
        )
    targets, signs = scores.targets, 2 * scores.targets - 1
    positives = int(targets.sum())
    worst, won = worst_case(scores)
    logits = rankings(scores)
    resampled = resample(scores) if resampled is None else resampled

    def figure(name: str) -> APFigure:
        return APFigure(
            ap=average_precision(logits[name], targets),
            interval=percentile_interval(resampled[name]),
            tied=count_ties(logits[name], targets),
        )

    clean, worst_figure = figure("clean"), figure("worst_case")

    def drop(name: str, ap: float) -> Difference:
        return Difference(
            value=clean.ap - ap,
            interval=percentile_interval(resampled["clean"] - resampled[name]),
        )

    def attack_figure(attack: Attack) -> AttackFigure:
        found = figure(attack.key)
        return AttackFigure(
            **dict(found),
            attack=attack.as_json(),
            mean_margin_drop=float((signs * (scores.clean - scores.attacked[attack.key])).mean()),
            drop=drop(attack.key, found.ap),
        )

    certified = None
    if scores.bounds is not None:
        lo, hi = scores.bounds
        certified = CertifiedFloor(
            **dict(figure("certified_floor")),
            method="crown_ibp" if config.certify in ("auto", "off") else config.certify,
            proven_pairs=_proven_pairs(lo[targets == 1], hi[targets == 0]),
        )
    return TaskReport(
        positive=list(positive),
        examples=len(scores),
        positives=positives,
        prevalence=positives / len(scores),
        chance=positives / len(scores),
        floor=floor_ap(positives, len(scores)),
        clean=clean,
        attacks={attack.key: attack_figure(attack) for attack in attacks},
        worst_case=WorstCase(
            **dict(worst_figure), won=won, drop=drop("worst_case", worst_figure.ap)
        ),
        certified_floor=certified,
        no_certified_floor=scores.no_bounds,
        epsilon_curve=(
            EpsilonCurve(
                attack=CURVE_ATTACK.as_json(),
                points=[
                    EpsilonPoint(**dict(figure(f"epsilon {epsilon:g}")), epsilon=epsilon)
                    for epsilon in scores.curve
                ],
            )
            if scores.curve
            else None
        ),
        budget_curve=budget_curve(scores.clean, worst, targets, budgets=config.budgets),
        groups=(
            None
            if scores.groups is None
            else group_figures(
                scores.clean,
                worst,
                targets,
                scores.groups,
                resamples=len(resampled["clean"]),
                generator=np.random.default_rng(RESAMPLING_SEED),
            )
        ),
        resamples=len(resampled["clean"]),
        operating=operating_figures(scores.clean, worst, targets, at=config.operating),
    )


def _proven_pairs(lo: NDArray[np.float64], hi: NDArray[np.float64]) -> float:
    """Share of the pairs in which the positive's lowest logit is above the negative's highest."""
    return float(np.searchsorted(np.sort(hi), lo, side="left").sum() / (len(lo) * len(hi)))


def build_report(
    tasks: Sequence[TaskReport],
    *,
    config: AuditConfig,
    provenance: Provenance,
    trained_on_these: bool,
    trust: Trust | None = None,
) -> Report:
    """The report of an audit: the figures of its tasks, their means, and what a reader must know.

    trained_on_these: whether the model has seen these very examples while it was trained.
    """
    means = {
        "clean": [task.clean.ap for task in tasks],
        "worst_case": [task.worst_case.ap for task in tasks],
        **{key: [task.attacks[key].ap for task in tasks] for key in tasks[0].attacks},
    }
    certified = [task.certified_floor.ap for task in tasks if task.certified_floor is not None]
    if len(certified) == len(tasks):
        means["certified_floor"] = certified
    warnings = []
    if trained_on_these:
        warnings.append(
            "The model was trained on these very examples: the figures say how well it remembers "
            "them, not how well it ranks new ones."
        )
    if config.threat.epsilon == 0:
        warnings.append("Epsilon is 0: no pixel may change, so every figure equals the clean one.")
    for task in tasks:
        who = f"{', '.join(task.positive)}: " if len(tasks) > 1 else ""
        warnings += [who + warning for warning in _warnings(task, config.threat)]
    report = Report(
        tasks=list(tasks),
        mean={name: float(np.mean(values)) for name, values in means.items()},
        warnings=warnings,
        trust=trust,
        provenance=provenance,
    )
    return report.model_copy(update={"thresholds": thresholds.evaluate(report)})


def _warnings(task: TaskReport, threat: Threat) -> list[str]:
    white_box = {n: f.ap for n, f in task.attacks.items() if f.attack["name"] in USES_GRADIENTS}
    others = {n: f.ap for n, f in task.attacks.items() if n not in white_box}
    warnings = []
    if threat.epsilon > 0 and all(figure.mean_margin_drop <= 0 for figure in task.attacks.values()):
        warnings.append(
            "No attack lowered the margins at all. That is a sign of blocked gradients, "
            "not of a robust model."
        )
    if task.positives < FEW_POSITIVES:
        clean, worst = task.clean.interval, task.worst_case.interval
        assert clean is not None
        assert worst is not None
        warnings.append(
            f"Only {task.positives} positives, so the figures are uncertain: {clean.level:.0%} "
            f"intervals {clean.low:.2f} to {clean.high:.2f} (clean) and {worst.low:.2f} to "
            f"{worst.high:.2f} (worst case). Intervals from few positives tend to be too narrow."
        )
    if task.clean.tied:
        warnings.append(
            f"{task.clean.tied} of {task.positives} positives have exactly the score of "
            "some negative before any attack, and are ranked below it. Saturated or rounded "
            "outputs tie what raw logits keep apart."
        )
    if task.clean.ap <= task.chance:
        warnings.append(
            f"The model ranks clean images no better than chance (AP {task.clean.ap:.3f}, "
            f"chance {task.chance:.3f})."
        )
    if task.prevalence > BALANCED:
        warnings.append(
            f"{task.prevalence:.0%} of the examples are positive. AP falls with the share "
            "of positives: expect less where they are rarer."
        )
    if threat.epsilon > 0 and task.worst_case.ap - task.floor < 0.01 * (1 - task.floor):
        warnings.append(
            f"The attacks inverted the ranking, worst-case AP {task.worst_case.ap:.3f} is "
            f"at its floor {task.floor:.3f}. A smaller epsilon tells models apart."
        )
    if white_box and others:
        strongest = min(others, key=others.__getitem__)
        if others[strongest] < min(white_box.values()) - 0.01:
            warnings.append(
                f"{strongest}, which does not see the model's gradients, did more damage (AP "
                f"{others[strongest]:.3f}) than every attack that does "
                f"({min(white_box.values()):.3f}). The gradients mislead those attacks, so the "
                "robust figures may be too high."
            )
    return warnings


# --- helpers --------------------------------------------------------------------------------------


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _logits(scorer: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = scorer(x)
    if logits.shape != (len(x),):
        raise ModelError(
            f"expected one logit an image, shape ({len(x)},), got {tuple(logits.shape)}"
        )
    return logits


def _score(scorer: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """(B,) float64 logits, computed without gradients. Raises ModelError unless all are finite."""
    logits = logits_of(partial(_logits, scorer), x)
    broken = int((~np.isfinite(logits)).sum())
    if broken:
        raise ModelError(
            f"expected finite logits, got NaN or infinity on {broken} of {len(x)} images"
        )
    return logits


def _network(attack: Attack, scorer: nn.Module, surrogate: nn.Module | None) -> nn.Module:
    """Whose gradients an attack follows."""
    if not isinstance(attack, TransferAttack):
        return scorer
    assert surrogate is not None
    return surrogate


def _passes(attack: Attack) -> int:
    """How often an attack shows each image to the network that it follows, about."""
    match attack:
        case PGDAttack() | APGDAttack():
            return attack.restarts * attack.steps
        case SquareAttack():
            return attack.queries
        case TransferAttack():
            return attack.steps
        case _:
            return 1


def _most_damaged(
    pictures: Mapping[str, Tensor],
    clean: NDArray[np.float64],
    attacked: Mapping[str, NDArray[np.float64]],
    *,
    example_ids: Sequence[str],
    count: int,
) -> list[Evidence]:
    """Of some positives those whose logit fell most, each with the attack that hurt it most."""
    names = list(attacked)
    logits = np.stack([attacked[name] for name in names])  # (attacks, P)
    drop = clean - logits.min(axis=0)
    found = []
    for i in np.argsort(-drop, kind="stable")[:count]:
        if drop[i] > 0:
            attack = names[logits[:, i].argmin()]
            found.append(
                Evidence(
                    example_id=example_ids[i],
                    attack=attack,
                    clean_logit=float(clean[i]),
                    attacked_logit=float(logits[:, i].min()),
                    clean=pictures["clean"][i].cpu().numpy(),
                    attacked=pictures[attack][i].cpu().numpy(),
                )
            )
    return found


def _damage(item: Evidence) -> float:
    return item.clean_logit - item.attacked_logit


def _ranks(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) rank of each example, from 1, behind every negative of the same logit."""
    order, negatives = np.sort(logits), np.sort(logits[targets == 0])
    above = len(order) - np.searchsorted(order, logits, side="right")
    tied = np.searchsorted(negatives, logits, "right") - np.searchsorted(negatives, logits, "left")
    return (1 + above + tied).astype(np.int64)


def _refuse_constant(logits: NDArray[np.float64]) -> None:
    if (logits == logits[0]).all():
        raise ModelError(
            f"expected logits that rank, got {logits[0]:g} for every one of {len(logits)} images"
        )
