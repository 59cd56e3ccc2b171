"""Bounds on the logit of every image of a threat model, and the AP that no attack gets below.

- 'ibp': one interval an element, layer by layer (Gowal et al. 2018). Three forward passes.
- 'crown_ibp': one backward pass of lines, drawn on those intervals (Zhang et al. 2020). Where the
  logit is a margin between the logits of K classes, each of those gets a pass of its own first.
- 'crown': the intervals before each ReLU are themselves tightened by backward passes, two for each
  element whose sign is open (Zhang et al. 2018). The tightest and by far the dearest.

Each method's bounds lie within those of the one before, with which they are intersected.

The claim is about the network as a function of real numbers, its parameters being what they are in
the file. Everything is computed in float64 and widened for rounding
(`adap.core.audit.certify.operations`), assuming sums of products; cuDNN, which may transform
instead, is left out. The set of images is widened too, by what float32 can add to a perturbation,
so that the images of our own attacks belong to it. What is NOT covered: the rounding of a scorer
that runs in float32 or less, about 1e-6 of a logit. No gradient is computed and the scorer is not
changed.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.certify.operations import UNIT, Ball, Interval, LogSumExp, Program, ReLU, flat
from adap.core.audit.certify.tracing import trace
from adap.core.config.threats import BOUNDED_NORMS
from adap.core.errors import ConfigError, DataError
from adap.core.figures.ranking import average_precision

Method = Literal["ibp", "crown_ibp", "crown"]

# Numbers that a chunk of images, or of rows, may hold at once, beside temporaries. Rows are passed
# over many times: on a CPU they should stay in the cache, on a GPU a call must be worth its while.
CHUNK_NUMBERS = 2**24
ROW_NUMBERS = {"cpu": 2**18, "cuda": 2**24}

# float32 rounds x - epsilon by at most half a unit (2^-25) and epsilon itself by 2^-24 of it; in L2
# the projection is good to some 1e-6 of epsilon.
PIXEL_SLACK = 2.0**-23
EPSILON_SLACK = 2.0**-16


def certified_bounds(
    scorer: nn.Module, images: Tensor, *, threat: ThreatModel, method: Method
) -> tuple[Tensor, Tensor]:
    """(B,) lowest and (B,) highest logit, float64, that any perturbation of each image can reach.

    scorer: (B, C, H, W) in [0, 1] -> (B,) logits, judged in eval mode, on the device of the images.
    images: (B, C, H, W) float in [0, 1].  threat: intersected with [0, 1].

    With epsilon 0 both are the logit itself. Where a bound cannot be told (the network overflows
    float64) it is infinite. Memory depends on the size of one image's layers, not on B.

    Raises ModelError for a network with an operation that cannot be bounded, naming it; DataError
    for images that are none; ConfigError for a method that does not exist.
    """
    if method not in get_args(Method):
        raise ConfigError(f"expected a method among {get_args(Method)}, got {method!r}")
    if threat.norm not in BOUNDED_NORMS:
        raise ConfigError(
            f"expected norm {' or '.join(BOUNDED_NORMS)} for bounds, got {threat.norm}"
        )
    if images.dim() != 4 or not images.is_floating_point():
        raise DataError(
            f"expected float images (B, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if not ((images >= 0) & (images <= 1)).all():
        raise DataError("expected pixels in [0, 1], got some outside or NaN")
    program = trace(scorer, tuple(images.shape[1:]), device=images.device)
    held = sum(math.prod(operation.shape) for operation in program.operations)
    chunk = max(1, CHUNK_NUMBERS // (2 * held))
    if threat.epsilon == 0:
        with torch.no_grad():
            logits = torch.cat(
                [program.logits(part.double()) for part in torch.split(images, chunk)]
            )
        return logits, logits.clone()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        parts = [
            _logits(program, part.double(), threat=threat, method=method)
            for part in torch.split(images, chunk)
        ]
    return torch.cat([part.lo for part in parts]), torch.cat([part.hi for part in parts])


def certified_floor_ap(lo: Tensor, hi: Tensor, targets: Tensor) -> float:
    """A lower bound on the AP under every attack that perturbs each image within its bounds.

    AP with ties ranked negatives first never falls when a positive's logit rises or a negative's
    falls, so it is lowest with each positive at its lowest logit and each negative at its highest.

    lo, hi: (N,) from `certified_bounds`.  targets: (N,) in {0, 1}.
    Raises DataError as `adap.core.figures.ranking.average_precision` does.

    >>> lo, hi = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])
    >>> certified_floor_ap(lo, hi, torch.tensor([1, 0]))
    1.0
    """
    if lo.shape != hi.shape or targets.shape != lo.shape:
        raise DataError(
            f"expected lo, hi and targets of one shape (N,), got {tuple(lo.shape)}, "
            f"{tuple(hi.shape)} and {tuple(targets.shape)}"
        )
    return average_precision(torch.where(targets == 1, lo, hi).cpu(), targets.cpu())


def _logits(program: Program, images: Tensor, *, threat: ThreatModel, method: Method) -> Interval:
    """(B,) bounds of one chunk of images."""
    bounds = _Pass(program, images, threat).logits(method)
    if method != "crown":
        return bounds
    # On tighter intervals a ReLU may get another lower line, which is now and then the worse one.
    cheap = _Pass(program, images, threat).logits("crown_ibp")
    return Interval(torch.maximum(bounds.lo, cheap.lo), torch.minimum(bounds.hi, cheap.hi))


class _Pass:
    """The intervals of one chunk of images, kept for the lines that are drawn on them."""

    def __init__(self, program: Program, images: Tensor, threat: ThreatModel) -> None:
        self._operations = program.operations
        self._images = images
        self._norm = threat.norm
        self._reach = threat.epsilon * (1 + EPSILON_SLACK) + PIXEL_SLACK
        self._values = [self._threatened()]
        self._peaks = [images.new_ones(len(images))]

    def logits(self, method: Method) -> Interval:
        """(B,) the bounds of the last operation."""
        before_relu, before_logsumexp = (
            {operation.inputs[0] for operation in self._operations if isinstance(operation, kind)}
            for kind in (ReLU, LogSumExp)
        )
        last = len(self._operations) - 1
        mixed = [0]  # how often pixels have been mixed on the way to each operation
        for place, operation in enumerate(self._operations[1:], start=1):
            inputs = [self._values[i] for i in operation.inputs]
            self._values.append(_without_nan(operation.interval(*inputs)))
            self._peaks.append(operation.peak(*inputs))
            mixed.append(max(mixed[i] for i in operation.inputs) + operation.mixes)
            value = self._values[place]
            if method != "ibp" and (place == last or place in before_logsumexp):
                self._tighten(place, torch.ones_like(value.lo, dtype=torch.bool))
            elif method == "crown" and place in before_relu and mixed[place] > 1:
                self._tighten(place, (value.lo < 0) & (value.hi > 0))
        return self._values[last]

    def _threatened(self) -> Interval:
        """The images' interval. Its own rounding is far below the slack in the reach."""
        x, reach = self._images, self._reach
        ball = None
        if self._norm == "l2":
            ball = Ball(x, torch.full_like(x, reach), torch.zeros_like(x))
        return Interval((x - reach).clamp(0, 1), (x + reach).clamp(0, 1), ball)

    def _tighten(self, place: int, chosen: Tensor) -> None:
        """Intersects the chosen (B, *shape) elements' intervals with what lines say of them."""
        value, shape = self._values[place], self._operations[place].shape
        lo, hi = value.lo.flatten(), value.hi.flatten()
        size = math.prod(shape)
        largest = max(math.prod(operation.shape) for operation in self._operations[: place + 1])
        rows = max(1, ROW_NUMBERS[lo.device.type] // (2 * largest))
        places = chosen.flatten().nonzero().flatten()
        if len(places) == 0:
            return  # split would give one empty part
        for at in torch.split(places, rows):
            a = lo.new_zeros(len(at), size)
            a[torch.arange(len(at), device=at.device), at % size] = 1
            image = at // size
            # the highest value of an element is the lowest of its negative, with the sign changed
            both = self._lowest(place, torch.cat([a, -a]).view(-1, *shape), torch.cat([image] * 2))
            # fmax and fmin: lines through infinite intervals give NaN, and then say nothing
            lo[at] = torch.fmax(lo[at], both[: len(at)])
            hi[at] = torch.fmin(hi[at], -both[len(at) :])
        self._values[place] = Interval(lo.view_as(value.lo), hi.view_as(value.hi), value.ball)

    def _lowest(self, place: int, a: Tensor, image: Tensor) -> Tensor:
        """(R,) lower bounds on a . output for the rows a (R, *shape) at this operation.

        The rows are carried back to the images, operation by operation, the constants and the price
        of rounding added up, and the line that is left has its lowest value in closed form.
        """
        total = a.new_zeros(len(a))
        waiting = {place: a}
        for at in range(place, 0, -1):
            if at not in waiting:
                continue
            a, operation = waiting.pop(at), self._operations[at]
            total -= operation.rounding * self._peaks[at][image] * flat(a).abs().sum(dim=1)
            inputs = [self._values[i] for i in operation.inputs]
            parts, constant = operation.backward(a, inputs, image)
            if constant is not None:
                total += constant
            for source, part in zip(operation.inputs, parts, strict=True):
                waiting[source] = waiting[source] + part if source in waiting else part
        a = flat(waiting[0])
        lo, hi = flat(self._values[0].lo), flat(self._values[0].hi)
        lowest = (a.clamp_min(0) * lo[image] + a.clamp_max(0) * hi[image]).sum(dim=1)
        if self._norm == "l2":
            center = (a * flat(self._images)[image]).sum(dim=1)
            lowest = torch.maximum(lowest, center - self._reach * a.norm(dim=1))
        rounding = 2 * (a.shape[1] + 1000) * UNIT * (1 + self._reach) * a.abs().sum(dim=1)
        return total + lowest - rounding


def _without_nan(value: Interval) -> Interval:
    """An element that overflowed may be anything."""
    return Interval(
        torch.where(value.lo.isnan(), -torch.inf, value.lo),
        torch.where(value.hi.isnan(), torch.inf, value.hi),
        value.ball,
    )
