"""Where the examples of a data set stand in a ranking, before and after an attack.

Values and files only: what a ranking or an audit has measured is read, put in order and chosen
from. No torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from adap.core.figures.worst_case import worst_case
from adap.core.rankings import Own
from adap.core.scores import Scores

Mistake = Literal["missed", "false_alarm"]


@dataclass(frozen=True)
class Standing:
    """Examples in order of score, best first: the example of rank 1 is the first of each array.

    index: (N,) int64, the place of each in the data set.
    scores: (N,) float64, falling.
    targets: (N,) int64 in {0, 1}; None where no classes are positive.
    clean_ranks: (N,) int64, the rank that each has without the attack; None where there is none.
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float64]
    targets: NDArray[np.int64] | None = None
    clean_ranks: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """(N,): 1, 2, 3, …"""
        return np.arange(1, len(self) + 1)

    @property
    def moved(self) -> NDArray[np.int64] | None:
        """(N,): how many ranks the attack took each down; negative for up."""
        return None if self.clean_ranks is None else self.ranks - self.clean_ranks

    def mistakes(self, kind: Mistake, *, cut: int) -> NDArray[np.bool_]:
        """(N,): positives ranked below the first `cut`, or negatives among them."""
        assert self.targets is not None
        first = self.ranks <= cut
        chosen: NDArray[np.bool_] = (
            ~first & (self.targets == 1) if kind == "missed" else first & (self.targets == 0)
        )
        return chosen

    def rank_of(self, score: float) -> int:
        """The rank of another example of this score, below all that have the same."""
        return int(np.searchsorted(-self.scores, -score, side="right")) + 1

    def save(self, path: Path) -> None:
        """Write it as a safetensors file."""
        arrays = {
            "index": self.index,
            "scores": self.scores,
            "targets": self.targets,
            "clean_ranks": self.clean_ranks,
        }
        save_file({name: one for name, one in arrays.items() if one is not None}, path)

    @classmethod
    def load(cls, path: Path) -> "Standing":
        """Read what `save` wrote."""
        return cls(**load_file(path))


def standing_of(scores: Scores, by: str) -> Standing:
    """The examples of an audit's task by their scores: clean, in the worst case, or under one of
    its attacks. `index` is the place of each among these scores.

    Among equals negatives come first, as average precision has it, then the order of the data.
    Raises KeyError for what the audit has not measured.
    """
    clean = Own.CLEAN.value
    worst, _ = worst_case(scores)
    logits = {clean: scores.clean, Own.WORST_CASE.value: worst, **scores.attacked}[by]
    order: NDArray[np.int64] = np.lexsort((scores.targets, -logits))
    clean_ranks = None
    if by != clean:
        clean_ranks = np.empty(len(scores), np.int64)
        clean_ranks[np.lexsort((scores.targets, -scores.clean))] = np.arange(1, len(scores) + 1)
        clean_ranks = clean_ranks[order]
    return Standing(order, logits[order], scores.targets[order], clean_ranks)
