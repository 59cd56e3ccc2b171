"""The pieces of an audit, measured one after the other and kept column by column in a folder.

A column's file bears the hash of all that its scores depend on, as in the service: so a folder may
hold any number of audits, what one has measured another need not, and an audit that was stopped
goes on where it was. What a hash of weights cannot see (an edited forward, an attribute, a global)
is seen by scoring a batch of the clean images again.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from adap.core.audit.checks import check
from adap.core.audit.deployed import deployed, followed
from adap.core.audit.pieces import Measured, joined, planned_passes
from adap.core.audit.plan import (
    MADE_OF,
    SAMPLES,
    ChecksPiece,
    Clean,
    Column,
    Piece,
    ScoresPiece,
)
from adap.core.errors import ConfigError, ModelError
from adap.core.library.examples import Examples
from adap.core.library.rankers import Ready
from adap.core.memory import give_back
from adap.core.report import Check
from adap.core.scores import Scores, load_scores, save_scores

ROUNDING = 1e-4  # of the largest score: by so much another machine may score otherwise


@dataclass(frozen=True)
class Run:
    """One audit of one task: its pieces, what they are about, and where they are kept."""

    pieces: Sequence[Piece]
    examples: Examples
    model: Ready
    surrogate: Ready | None
    folder: Path

    def planned_passes(self) -> tuple[int, int]:
        """Forward passes of an image that all pieces cost, about, if none of them is kept.

        Those that are sure, and those where the search goes on.
        """
        checks = [self._passes(piece) for piece in self.pieces if isinstance(piece, ChecksPiece)]
        sure, most = planned_passes(self.pieces)
        return sure + sum(checks), most + sum(checks)

    def scores(self, tell: Callable[[int], None]) -> Scores:
        """Every column of every piece, joined; what is kept already is not measured again."""
        done, parts = 0, list[tuple[ScoresPiece, Callable[[str], Scores]]]()
        for piece in self.pieces:
            if not isinstance(piece, ScoresPiece):
                continue
            self._measure(piece, lambda n, before=done: tell(before + n))  # type: ignore[misc]
            done += piece.images
            tell(done)
            kept = {column.name: self._path(column) for column in piece.columns}
            parts.append(
                (piece, lambda name, kept=kept: load_scores(kept[name])[0])  # type: ignore[misc]
            )
        return joined(parts, groups=self.examples.groups, clusters=self.examples.clusters)

    def checks(self, tell: Callable[[int], None]) -> list[Check] | None:
        """The checks of the audit, or None where none are asked for."""
        for piece in self.pieces:
            if isinstance(piece, ChecksPiece):
                return self._check(piece, tell)
        return None

    def _measure(self, piece: ScoresPiece, tell: Callable[[int], None]) -> None:
        measured = Measured(
            piece=piece,
            images=self.examples.images,
            example_ids=self.examples.ids,
            targets=self.examples.targets,
            scorer=deployed(self.model.scorer, piece.config.pipeline),
            surrogate=self._surrogate(piece),
            device=self.model.device,
        )
        done = 0
        found: dict[str, Scores] = {}
        for column in piece.columns:
            path = self._path(column)
            kept = path.exists()
            if not kept:
                made = measured.column(
                    column.measure,
                    found,
                    on_progress=lambda n, before=done: tell(before + n),  # type: ignore[misc]
                )
                _write(path, lambda at, made=made: save_scores([made], at))  # type: ignore[misc]
            if isinstance(column.measure, MADE_OF):
                (found[column.name],) = load_scores(path)
            if kept and isinstance(column.measure, Clean):
                self._refuse_other_scores(measured, found[column.name])
            if not isinstance(column.measure, SAMPLES):
                done += piece.stop - piece.start
            tell(done)
        give_back()

    def _refuse_other_scores(self, measured: Measured, kept: Scores) -> None:
        """Raise ModelError unless the first batch is scored as it was when it was kept."""
        if not self.model.gradients:
            return  # a function: what it answers is part of its hash
        piece = measured.piece
        stop = min(piece.stop, piece.start + piece.config.batch_size)
        first = replace(measured, piece=piece.model_copy(update={"stop": stop}))
        now = first.column(Clean(), {}, on_progress=lambda _: None).clean
        then = kept.clean[: len(now)]
        change = np.abs(now - then)
        others = int((change > ROUNDING * np.abs(then).max()).sum())
        if others:
            raise ModelError(
                f"expected the model whose scores are kept in {self.folder}, got one of the same "
                f"weights that scores {others} of {len(now)} images otherwise, by up to "
                f"{change.max():.3g}: its code, or something beside its weights, is another. Name "
                "another folder=, or remove this one to measure anew"
            )

    def _check(self, piece: ChecksPiece, tell: Callable[[int], None]) -> list[Check]:
        planned = self._asked(piece)
        before = sum(one.images for one in self.pieces) - piece.images
        passes = self._passes(piece)
        found = check.check_audit(
            deployed(self.model.scorer, piece.config.pipeline),
            self.examples.images,
            self.examples.targets,
            surrogate=self._surrogate(piece),
            seed=piece.config.seed,
            batch_size=piece.config.batch_size,
            device=self.model.device,
            on_progress=lambda n: tell(before + min(piece.images, n * piece.images // passes)),
            **planned,
        )
        tell(before + piece.images)
        return found

    def _surrogate(self, piece: Piece) -> nn.Module | None:
        if self.surrogate is None:
            return None
        return followed(self.surrogate.scorer, piece.config.pipeline)

    def _passes(self, piece: ChecksPiece) -> int:
        return check.planned_passes(
            self.examples.targets, surrogate=self.surrogate is not None, **self._asked(piece)
        )

    def _asked(self, piece: ChecksPiece) -> dict[str, Any]:
        level = piece.config.resolved_checks()
        assert level != "off"
        return {
            "threat": piece.config.threat,
            "attacks": piece.config.resolved_attacks(),
            "level": level,
            "has_gradients": self.model.gradients,
            "draws": piece.draws,
        }

    def _path(self, column: Column) -> Path:
        return self.folder / f"{column.key}.safetensors"


@contextmanager
def kept_in(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The folder, made if need be. One of our own goes away afterwards, unless it was cut short.

    Ctrl-C cuts it short, and so does what a model or a remote function raises once something is
    measured; the exception names the folder. Raises ConfigError for a folder that cannot be made.
    """
    place = made_folder(tempfile.mkdtemp(prefix="adap-audit-") if folder is None else folder)
    stopped = False
    try:
        yield place
    except (KeyboardInterrupt, Exception) as stop:
        stopped = isinstance(stop, KeyboardInterrupt) or any(place.glob("*.safetensors"))
        if not stopped:
            raise
        stop.add_note(
            f"What was measured is kept: the same call with folder={str(place)!r} goes on there."
        )
        raise
    finally:
        if folder is None and not stopped:
            shutil.rmtree(place, ignore_errors=True)


def made_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing. Raises ConfigError where nothing can be kept in it."""
    try:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"expected folder= where files can be written, got {folder!r} ({error})"
        ) from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    part.replace(path)
