"""Square attack: random search that changes one square at a time and needs no gradient.

Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search", ECCV 2020, Algorithms 1 to 3. It sees what the model says and nothing of
how it came to it, so a model that only hides its gradients does not stop it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adap.core.attacks.base import BestIterate, LossFn, choose
from adap.core.attacks.geometry import unit
from adap.core.attacks.patience import with_patience
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.threats import BALL_NORMS
from adap.core.errors import ConfigError

FIRST_SHARE = 0.8  # p: the share of an image that the first squares cover
# Ten-thousandths of the queries after which p is halved.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # along the shorter side of the image, at the start in L2


@dataclass(frozen=True)
class Square:
    """Squares at random places, each kept where it raises the loss of its image.

    queries: images shown to the model for each image attacked, the first candidate included.
    patience: an image is no longer shown once so many queries in a row did not raise its loss.

    Costs `queries` forward passes and no backward pass. The batch shares the side of the squares;
    everything else is drawn image by image. All of it is drawn at once, so that what an image
    gets depends on no other: a few numbers for each query and image, small beside the images.
    """

    queries: int
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ConfigError(f"expected at least 1 query, got {self.queries}")

    @torch.no_grad()
    def perturb(
        self, loss_fn: LossFn, x: Tensor, *, threat_model: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """See `adap.core.attacks.base.Attack`."""
        if threat_model.norm not in BALL_NORMS:
            raise ConfigError(
                f"expected a search by squares with norm {' or '.join(BALL_NORMS)}, got "
                f"{threat_model.norm}: `adap.core.attacks.sparse.SparseSearch` knows the others"
            )
        search = LinfSearch(threat_model) if threat_model.norm == "linf" else L2Search(threat_model)
        first, each = search.draws(x)
        draws = torch.rand(
            (len(x), first + (self.queries - 1) * each),
            dtype=x.dtype,
            device=generator.device,
            generator=generator,
        ).to(x.device)

        best = BestIterate(x)
        loss_fn = with_patience(loss_fn, self.patience)
        x_adv = search.start(x, draws=draws[:, :first])
        best.keep(x_adv, loss_fn(x_adv))
        for query in range(1, self.queries):
            numbers = draws[:, first + (query - 1) * each :][:, :each]
            share = share_of(query, self.queries)
            x_adv = search.move(best.x, x, share=share, draws=numbers)
            best.keep(x_adv, loss_fn(x_adv))
        return best.x


def share_of(query: int, queries: int) -> float:
    """p, the share of the image that a square covers: halved nine times, ever later.

    >>> [share_of(query, 10_000) for query in (1, 10, 11, 51, 9_999)]
    [0.8, 0.8, 0.4, 0.2, 0.0015625]
    """
    halvings = sum(10_000 * query > after * queries for after in HALVED_AFTER)
    return math.ldexp(FIRST_SHARE, -halvings)


@dataclass(frozen=True)
class LinfSearch:
    """Algorithm 2: every pixel at x - epsilon or x + epsilon, where the box lets it."""

    threat_model: ThreatModel

    def draws(self, x: Tensor) -> tuple[int, int]:
        """How many random numbers in [0, 1) an image needs to start, and for each move."""
        _, channels, _, width = x.shape
        return channels * width, 2 + channels

    def start(self, x: Tensor, *, draws: Tensor) -> Tensor:
        """Vertical stripes, one pixel wide, to which convolutions are sensitive."""
        batch, channels, _, width = x.shape
        signs = _signs(draws).view(batch, channels, 1, width)
        return self.threat_model.project(x + self.threat_model.epsilon * signs, x)

    def move(self, x_adv: Tensor, x: Tensor, *, share: float, draws: Tensor) -> Tensor:
        """A square of one sign a channel."""
        _, _, height, width = x.shape
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        _, _, square = _place(x, side=side, draws=draws[:, :2])
        delta = self.threat_model.epsilon * _signs(draws[:, 2:])[:, :, None, None]
        moved = self.threat_model.project(torch.where(square, x + delta, x_adv), x)
        # A square that is there already would be a query for nothing: half of all, in grey images.
        idle = (moved == x_adv).flatten(1).all(dim=1)
        opposite = self.threat_model.project(torch.where(square, x - delta, x_adv), x)
        return choose(idle, opposite, moved)


@dataclass(frozen=True)
class L2Search:
    """Algorithm 3: the perturbation of a second square is spent on the first one."""

    threat_model: ThreatModel

    def draws(self, x: Tensor) -> tuple[int, int]:
        """How many random numbers in [0, 1) an image needs to start, and for each move."""
        _, channels, height, width = x.shape
        _, rows, columns = _tiles(height, width)
        return (channels + 1) * rows * columns, 4 + channels + 1

    def start(self, x: Tensor, *, draws: Tensor) -> Tensor:
        """Tiles, each with a bump of its own sign and orientation."""
        batch, channels, height, width = x.shape
        side, rows, columns = _tiles(height, width)
        tiles = draws.view(batch, channels + 1, rows, columns)
        tiles = tiles.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        bump = bump_and_dip(side, like=x)
        upright, lying = bump.repeat(rows, columns), bump.T.repeat(rows, columns)
        delta = _signs(tiles[:, :-1]) * torch.where(tiles[:, -1:] < 0.5, upright, lying)
        above, left = (height - rows * side) // 2, (width - columns * side) // 2
        below, right = height - rows * side - above, width - columns * side - left
        return self._at_border(F.pad(delta, (left, right, above, below)), x)

    def move(self, x_adv: Tensor, x: Tensor, *, share: float, draws: Tensor) -> Tensor:
        """A bump is added in one square, as long as what that one and the other one held."""
        _, channels, height, width = x.shape
        odd = max(round(math.sqrt(share * height * width)), 3) | 1
        side = min(odd, height, width)
        row, column, square = _place(x, side=side, draws=draws[:, :2])
        _, _, emptied = _place(x, side=side, draws=draws[:, 2:4])
        row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
        bump = bump_and_dip(side, like=x)
        lying = (draws[:, -1] < 0.5).view(-1, 1, 1)
        bump = torch.where(lying, bump[column, row], bump[row, column])[:, None]  # (B, 1, H, W)
        signs = _signs(draws[:, 4:-1])[:, :, None, None]

        delta = x_adv - x
        unused = (self.threat_model.epsilon**2 - _squares(delta, (1, 2, 3))).clamp_min(0)
        freed = _squares(delta.where(square | emptied, 0), (-2, -1))  # (B, C, 1, 1)
        direction = _normed(delta.where(square, 0)) + signs * bump.where(square, 0)
        new = (freed + unused / channels).sqrt() * _normed(direction)
        return self._at_border(torch.where(square, new, delta.where(~emptied, 0)), x)

    def _at_border(self, delta: Tensor, x: Tensor) -> Tensor:
        return self.threat_model.project(x + self.threat_model.epsilon * unit(delta), x)


def bump_and_dip(side: int, *, like: Tensor) -> Tensor:
    """(side, side) of L2 length 1: a pyramid above, and the negative of one below; eq. (2).

    A pyramid over n rows or columns, k pixels from its centre in the larger of both directions, is
    as high as the sum of 1 / (i + 1)^2 for i from k to n // 2. Both are scaled to the same length,
    as in the authors' code.
    """
    half = side // 2
    both = torch.cat([_pyramid(half, side, like=like), -_pyramid(side - half, side, like=like)])
    return _normed(both)


def _pyramid(height: int, width: int, *, like: Tensor) -> Tensor:
    """(height, width) of length 1"""
    levels = max(height // 2, width // 2) + 1
    steps = torch.arange(1, levels + 1, dtype=like.dtype, device=like.device).square().reciprocal()
    heights = steps.flip(0).cumsum(0).flip(0)
    row = (torch.arange(height, device=like.device) - height // 2).abs()
    column = (torch.arange(width, device=like.device) - width // 2).abs()
    return _normed(heights[torch.maximum(row[:, None], column)])


def _tiles(height: int, width: int) -> tuple[int, int, int]:
    """The side of the tiles at the start in L2, and how many rows and columns of them fit."""
    side = max(min(height, width) // TILES, 1)
    return side, height // side, width // side


def _place(x: Tensor, *, side: int, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A square for each image, anywhere inside it, from (B, 2) numbers in [0, 1).

    Gives the pixels' rows (B, H, 1) and columns (B, 1, W) counted from the square's own corner,
    and whether they are in it, (B, 1, H, W).
    """
    _, _, height, width = x.shape
    top = (draws[:, 0] * (height - side + 1)).long()
    left = (draws[:, 1] * (width - side + 1)).long()
    row = torch.arange(height, device=x.device)[:, None] - top[:, None, None]
    column = torch.arange(width, device=x.device) - left[:, None, None]
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return row, column, inside[:, None]


def _signs(draws: Tensor) -> Tensor:
    """-1 or 1 with equal chance, from numbers in [0, 1)."""
    return torch.where(draws < 0.5, -1, 1).to(draws.dtype)


def _squares(v: Tensor, dim: tuple[int, ...]) -> Tensor:
    return v.square().sum(dim=dim, keepdim=True)


def _normed(v: Tensor) -> Tensor:
    """(..., H, W) with each (H, W) scaled to L2 length 1; zero stays zero."""
    return v / _squares(v, (-2, -1)).sqrt().clamp_min(torch.finfo(v.dtype).tiny)
