"""Random search over which places of an image change, and to what; it needs no gradient.

Croce, Andriushchenko, Singh, Flammarion & Hein, "Sparse-RS: a versatile framework for
query-efficient sparse black-box adversarial attacks", AAAI 2022: Square's search where a threat is
bounded in its places. In L1 the same search goes over the corners of the ball and the box, which
are as sparse: few channels of pixels at their walls.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.attacks.base import BestIterate, LossFn
from adap.core.attacks.patience import with_patience
from adap.core.attacks.square import share_of
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.threats import Norm
from adap.core.errors import ConfigError

FIRST_SHARE = 0.3  # alpha: the share of the changed places that the first moves exchange
# Ten-thousandths of the queries up to which alpha is divided by so much.
DIVIDED = (
    (50, 2),
    (200, 4),
    (500, 5),
    (1000, 6),
    (2000, 8),
    (4000, 10),
    (6000, 12),
    (8000, 15),
    (10_000, 20),
)
RELOCATED_EVERY = 5  # queries, of which one moves the patch and the others paint it
FIRST_SHIFT = 0.75  # of the image's longer side: how far a patch moves at most, less and less


@dataclass(frozen=True)
class State:
    """What is changed of each image, and to what; each search says in which shapes."""

    where: Tensor
    values: Tensor

    def with_better(self, better: Tensor, other: "State") -> "State":
        """The other one's for the images where the (B,) mask is true."""
        where = better.view(-1, *[1] * (self.where.dim() - 1))
        values = better.view(-1, *[1] * (self.values.dim() - 1))
        return State(
            torch.where(where, other.where, self.where),
            torch.where(values, other.values, self.values),
        )


@dataclass(frozen=True)
class SparseSearch:
    """Some of the changed places give way to others, kept where it raises the loss of the image.

    queries, patience: as of `adap.core.attacks.square.Square`. The cost is its own, too: `queries`
    forward passes, and all random numbers drawn at once, each image's for itself.
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
        if threat_model.norm not in SEARCHES:
            raise ConfigError(
                f"expected the sparse search with norm {' or '.join(SEARCHES)}, got "
                f"{threat_model.norm}"
            )
        if threat_model.epsilon == 0:
            return x
        best = BestIterate(x)
        search = SEARCHES[threat_model.norm](x, threat_model.epsilon, self.queries)
        counts = [search.draws(query) for query in range(self.queries)]
        draws = torch.rand(
            (len(x), sum(counts)), dtype=x.dtype, device=generator.device, generator=generator
        )
        first, *later = torch.split(draws.to(x.device), counts, dim=1)
        loss_fn = with_patience(loss_fn, self.patience)
        state = search.start(first)
        x_adv = search.image(state)
        best.keep(x_adv, loss_fn(x_adv))
        for query, numbers in enumerate(later, start=1):
            moved = search.move(state, query, numbers)
            x_adv = search.image(moved)
            state = state.with_better(best.keep(x_adv, loss_fn(x_adv)), moved)
        return best.x


class Search(ABC):
    """What is drawn and changed in one geometry, of the images x, (B, C, H, W)."""

    def __init__(self, x: Tensor, epsilon: float, queries: int) -> None:
        self.x = x
        self.epsilon = epsilon
        self.queries = queries

    @abstractmethod
    def draws(self, query: int) -> int:
        """How many random numbers in [0, 1) an image needs for this query, 0 for the first."""

    @abstractmethod
    def start(self, draws: Tensor) -> State:
        """The first candidate, from (B, draws(0)) numbers."""

    @abstractmethod
    def move(self, state: State, query: int, draws: Tensor) -> State:
        """Another one beside the best so far, from (B, draws(query)) numbers."""

    @abstractmethod
    def image(self, state: State) -> Tensor:
        """(B, C, H, W) as the state changes them."""


class PixelSearch(Search):
    """L0: `where` has (B, k) places, `values` their colours, (B, C, k), each channel 0 or 1."""

    def __init__(self, x: Tensor, epsilon: float, queries: int) -> None:
        super().__init__(x, epsilon, queries)
        self.places = x[0, 0].numel()
        self.changed = min(int(epsilon), self.places)

    def draws(self, query: int) -> int:
        channels = self.x.shape[1]
        if query == 0:
            return self.changed * (1 + channels)
        return 1 + self._moved(query) * (1 + channels)

    def start(self, draws: Tensor) -> State:
        nowhere = torch.zeros(len(self.x), 0, dtype=torch.long, device=self.x.device)
        where = others(nowhere, draws[:, : self.changed], of=self.places)
        return State(where, self._coloured(where, draws[:, self.changed :], on=self.x))

    def move(self, state: State, query: int, draws: Tensor) -> State:
        count = self._moved(query)
        slots = run_of_slots(draws[:, :1], count, of=self.changed)
        new = moved_to(state.where, slots, draws[:, 1 : 1 + count], of=self.places)
        colours = self._coloured(new, draws[:, 1 + count :], on=self.image(state))
        return State(
            state.where.scatter(1, slots, new),
            state.values.scatter(2, slots[:, None].expand_as(colours), colours),
        )

    def image(self, state: State) -> Tensor:
        where = state.where[:, None].expand_as(state.values)
        return self.x.flatten(2).scatter(2, where, state.values).view_as(self.x)

    def _moved(self, query: int) -> int:
        count = max(int(alpha_of(query, self.queries) * self.changed), 1)
        return min(count, max(self.places - self.changed, 1), self.changed)

    def _coloured(self, where: Tensor, draws: Tensor, *, on: Tensor) -> Tensor:
        """(B, C, n) colours of (B, n) places, none of them the one that is there already."""
        colours = (draws.view(len(where), self.x.shape[1], -1) < 0.5).to(self.x.dtype)
        now = on.flatten(2).gather(2, where[:, None].expand_as(colours))
        idle = (colours == now).all(dim=1, keepdim=True)
        return torch.where(idle, 1 - colours, colours)


class CornerSearch(Search):
    """L1: channels of pixels that go to a wall one after the other, until epsilon is spent.

    `where` has (B, k) of them, `values` their walls, (B, k), 0 or 1. The last that goes may stop
    short of its wall, and those after it stay where they are until others make room.
    """

    def __init__(self, x: Tensor, epsilon: float, queries: int) -> None:
        super().__init__(x, epsilon, queries)
        self.places = x[0].numel()
        self.slots = min(math.ceil(4 * epsilon) + 1, self.places)  # most go further than a quarter

    def draws(self, query: int) -> int:
        return 2 * self.slots if query == 0 else 1 + 2 * self._moved(query)

    def start(self, draws: Tensor) -> State:
        nowhere = torch.zeros(len(self.x), 0, dtype=torch.long, device=self.x.device)
        where = others(nowhere, draws[:, : self.slots], of=self.places)
        return State(where, self._walls(where, draws[:, self.slots :]))

    def move(self, state: State, query: int, draws: Tensor) -> State:
        """Half of the moves exchange some that go somewhere. The others put some before all, new
        ones or those that have slots already, so that the last to go no longer do."""
        count, where = self._moved(query), state.where
        everything = torch.arange(self.slots, device=where.device)
        if exchange := query % 2 == 0:
            slots = run_of_slots(draws[:, :1], count, of=self._going(state).clamp_min(count))
        elif query % 4 == 1:
            slots = everything[-count:].expand(len(where), -1)
        else:
            slots = run_of_slots(draws[:, :1], count, of=self.slots)
        new = where.gather(1, slots)
        if query % 4 != 3:
            new = moved_to(where, slots, draws[:, 1 : 1 + count], of=self.places)
        where = where.scatter(1, slots, new)
        values = state.values.scatter(1, slots, self._walls(new, draws[:, 1 + count :]))
        if exchange:
            return State(where, values)
        order = everything.expand_as(where).scatter(1, slots, -1).argsort(dim=1, stable=True)
        return State(where.gather(1, order), values.gather(1, order))

    def image(self, state: State) -> Tensor:
        flat = self.x.flatten(1).scatter_add(1, state.where, self._ways(state))
        return flat.clamp(0, 1).view_as(self.x)

    def _moved(self, query: int) -> int:
        count = max(int(alpha_of(query, self.queries) * self.epsilon), 1)
        return min(count, max(self.places - self.slots, 1), self.slots)

    def _ways(self, state: State) -> Tensor:
        """(B, k) how far each goes, and in which direction."""
        way = state.values - self.x.flatten(1).gather(1, state.where)
        return way.sign() * self._left(way.abs()).minimum(way.abs())

    def _going(self, state: State) -> Tensor:
        """(B, 1) how many of the first may go somewhere."""
        room = (state.values - self.x.flatten(1).gather(1, state.where)).abs()
        return (self._left(room) > 0).sum(dim=1, keepdim=True)

    def _left(self, room: Tensor) -> Tensor:
        """(B, k) of epsilon when all before have gone."""
        return (self.epsilon - (room.cumsum(dim=1) - room)).clamp_min(0)

    def _walls(self, where: Tensor, draws: Tensor) -> Tensor:
        """The further wall as much more often as it is further: never the one that it is at, but
        where every place is changed and some had better stay."""
        everywhere = self.slots == self.places
        at = draws.new_tensor(0.5) if everywhere else self.x.flatten(1).gather(1, where)
        return (draws >= at).to(self.x.dtype)


class PatchSearch(Search):
    """A patch: `where` has its upper left corners, (B, 2), `values` its pixels, (B, C, s, s)."""

    def __init__(self, x: Tensor, epsilon: float, queries: int) -> None:
        super().__init__(x, epsilon, queries)
        height, width = x.shape[-2:]
        self.side = min(int(epsilon), height, width)
        self.freedom = torch.tensor([height - self.side, width - self.side], device=x.device)
        self.fixed = height == width == self.side

    def draws(self, query: int) -> int:
        channels = self.x.shape[1]
        if query == 0:
            return 2 + channels * self.side
        return 2 if self._relocates(query) else 2 + channels

    def start(self, draws: Tensor) -> State:
        batch, channels = self.x.shape[:2]
        corner = (draws[:, :2] * (self.freedom + 1)).long()
        stripes = (draws[:, 2:] < 0.5).view(batch, channels, 1, self.side).to(self.x.dtype)
        return State(corner, stripes.expand(-1, -1, self.side, -1))

    def move(self, state: State, query: int, draws: Tensor) -> State:
        if self._relocates(query):
            reach = self._reach(query)
            shift = (draws * (2 * reach + 1)).long() - reach
            corner = (state.where + shift).clamp_min(0).minimum(self.freedom)
            return State(corner, state.values)
        side = max(int(math.sqrt(share_of(query, self.queries)) * self.side), 1)
        rows = torch.arange(self.side, device=self.x.device)
        corner = (draws[:, :2] * (self.side - side + 1)).long()[:, :, None]
        inside = (rows >= corner) & (rows < corner + side)  # (B, 2, s)
        square = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
        colour = (draws[:, 2:] < 0.5).to(self.x.dtype)[:, :, None, None]
        painted = torch.where(square, colour, state.values)
        idle = (painted == state.values).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        painted = torch.where(idle & square, 1 - colour, painted)
        return State(state.where, painted)

    def image(self, state: State) -> Tensor:
        height, width = self.x.shape[-2:]
        row = torch.arange(height, device=self.x.device) - state.where[:, :1]
        column = torch.arange(width, device=self.x.device) - state.where[:, 1:]
        down, across = (row >= 0) & (row < self.side), (column >= 0) & (column < self.side)
        row, column = row.clamp(0, self.side - 1), column.clamp(0, self.side - 1)
        image = torch.arange(len(self.x), device=self.x.device)[:, None, None]
        pixels = state.values.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None]]
        inside = (down[:, :, None] & across[:, None])[:, None]
        return torch.where(inside, pixels.permute(0, 3, 1, 2), self.x)

    def _relocates(self, query: int) -> bool:
        return not self.fixed and query % RELOCATED_EVERY == 0

    def _reach(self, query: int) -> int:
        left = (self.queries - query) / self.queries
        return max(int(FIRST_SHIFT * left * max(self.x.shape[-2:])), 1)


SEARCHES: Mapping[Norm, type[Search]] = {
    "l1": CornerSearch,
    "l0": PixelSearch,
    "patch": PatchSearch,
}


def alpha_of(query: int, queries: int) -> float:
    """The share of the changed places that a move exchanges: ever fewer.

    >>> [round(alpha_of(query, 10_000), 4) for query in (1, 50, 51, 501, 9_999)]
    [0.15, 0.15, 0.075, 0.05, 0.015]
    """
    done = 10_000 * query / queries
    return FIRST_SHARE / next(divisor for until, divisor in DIVIDED if done <= until)


def run_of_slots(draws: Tensor, count: int, *, of: int | Tensor) -> Tensor:
    """(B, count) different slots, one after the other from a random one on, in a ring of `of`."""
    return ((draws * of).long() + torch.arange(count, device=draws.device)) % of


def moved_to(taken: Tensor, slots: Tensor, draws: Tensor, *, of: int) -> Tensor:
    """(B, n) new places for these slots; those that they have where no other is free."""
    if taken.shape[1] == of:
        return taken.gather(1, slots)
    return others(taken, draws, of=of)


def others(taken: Tensor, draws: Tensor, *, of: int) -> Tensor:
    """(B, n) different places that are not among the (B, k) taken ones, from (B, n) numbers.

    One is drawn from each nth part of the free places, so that no two are the same.
    """
    count = draws.shape[1]
    free = torch.ones(len(taken), of, dtype=torch.long, device=taken.device).scatter(1, taken, 0)
    part, places = torch.arange(count + 1, device=draws.device), of - taken.shape[1]
    borders = part * places // count
    low, high = borders[:-1], borders[1:]
    nth = (low + (draws * (high - low)).long()).minimum(high - 1)
    return torch.searchsorted(free.cumsum(dim=1), nth + 1)
