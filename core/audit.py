"""How much average precision is left: attack in shards, join the scores, draw the figures.

    refuse_unrankable      once an audit, before any attack: can these be judged at all?
    attack_shard           a worker's piece: logits of its examples, clean and under each attack
    join                   the pieces as one, with the most damaging examples of all
    figures, build_report  numbers from scores; nothing is attacked again

A scorer maps (B, C, H, W) floats in [0, 1] to (B,) logits of the positive class. It is handed over
on its device; this module puts it into eval mode while it works and leaves it as it was. Scores of
an example depend on the seed, the shard and the place in it, never on who computed them or when.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.attacks.base import LossFn, attacking
from core.attacks.registry import build_attack
from core.attacks.threat_model import ThreatModel
from core.attacks.worst_case import worst_case
from core.config import Attack, OperatingPoint, Threat, TransferAttack
from core.errors import ConfigError, DataError, ModelError
from core.figures import operating_figures
from core.intervals import RESAMPLES, percentile_interval, resampled_ap
from core.ranking import average_precision, count_ties, floor_ap
from core.report import (
    APFigure,
    AttackFigure,
    Difference,
    Provenance,
    Report,
    TaskReport,
    WorstCase,
)
from core.scores import Evidence, Scores

USES_GRADIENTS = frozenset({"fgsm", "pgd", "apgd"})  # of the audited model itself
FEW_POSITIVES = 50
BALANCED = 0.3  # prevalence above which the data set is more balanced than most that are ranked


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
        logits = _score(scorer, _as_input(sample, device))
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
    evidence: int = 12,
) -> Scores:
    """Attack every example of a shard with every attack.

    images: (n, C, H, W) uint8.  targets: (n,) in {0, 1}.  attacks: one of each name at most.
    surrogate: the attacker's own scorer, needed by the transfer attack.
    on_progress: told after each batch how many images are done, the clean pass and every attack
    counted: n * (1 + len(attacks)) in the end. What it raises ends the work.
    evidence: how many of the most damaged positives are kept, by the fall of their logit.

    Attacks ascend -(2y - 1) * logit, which unlike cross-entropy never saturates. What an attack
    returns is scored anew, without gradients. Memory is bounded by the batch.

    Raises ConfigError for a transfer attack without surrogate, ModelError for logits of the wrong
    shape or not finite.
    """
    if surrogate is None and any(isinstance(attack, TransferAttack) for attack in attacks):
        raise ConfigError("the transfer attack needs a surrogate model, got none")
    threat_model = ThreatModel(threat.norm, threat.epsilon)
    clean = np.empty(len(images))
    attacked: dict[str, NDArray[np.float64]] = {
        attack.name: np.empty(len(images)) for attack in attacks
    }
    kept: list[Evidence] = []
    done = 0

    with attacking(scorer), attacking(surrogate if surrogate is not None else nn.Identity()):
        # All clean scores first: a model that gives NaN is refused before any attack.
        for rows in _batches(len(images), batch_size):
            clean[rows] = _score(scorer, _as_input(images[rows], device))
            on_progress(done := rows.stop)
        for batch, rows in enumerate(_batches(len(images), batch_size)):
            x = _as_input(images[rows], device)
            positives = np.flatnonzero(targets[rows])
            pictures = {"clean": x[positives]}
            for attack in attacks:
                network = surrogate if isinstance(attack, TransferAttack) else scorer
                assert network is not None
                x_adv = build_attack(attack, threat).perturb(
                    _margin_loss(network, targets[rows], device),
                    x,
                    threat_model=threat_model,
                    generator=_generator(seed, shard, batch, attack.name),
                )
                attacked[attack.name][rows] = _score(scorer, x_adv)
                pictures[attack.name] = x_adv[positives]
                on_progress(done := done + len(x))
            here = np.arange(rows.start, rows.stop)[positives]
            logits = {name: scored[here] for name, scored in attacked.items()}
            ids = [example_ids[i] for i in here]
            kept += _most_damaged(pictures, clean[here], logits, example_ids=ids, count=evidence)
            kept.sort(key=_damage, reverse=True)
            del kept[evidence:]
    return Scores(
        example_ids=list(example_ids),
        targets=targets.astype(np.int64),
        clean=clean,
        attacked=attacked,
        evidence=kept,
    )


def join(shards: Sequence[Scores], *, evidence: int = 12) -> Scores:
    """The shards' scores as one, in the order given.

    A shard knows its own examples only, so it chose evidence by the fall of the logit; here the
    whole ranking is known, and the positives that lost most ranks are kept.

    Raises DataError for shards of different attacks or with an example twice, ModelError for a
    model that gave every clean example the same logit.
    """
    names = list(shards[0].attacked)
    for other in shards:
        if list(other.attacked) != names:
            raise DataError(
                f"expected shards with scores under {names}, got {list(other.attacked)}"
            )
    joined = Scores(
        example_ids=[example_id for shard in shards for example_id in shard.example_ids],
        targets=np.concatenate([shard.targets for shard in shards]),
        clean=np.concatenate([shard.clean for shard in shards]),
        attacked={name: np.concatenate([s.attacked[name] for s in shards]) for name in names},
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
    return Scores(
        joined.example_ids, joined.targets, joined.clean, joined.attacked, found[:evidence]
    )


# --- figures --------------------------------------------------------------------------------------


def figures(
    scores: Scores,
    *,
    positive: Sequence[str],
    attacks: Sequence[Attack],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> TaskReport:
    """The figures of one task. AP ranks negatives first in ties, so it is a lower bound.

    positive: the names of the positive classes.  attacks: the configurations behind the scores,
    in the order in which the report shall show them.  seed, resamples: of the bootstrap behind the
    intervals.
    """
    if {attack.name for attack in attacks} != set(scores.attacked):
        raise DataError(
            f"expected scores under {sorted(attack.name for attack in attacks)}, "
            f"got {sorted(scores.attacked)}"
        )
    targets, signs = scores.targets, 2 * scores.targets - 1
    positives = int(targets.sum())
    worst, won = worst_case(scores)
    logits = {"clean": scores.clean, **scores.attacked, "worst_case": worst}
    resampled = resampled_ap(
        logits, targets, resamples=resamples, generator=np.random.default_rng(seed)
    )

    def figure(name: str) -> APFigure:
        return APFigure(
            ap=average_precision(logits[name], targets),
            interval=percentile_interval(resampled[name]),
            tied=count_ties(logits[name], targets),
        )

    clean, worst_figure = figure("clean"), figure("worst_case")
    return TaskReport(
        positive=list(positive),
        examples=len(scores),
        positives=positives,
        prevalence=positives / len(scores),
        chance=positives / len(scores),
        floor=floor_ap(positives, len(scores)),
        clean=clean,
        attacks={
            attack.name: AttackFigure(
                **dict(figure(attack.name)),
                attack=attack.as_json(),
                mean_margin_drop=float(
                    (signs * (scores.clean - scores.attacked[attack.name])).mean()
                ),
            )
            for attack in attacks
        },
        worst_case=WorstCase(
            **dict(worst_figure),
            won=won,
            drop=Difference(
                value=clean.ap - worst_figure.ap,
                interval=percentile_interval(resampled["clean"] - resampled["worst_case"]),
            ),
        ),
        resamples=resamples,
        operating=operating_figures(scores.clean, worst, targets, at=OperatingPoint()),
    )


def build_report(
    scores: Scores,
    *,
    positive: Sequence[str],
    attacks: Sequence[Attack],
    threat: Threat,
    provenance: Provenance,
    trained_on_these: bool,
) -> Report:
    """The report of an audit of one task: its figures, and what a reader must know to trust them.

    trained_on_these: whether the model has seen these very examples while it was trained.
    """
    task = figures(scores, positive=positive, attacks=attacks, seed=provenance.seed)
    return Report(
        tasks=[task],
        mean={
            "clean": task.clean.ap,
            "worst_case": task.worst_case.ap,
            **{name: figure.ap for name, figure in task.attacks.items()},
        },
        warnings=_warnings(task, threat, trained_on_these=trained_on_these),
        provenance=provenance,
    )


def _warnings(task: TaskReport, threat: Threat, *, trained_on_these: bool) -> list[str]:
    white_box = {n: f.ap for n, f in task.attacks.items() if f.attack["name"] in USES_GRADIENTS}
    others = {n: f.ap for n, f in task.attacks.items() if n not in white_box}
    warnings = []
    if trained_on_these:
        warnings.append(
            "The model was trained on these very examples: the figures say how well it remembers "
            "them, not how well it ranks new ones."
        )
    if threat.epsilon == 0:
        warnings.append("Epsilon is 0: no pixel may change, so every figure equals the clean one.")
    elif all(figure.mean_margin_drop <= 0 for figure in task.attacks.values()):
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


def _as_input(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 images as floats in [0, 1] on the device; copied, as stored images are read-only."""
    return torch.tensor(images, device=device).float() / 255


def _logits(scorer: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = scorer(x)
    if logits.shape != (len(x),):
        raise ModelError(
            f"expected one logit an image, shape ({len(x)},), got {tuple(logits.shape)}"
        )
    return logits


def _score(scorer: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """(B,) float64 logits, computed without gradients. Raises ModelError unless all are finite."""
    with torch.no_grad():
        logits = _logits(scorer, x).double().cpu().numpy()
    broken = int((~np.isfinite(logits)).sum())
    if broken:
        raise ModelError(
            f"expected finite logits, got NaN or infinity on {broken} of {len(x)} images"
        )
    return logits


def _margin_loss(network: nn.Module, targets: NDArray[np.int64], device: torch.device) -> LossFn:
    """-(2y - 1) * logit: positives are pushed down the ranking, negatives up."""
    signs = torch.tensor(1 - 2 * targets, dtype=torch.float32, device=device)
    return lambda x: signs * _logits(network, x)


def _generator(seed: int, shard: int, batch: int, attack: str) -> torch.Generator:
    """Random numbers of their own for each piece of work, whoever does it and in whatever order."""
    digest = hashlib.sha256(f"{seed}/{shard}/{batch}/{attack}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


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
