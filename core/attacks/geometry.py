"""The shapes that a threat model may have: where the nearest allowed point is, and the furthest.

    LinfBall, L2Ball, L1Ball   balls around each image
    FewPixels                  so many places of each image, changed at will (L0)
    SquarePatch                one square of each image, changed at will

Images are (B, C, H, W) floats in [0, 1], and so is every point; a place is all channels of a pixel.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Rounds of the L2 projection. Each all but squares the error; it was exact in float32 after four,
# for dark and for bright images, steps from a tenth of epsilon to 25 of it.
L2_ROUNDS = 5

# In epsilons. The nearest point to a far one is the one furthest along the gradient; a step of just
# epsilon stops short of it where the box of an L2 ball binds, and pixels at their walls are lost.
FAR = 1000

# Of a pixel's range: a change of no more is none, as of starts that lie beside the image.
UNCHANGED = 0.01


class Geometry(ABC):
    """One shape of a given size, or of a size for each image, (B, 1, 1, 1)."""

    def __init__(self, size: float | Tensor) -> None:
        self.size = size

    @property
    def reach(self) -> float | Tensor:
        """The unit of step sizes: the way from one end of the shape to its middle."""
        return self.size

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point to `x_adv` of the shape around `x`."""

    @abstractmethod
    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """A random point of it."""

    @abstractmethod
    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The point at which a function with this gradient is highest, if it is linear."""

    @abstractmethod
    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        """A step of this size up the gradient from a point of the shape to another one of it."""


class _Ball(Geometry):
    """Steps along a direction of length 1, and back to the nearest point."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """Of length 1, up the gradient; an image whose gradient is zero does not move."""

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        return self.project(x_adv + size * self.direction(gradient), x)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self.project(x + FAR * self.size * self.direction(gradient), x)


class LinfBall(_Ball):
    """Each pixel by itself."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return x_adv.clamp(x - self.size, x + self.size).clamp_(0, 1)

    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        noise = uniform(x.shape, like=x, generator=generator)
        return self.project(x + self.size * (2 * noise - 1), x)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()


class L2Ball(_Ball):
    """All pixels together."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """clip(x + scale * (x_adv - x)) with the largest scale up to 1 that stays in the ball (the
        KKT conditions of the nearest point). Shrinking into the ball and clipping afterwards, as is
        common, stops short of that wherever a pixel meets black or white, and gives a weaker
        attack.
        """
        delta = x_adv - x
        way, room = delta.abs(), torch.where(delta > 0, 1 - x, x)  # room: to the pixel's wall
        scale = torch.zeros_like(x[:, :1, :1, :1])
        for _ in range(L2_ROUNDS):
            # The scale that is right if no pixel meets its wall but those known to: it grows
            # round by round from below, so that the point is in the ball whenever we stop.
            at_wall = scale * way >= room
            used = torch.where(at_wall, room, 0).square().sum(dim=(1, 2, 3), keepdim=True)
            free = torch.where(at_wall, 0, way).square().sum(dim=(1, 2, 3), keepdim=True)
            left = (self.size**2 - used).clamp_min(0)
            scale = (left / free.clamp_min(torch.finfo(x.dtype).tiny)).sqrt().clamp_max(1)
        # where: a point inside keeps its bits instead of being taken apart and added up again
        return torch.where(scale < 1, x + scale * delta, x_adv).clamp_(0, 1)

    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        # The first d coordinates of a uniform point on the sphere in d + 2 dimensions are
        # uniform in the d-dimensional ball. One draw, so that the numbers an image gets
        # do not depend on how many images follow it.
        count, pixels = len(x), x[0].numel()
        point = normal((count, pixels + 2), like=x, generator=generator)
        point = point / point.norm(dim=1, keepdim=True)
        return self.project(x + self.size * point[:, :pixels].reshape(x.shape), x)

    def direction(self, gradient: Tensor) -> Tensor:
        return unit(gradient)


class L1Ball(Geometry):
    """All pixels together, so that few of them move far (steps as of Frank & Wolfe 1956)."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Every pixel drawn back by the same amount, those beyond their wall from there on.

        The nearest point of the ball and the box at once (Croce & Hein 2021): each change is
        clip(|change| - t, 0, room) with the smallest t that leaves no more than epsilon, found by
        bisection to the last bit.
        """
        delta = x_adv - x
        way, room = delta.abs(), torch.where(delta > 0, 1 - x, x)

        def left(t: Tensor) -> Tensor:
            return (way - t).clamp_min(0).minimum(room)

        low = torch.zeros_like(x[:, :1, :1, :1])
        high = way.amax(dim=(1, 2, 3), keepdim=True)
        for _ in range(2 - round(math.log2(torch.finfo(x.dtype).eps))):
            middle = (low + high) / 2
            inside = left(middle).sum(dim=(1, 2, 3), keepdim=True) <= self.size
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        within = left(torch.zeros_like(low)).sum(dim=(1, 2, 3), keepdim=True) <= self.size
        moved = x + delta.sign() * left(high)
        return torch.where(within, x_adv, moved).clamp_(0, 1)

    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        # The first d of d + 1 exponentials over their sum are uniform in the simplex.
        count, pixels = len(x), x[0].numel()
        drawn = uniform((count, 2 * pixels + 1), like=x, generator=generator)
        waits = -torch.log1p(-drawn[:, : pixels + 1])
        signs = torch.where(drawn[:, pixels + 1 :] < 0.5, -1.0, 1.0).to(x.dtype)
        point = signs * waits[:, :pixels] / waits.sum(dim=1, keepdim=True)
        return self.project(x + self.size * point.reshape(x.shape), x)

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        """Towards the furthest point, so far in L1: between two points of a convex set all others
        belong to it. The one steepest pixel would need as many steps as there are pixels to change.
        """
        way = self.furthest(x, gradient) - x_adv
        length = way.abs().sum(dim=(1, 2, 3), keepdim=True)
        share = (size / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1)
        flat = (gradient == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        return torch.where(flat, x_adv, x_adv + share * way)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The steepest pixels go to their walls, one after the other, until epsilon is spent."""
        steep = gradient.flatten(1)
        room = torch.where(steep > 0, 1 - x.flatten(1), x.flatten(1)) * (steep != 0)
        order = steep.abs().argsort(dim=1, descending=True, stable=True)
        rooms = room.gather(1, order)
        spent_before = rooms.cumsum(dim=1) - rooms
        used = (self.size - spent_before).clamp_min(0).minimum(rooms)
        moved = torch.zeros_like(steep).scatter(1, order, used) * steep.sign()
        return (x + moved.reshape(x.shape)).clamp_(0, 1)


class _Places(Geometry):
    """Some places of each image, at any value: which ones is what a subclass chooses by a score.

    A step moves the chosen pixels by the sign of the gradient. A place that is not changed yet
    competes by what it would gain at its wall, and starts there: so the first step from the clean
    image is the best one of a linear function. What a changed place has gained does not show in a
    gradient that it has flattened, so later steps hold on to most of the places that they have.
    """

    @property
    def reach(self) -> float:
        return 1.0  # a pixel may go anywhere

    @abstractmethod
    def chosen(self, score: Tensor) -> Tensor:
        """(B, 1, H, W) the allowed set of places with the highest sum of these scores, as a mask.

        score: (B, 1, H, W), not negative.
        """

    @abstractmethod
    def held(self, gain: Tensor, changed: Tensor, *, size: float | Tensor) -> Tensor:
        """The (B, 1, H, W) gains of places with more for those changed ones that are to stay."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        inside = x_adv.clamp(0, 1)
        saved = (x_adv - x).square() - (x_adv - inside).square()
        return torch.where(self.chosen(saved.sum(dim=1, keepdim=True)), inside, x)

    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        count, channels, height, width = x.shape
        shape = (count, channels + 1, height, width)
        drawn = uniform(shape, like=x, generator=generator)
        return torch.where(self.chosen(drawn[:, :1]), drawn[:, 1:], x)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self.step(x, gradient, x, size=1.0)

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        walls = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, x_adv))
        changed = (x_adv - x).abs().amax(dim=1, keepdim=True) > UNCHANGED
        moved = torch.where(changed, (x_adv + size * gradient.sign()).clamp(0, 1), walls)
        gain = (gradient * (moved - x)).sum(dim=1, keepdim=True).clamp_min(0)
        flat = (gradient == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        chosen = self.chosen(self.held(gain, changed, size=size))
        return torch.where(flat, x_adv, torch.where(chosen, moved, x))


class FewPixels(_Places):
    """As many places as the size says (Croce & Hein 2019)."""

    def chosen(self, score: Tensor) -> Tensor:
        flat = score.flatten(1)
        places = flat.topk(min(int(self.size), flat.shape[1]), dim=1).indices
        return torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, True).view_as(score)

    def held(self, gain: Tensor, changed: Tensor, *, size: float | Tensor) -> Tensor:
        """All but the weakest: `size` / 2 is the share that may give way, at least one of them."""
        weakest = gain.masked_fill(~changed, torch.inf).flatten(1)
        rank = weakest.argsort(dim=1, stable=True).argsort(dim=1).view_as(gain)
        freed = torch.as_tensor(size * int(self.size) / 2, device=gain.device).ceil().clamp_min(1)
        return gain.masked_fill(changed & (rank >= freed), torch.inf)


class SquarePatch(_Places):
    """One square with sides of so many pixels, wherever it does most (Brown et al. 2017)."""

    def chosen(self, score: Tensor) -> Tensor:
        side = int(self.size)
        _, _, height, width = score.shape
        if side == 0:
            return torch.zeros_like(score, dtype=torch.bool)
        side = min(side, height, width)
        sums = F.avg_pool2d(score, side, stride=1)
        best = sums.flatten(1).argmax(dim=1)
        top, left = best // sums.shape[-1], best % sums.shape[-1]
        rows = torch.arange(height, device=score.device) - top.view(-1, 1, 1, 1)
        columns = torch.arange(width, device=score.device) - left.view(-1, 1, 1, 1)
        down = ((rows >= 0) & (rows < side)).view(-1, 1, height, 1)
        across = ((columns >= 0) & (columns < side)).view(-1, 1, 1, width)
        return down & across

    def held(self, gain: Tensor, changed: Tensor, *, size: float | Tensor) -> Tensor:
        """The place that it has counts the more, the smaller the steps: long ones look for one."""
        firm = torch.as_tensor(1 - size / 2, device=gain.device).clamp_min(0)
        return gain + torch.where(changed, firm * gain.amax(dim=(2, 3), keepdim=True), 0)


def unit(v: Tensor) -> Tensor:
    """(B, C, H, W) scaled to L2 length 1, image by image; zero stays zero.

    Divided by the largest entry first: the squares of a saturated network's gradient (1e-30)
    vanish in float32, and those of a huge one overflow.
    """
    tiny = torch.finfo(v.dtype).tiny
    v = v / v.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    length: Tensor = v.flatten(1).norm(dim=1).clamp_min(tiny)
    return v / length.view(-1, 1, 1, 1)


def normal(shape: Sequence[int], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) with the dtype and on the device of `like`, drawn where the generator lives: so a
    CPU generator gives the same numbers whatever device the images are on."""
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator).to(
        like.device
    )


def uniform(shape: Sequence[int], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """The same, uniform in [0, 1)."""
    return torch.rand(shape, dtype=like.dtype, device=generator.device, generator=generator).to(
        like.device
    )
