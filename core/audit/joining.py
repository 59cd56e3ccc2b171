"""Joins the pieces of an audit: columns side by side, pieces one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adap.core.config.corruptions import Corruption
from adap.core.errors import DataError, ModelError
from adap.core.figures.worst_case import worst_case
from adap.core.scores import EVIDENCE, Scores


def combine(
    clean: Scores,
    *,
    attacked: Mapping[str, Scores],
    curve: Mapping[float, Scores],
    corrupted: Mapping[Corruption, Scores],
    recovered: Scores | None = None,
    bounds: Scores | None,
    groups: Sequence[str] | None,
    clusters: Sequence[str] | None,
) -> Scores:
    """What was measured of the same examples one by one, side by side.

    attacked, curve: each with the scores of a single attack, whose own key does not matter.
    recovered: with those of the attacks by which the search went on, if it did, under their keys.
    Evidence is kept where the attack that made it is the strongest on that example.
    """
    logits = {key: _only(part) for key, part in attacked.items()}
    found = [replace(item, attack=key) for key, part in attacked.items() for item in part.evidence]
    if recovered is not None:
        logits |= recovered.attacked
        found += recovered.evidence
    row = {example_id: i for i, example_id in enumerate(clean.example_ids)}
    evidence = [
        item
        for item in found
        if item.attacked_logit <= min(other[row[item.example_id]] for other in logits.values())
    ]
    return replace(
        clean,
        attacked=logits,
        curve={epsilon: _only(part) for epsilon, part in curve.items()},
        corrupted={of: part.corrupted[of] for of, part in corrupted.items()},
        corruption_table=next((part.corruption_table for part in corrupted.values()), None),
        bounds=None if bounds is None else bounds.bounds,
        no_bounds=None if bounds is None else bounds.no_bounds,
        hidden=None if recovered is None else recovered.hidden,
        groups=groups,
        clusters=clusters,
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
    hidden = [shard.hidden for shard in shards if shard.hidden is not None]
    if 0 < len(hidden) < len(shards):  # two machines may round to either side of a limit
        hidden, names = [], [n for n in names if all(n in shard.attacked for shard in shards)]
        shards = [_under(shard, names) for shard in shards]
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
        corrupted={
            of: np.concatenate([s.corrupted[of] for s in shards]) for of in shards[0].corrupted
        },
        corruption_table=shards[0].corruption_table,
        bounds=(
            None
            if unbounded
            else np.concatenate([s.bounds for s in shards if s.bounds is not None], axis=1)
        ),
        no_bounds=unbounded[0].no_bounds if unbounded else None,
        hidden=hidden[0] if hidden else None,
        groups=_joined([shard.groups for shard in shards]),
        clusters=_joined([shard.clusters for shard in shards]),
    )
    if len(set(joined.example_ids)) < len(joined):
        raise DataError(
            f"expected every example once, got {len(joined)} scores for "
            f"{len(set(joined.example_ids))} examples"
        )
    refuse_constant(joined.clean)
    row = {example_id: i for i, example_id in enumerate(joined.example_ids)}
    lost = _ranks(worst_case(joined)[0], joined.targets) - _ranks(joined.clean, joined.targets)
    found = [item for shard in shards for item in shard.evidence]
    found.sort(key=lambda item: (-lost[row[item.example_id]], item.example_id))
    return replace(joined, evidence=found[:evidence])


def with_whole(scores: Scores, whole: Sequence[Scores]) -> Scores:
    """The scores of a task with what was measured of all its examples at once, one by one."""
    return replace(
        scores,
        smallest=next((part.smallest for part in whole if part.smallest is not None), None),
        universal=next((part.universal for part in whole if part.universal is not None), None),
    )


def _under(shard: Scores, names: Sequence[str]) -> Scores:
    """The shard under these attacks alone."""
    return replace(
        shard,
        attacked={name: shard.attacked[name] for name in names},
        evidence=[item for item in shard.evidence if item.attack in names],
    )


def _joined(parts: Sequence[Sequence[str] | None]) -> list[str] | None:
    """Names of all examples, which every shard has or none."""
    return None if parts[0] is None else [name for part in parts for name in part or []]


def _ranks(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) rank of each example, from 1, behind every negative of the same logit."""
    order, negatives = np.sort(logits), np.sort(logits[targets == 0])
    above = len(order) - np.searchsorted(order, logits, side="right")
    tied = np.searchsorted(negatives, logits, "right") - np.searchsorted(negatives, logits, "left")
    return (1 + above + tied).astype(np.int64)


def refuse_constant(logits: NDArray[np.float64]) -> None:
    if (logits == logits[0]).all():
        raise ModelError(
            f"expected logits that rank, got {logits[0]:g} for every one of {len(logits)} images"
        )
