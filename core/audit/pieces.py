"""A piece of an audit, measured: the same for a worker of the service and for the library.

Measured        the examples of a piece and the networks that look at them
joined          the scores of a task from its pieces
planned_passes  what all the scores of an audit cost, before it starts
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.audit import hidden, joining, measuring
from adap.core.audit.checks.runs import sample_rows
from adap.core.audit.costs import of_measure, of_universal
from adap.core.audit.drawing import mean_of
from adap.core.audit.network import Pixels, Rows
from adap.core.audit.plan import (
    Bounds,
    BoundsSample,
    Clean,
    Corrupted,
    CurvePoint,
    GradientSample,
    Measure,
    Piece,
    Recovery,
    ScoresPiece,
    Smallest,
    UnderAttack,
    Universal,
    certified_sample,
)
from adap.core.audit.smallest import smallest_changes
from adap.core.audit.universal import universal_found
from adap.core.config.attacks import Attack
from adap.core.config.audits import CURVE_ATTACK
from adap.core.config.corruptions import Corruption
from adap.core.config.threats import BOUNDED_NORMS, Norm, Threat
from adap.core.precision import float32_products
from adap.core.scores import Scores

DRAWN = (
    "This network draws random numbers: bounds on what it answers by some of them say nothing of "
    "its mean."
)


BEHIND_PIPELINE = (
    "Images reach the network through a deployment pipeline, of which no bounds are known."
)


def unbounded(norm: Norm) -> str:
    """Why there are no bounds in a norm."""
    return f"Bounds are known for {' and '.join(BOUNDED_NORMS)} alone: nothing is proven of {norm}."


@dataclass(frozen=True)
class Measured:
    """The examples of a piece and the networks that look at them.

    images, example_ids, targets: of the whole split, as a piece may lack positives.
    scorer, surrogate: (B, C, H, W) floats in [0, 1] to (B,) logits, on the device; of a scorer
    that draws random numbers, one draw.
    """

    piece: ScoresPiece
    images: Rows
    example_ids: Sequence[str]
    targets: NDArray[np.int64]
    scorer: nn.Module
    surrogate: nn.Module | None
    device: torch.device

    @cached_property
    def own(self) -> Pixels:
        """The images of the piece."""
        images: Pixels = self.images[self.piece.start : self.piece.stop]
        return images

    @float32_products("float32")  # torch rounds to TF32 in convolutions on a GPU
    def column(
        self,
        measure: Measure,
        found: dict[str, Scores],
        *,
        on_progress: Callable[[int], None],
    ) -> Scores:
        """The scores of one column. found: the columns before it that others are made of."""
        match measure:
            case Clean():
                return self._attack([], self.piece.config.threat, None, on_progress)
            case UnderAttack(attack=attack, threat=threat):
                clean = found[Clean().name].clean
                return self._attack([attack], threat, clean, on_progress)
            case CurvePoint(threat=threat):
                clean = found[Clean().name].clean
                return self._attack([CURVE_ATTACK], threat, clean, on_progress)
            case Corrupted(corruption=corruption):
                return self._corrupted(corruption, found[Clean().name], on_progress)
            case GradientSample(threat=threat):
                rows = sample_rows(self.targets, hidden.SAMPLE)
                return hidden.gradient_sample(
                    mean_of(self.scorer, self.piece.draws),
                    self.images[rows].copy(),
                    self.targets[rows],
                    [self.example_ids[i] for i in rows],
                    threat=threat,
                    seed=self.piece.config.seed,
                    batch_size=self.piece.config.batch_size,
                    device=self.device,
                )
            case Recovery(attacks=attacks, threat=threat):
                clean_scores = found[Clean().name]
                reason = found[GradientSample(threat=threat).name].hidden
                if reason is None:
                    return clean_scores
                searched = self._attack(
                    attacks,
                    threat,
                    clean_scores.clean,
                    lambda done: on_progress(done // len(attacks)),
                )
                return replace(searched, hidden=reason)
            case Smallest(asked=asked, threat=threat):
                clean, smallest = smallest_changes(
                    self.scorer,
                    self.images,
                    self.targets,
                    self.example_ids,
                    asked=asked,
                    norm=threat.norm,
                    seed=self.piece.config.seed,
                    shard_size=self.piece.config.shard_size,
                    batch_size=self.piece.config.batch_size,
                    device=self.device,
                    on_share=lambda share: on_progress(int(share * len(self.targets))),
                )
                return replace(self._of_all(clean), smallest=smallest)
            case Universal(asked=asked, threat=threat):
                rows = sample_rows(self.targets, asked.images // 2)
                most = (asked.rounds + 1) * len(rows) + 2 * len(self.targets)
                clean, universal = universal_found(
                    mean_of(self.scorer, self.piece.draws),
                    self.images,
                    self.targets,
                    rows,
                    threat=threat,
                    rounds=asked.rounds,
                    seed=self.piece.config.seed,
                    shard_size=self.piece.config.shard_size,
                    batch_size=self.piece.config.batch_size,
                    device=self.device,
                    on_passes=lambda done: on_progress(done * len(self.targets) // most),
                )
                return replace(self._of_all(clean), universal=universal)
            case BoundsSample() | Bounds() if self.piece.config.pipeline:
                return replace(found[Clean().name], no_bounds=BEHIND_PIPELINE)
            case BoundsSample() | Bounds() if self.piece.draws > 1:
                return replace(found[Clean().name], no_bounds=DRAWN)
            case BoundsSample(threat=threat) | Bounds(threat=threat) if (
                threat.norm not in BOUNDED_NORMS
            ):
                return replace(found[Clean().name], no_bounds=unbounded(threat.norm))
            case BoundsSample(threat=threat):
                rows = certified_sample(self.targets)
                return measuring.certify_sample(
                    self.scorer,
                    self.images[rows],
                    self.targets[rows],
                    [self.example_ids[i] for i in rows],
                    threat=threat,
                    device=self.device,
                )
            case Bounds(method=method, threat=threat):
                clean_scores = found[Clean().name]
                if method == "auto":
                    sample = found[BoundsSample(threat=threat).name]
                    if sample.no_bounds is not None:
                        return replace(clean_scores, no_bounds=sample.no_bounds)
                return measuring.certify_shard(
                    self.scorer,
                    clean_scores,
                    self.own,
                    threat=threat,
                    method="crown_ibp" if method == "auto" else method,
                    batch_size=self.piece.config.batch_size,
                    device=self.device,
                    on_progress=on_progress,
                )

    def _of_all(self, clean: NDArray[np.float64]) -> Scores:
        return Scores(list(self.example_ids), self.targets.astype(np.int64), clean, attacked={})

    def _attack(
        self,
        attacks: Sequence[Attack],
        threat: Threat,
        clean: NDArray[np.float64] | None,
        on_progress: Callable[[int], None],
    ) -> Scores:
        piece = self.piece
        return measuring.attack_shard(
            mean_of(self.scorer, piece.draws),
            self.own,
            self.targets[piece.start : piece.stop],
            self.example_ids[piece.start : piece.stop],
            attacks=attacks,
            threat=threat,
            surrogate=self.surrogate,
            seed=piece.config.seed,
            shard=piece.shard,
            batch_size=piece.config.batch_size,
            device=self.device,
            on_progress=on_progress,
            clean=clean,
            precision=piece.config.search_precision,
        )

    def _corrupted(
        self, corruption: Corruption, clean: Scores, on_progress: Callable[[int], None]
    ) -> Scores:
        return measuring.corrupt_shard(
            mean_of(self.scorer, self.piece.draws),
            clean,
            self.own,
            corruption=corruption,
            seed=self.piece.config.seed,
            shard=self.piece.shard,
            batch_size=self.piece.config.batch_size,
            device=self.device,
            on_progress=on_progress,
        )


def joined_piece(
    piece: ScoresPiece,
    load: Callable[[str], Scores],
    *,
    groups: Sequence[str] | None,
    clusters: Sequence[str] | None,
) -> Scores:
    """The columns of a piece as scores of its examples.

    load: a column by its name.  groups, clusters: of the whole split, one name an example.
    """
    clean: Scores | None = None
    bounds: Scores | None = None
    attacked: dict[str, Scores] = {}
    curve: dict[float, Scores] = {}
    corrupted: dict[Corruption, Scores] = {}
    recovered: Scores | None = None
    for column in piece.columns:
        match column.measure:
            case Clean():
                clean = load(column.name)
            case UnderAttack(attack=attack):
                attacked[attack.key] = load(column.name)
            case CurvePoint(threat=threat):
                curve[threat.epsilon] = load(column.name)
            case Corrupted(corruption=corruption):
                corrupted[corruption] = load(column.name)
            case Recovery():
                recovered = load(column.name)
            case Bounds():
                bounds = load(column.name)
    assert clean is not None
    return joining.combine(
        clean,
        attacked=attacked,
        curve=curve,
        corrupted=corrupted,
        recovered=recovered,
        bounds=bounds,
        groups=None if groups is None else groups[piece.start : piece.stop],
        clusters=None if clusters is None else clusters[piece.start : piece.stop],
    )


def joined(
    pieces: Sequence[tuple[ScoresPiece, Callable[[str], Scores]]],
    *,
    groups: Sequence[str] | None,
    clusters: Sequence[str] | None,
) -> Scores:
    """The scores of a task from all of its pieces, each with what loads a column of it.

    groups, clusters: as in `joined_piece`. Raises as `joining.join`.
    """
    whole = [load(c.name) for piece, load in pieces if piece.whole for c in piece.columns]
    return joining.with_whole(
        joining.join(
            [
                joined_piece(piece, load, groups=groups, clusters=clusters)
                for piece, load in pieces
                if not piece.whole
            ]
        ),
        whole,
    )


def planned_passes(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Forward passes of an image that the scores of an audit cost, about, without their bounds.

    Those that are sure, and those where the search goes on as the gradient hides something.
    """
    sure: dict[str, int] = {}
    more: dict[str, int] = {}
    for piece in pieces:
        if not isinstance(piece, ScoresPiece):
            continue
        for column in piece.columns:
            counted = more if isinstance(column.measure, Recovery) else sure
            images = piece.stop - piece.start
            passes = images * of_measure(column.measure).forward
            if isinstance(column.measure, Universal):
                passes = of_universal(column.measure.asked, images=images).forward
            counted[column.key] = piece.draws * passes
    return sum(sure.values()), sum(sure.values()) + sum(more.values())
