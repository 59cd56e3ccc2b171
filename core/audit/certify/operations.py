"""The operations of a network that can be bounded: what each does to an interval, and backwards.

A network is a list of operations in the order of evaluation; each names its inputs by their place
in the list. Two passes run over it (`adap.core.audit.certify.bounds`):

- forward, intervals (IBP; Gowal et al. 2018): element by element a lowest and a highest value;
- backward, lines (CROWN; Zhang et al. 2018): coefficients A with a . y >= A . x + constant, one
  row for each bounded quantity. Affine operations pass A through exactly; ReLU and max pooling are
  replaced by lines that hold on their input's interval.

Everything is float64, and rounding is paid for. A sum of n products computed in any order is off by
at most gamma_n = n u / (1 - n u) times the sum of their magnitudes, u = 2^-53 (Higham 2002, section
3.1). Intervals are widened by twice that, which also covers the rounding of the widening; lines pay
`rounding * |A|_1 * peak`, collected by the pass.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = 2.0**-53  # half the distance from 1 to the next float64
DOWN, UP = -math.inf, math.inf

Lines = tuple[tuple[Tensor, ...], Tensor | None]
"""For each input (R, *shape) coefficients, and a (R,) constant."""


@dataclass(frozen=True, eq=False)
class Ball:
    """An L2 ball as long as no two pixels are mixed: value = center + gains * d, |d|_2 <= 1.

    error: how far, through rounding, the true center may be from `center`.
    """

    center: Tensor  # (B, *shape)
    gains: Tensor  # (B, *shape), not negative
    error: Tensor  # (B, *shape), not negative


@dataclass(frozen=True, eq=False)
class Interval:
    """Every element's lowest and highest value; `ball` where an L2 threat can still be used."""

    lo: Tensor  # (B, *shape)
    hi: Tensor  # (B, *shape)
    ball: Ball | None = None

    def peak(self) -> Tensor:
        """(B,) the largest magnitude of any element."""
        return flat(torch.maximum(self.lo.abs(), self.hi.abs())).amax(dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation(ABC):
    """One step of a network. Shapes are those of one image."""

    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    # How often pixels are mixed. Nothing is lost by intervals until the second time; what is not
    # affine, or joins branches, counts twice.
    mixes: ClassVar[int] = 2

    @property
    def rounding(self) -> float:
        """What a line pays at this operation, for each unit of |A|_1 * peak.

        The longest sum is over the elements of the output (A . bias). The 1000 is for the lines of
        at most that many operations, whose constants are added up.
        """
        return 2 * (math.prod(self.shape) + 1000) * UNIT

    @abstractmethod
    def value(self, *inputs: Tensor) -> Tensor:
        """(B, *shape) the output itself, rounded as float64 rounds it."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """The interval of the output."""

    @abstractmethod
    def peak(self, *inputs: Interval) -> Tensor:
        """(B,) a bound on what is added up, in magnitude, for any element of the output."""

    @abstractmethod
    def backward(self, a: Tensor, inputs: list[Interval], image: Tensor) -> Lines:
        """For a (R, *shape): (R, *shape) coefficients for each input, and a (R,) constant, so that
        a . output >= sum of coefficients . input + constant. image: (R,), whose row it is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(Operation):
    """The images, as they are."""

    inputs: tuple[int, ...] = ()

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0]

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak()

    def backward(self, a: Tensor, _inputs: list[Interval], _image: Tensor) -> Lines:
        return (a,), None


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Operation):
    """y = W x + bias, W being whatever `_apply` multiplies by."""

    bias: Tensor  # broadcasts to (B, *shape)
    mixes: ClassVar[int] = 1

    @property
    @abstractmethod
    def terms(self) -> int:
        """The most products in a sum, forward or backward."""

    @property
    @abstractmethod
    def gain(self) -> Tensor:
        """() the largest row sum of |W|."""

    @abstractmethod
    def _apply(self, x: Tensor, power: int = 0) -> Tensor:
        """W x; with power 1 |W| x; with power 2 (W * W) x."""

    @abstractmethod
    def _transposed(self, a: Tensor) -> Tensor:
        """a W."""

    @property
    def rounding(self) -> float:
        return super().rounding + 2 * self.terms * UNIT

    def value(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0]) + self.bias

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        center = (x.lo + x.hi) / 2
        radius = torch.maximum(x.hi - center, center - x.lo)
        gamma = 2 * (self.terms + 8) * UNIT
        y = self._apply(center) + self.bias
        # one product for the radius and for the rounding of both products
        reach = self._apply(radius + gamma * (center.abs() + radius), 1) + gamma * self.bias.abs()
        lo, hi, ball = y - reach, y + reach, None
        if x.ball is not None:
            y = self._apply(x.ball.center) + self.bias
            error = (
                self._apply(gamma * x.ball.center.abs() + (1 + gamma) * x.ball.error, 1)
                + gamma * self.bias.abs()
            )
            # Cauchy-Schwarz: |sum w_i g_i d_i| <= |w g|_2 where |d|_2 <= 1
            gains = self._apply(x.ball.gains.square(), 2).sqrt() * (1 + gamma)
            lo, hi = torch.maximum(lo, y - gains - error), torch.minimum(hi, y + gains + error)
            ball = Ball(y, gains, error) if self.mixes == 0 else None
        return Interval(lo, hi, ball)

    def peak(self, *inputs: Interval) -> Tensor:
        return self.gain * inputs[0].peak() + self.bias.abs().amax()

    def backward(self, a: Tensor, _inputs: list[Interval], _image: Tensor) -> Lines:
        return (self._transposed(a),), flat(a * self.bias).sum(dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Affine):
    """y = scale * x + bias, element by element: normalisation, BatchNorm in eval mode."""

    scale: Tensor  # broadcasts to (B, *shape)
    mixes: ClassVar[int] = 0

    @property
    def terms(self) -> int:
        return 2

    @property
    def gain(self) -> Tensor:
        return self.scale.abs().amax()

    def _apply(self, x: Tensor, power: int = 0) -> Tensor:
        return _power(self.scale, power) * x

    def _transposed(self, a: Tensor) -> Tensor:
        return self.scale * a


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Affine):
    """y = W x + bias for x (features,)."""

    weight: Tensor  # (out, in)

    @property
    def terms(self) -> int:
        return max(self.weight.shape)

    @property
    def gain(self) -> Tensor:
        return self.weight.abs().sum(dim=1).amax()

    def _apply(self, x: Tensor, power: int = 0) -> Tensor:
        return x @ _power(self.weight, power).T

    def _transposed(self, a: Tensor) -> Tensor:
        return a @ self.weight


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Affine):
    """A convolution; average pooling is one too, each channel on its own."""

    weight: Tensor  # (out, in / groups, height, width)
    input_shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def terms(self) -> int:
        out, kernel = self.weight.shape[0] // self.groups, self.weight[0, 0].numel()
        return max(self.weight[0].numel(), out * kernel)

    @property
    def gain(self) -> Tensor:
        return self.weight.abs().sum(dim=(1, 2, 3)).amax()

    def _apply(self, x: Tensor, power: int = 0) -> Tensor:
        return F.conv2d(
            x,
            _power(self.weight, power),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def _transposed(self, a: Tensor) -> Tensor:
        if self.groups == 1:
            # one matrix product over all rows and places: three times as fast as conv_transpose2d,
            # which in float64 makes one a row
            columns = self.weight.flatten(1).T @ a.transpose(0, 1).reshape(len(self.weight), -1)
            columns = columns.view(len(columns), len(a), -1).transpose(0, 1)
            return F.fold(
                columns,
                self.input_shape[1:],
                self.weight.shape[2:],
                self.dilation,
                self.padding,
                self.stride,
            )
        # pixels that the last stride did not reach have no coefficient: output_padding fills them
        rest = [
            size + 2 * padding - dilation * (kernel - 1) - 1 - stride * (out - 1)
            for size, padding, dilation, kernel, stride, out in zip(
                self.input_shape[1:],
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                self.stride,
                self.shape[1:],
                strict=True,
            )
        ]
        return F.conv_transpose2d(
            a, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ReLU(Operation):
    """max(x, 0)."""

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp_min(0)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.value(inputs[0].lo), self.value(inputs[0].hi))

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak()

    def backward(self, a: Tensor, inputs: list[Interval], image: Tensor) -> Lines:
        """Where the sign of x is open: above, the chord from (lo, 0) to (hi, hi); below, y = x or
        y = 0, whichever leaves the smaller area (Zhang et al. 2018, section 3.3)."""
        lo, hi = inputs[0].lo[image], inputs[0].hi[image]
        active, open_ = lo >= 0, (lo < 0) & (hi > 0)
        slope = torch.where(open_, hi / (hi - lo), active.to(a.dtype))
        # The rounded slope is what is used, so the intercept is raised until the line is above both
        # ends; ReLU is convex, so it is then above all between.
        intercept = torch.maximum(-slope * lo, hi - slope * hi) + 4 * UNIT * (hi - lo)
        up, down = a.clamp_min(0), a.clamp_max(0)
        below = (active | (open_ & (hi >= -lo))).to(a.dtype)
        constant = flat(down * torch.where(open_, intercept, 0)).sum(dim=1)
        return (up * below + down * slope,), constant


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Operation):
    """The largest of each window; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def value(self, *inputs: Tensor) -> Tensor:
        return self._pool(inputs[0])[0]

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.value(inputs[0].lo), self.value(inputs[0].hi))

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak()

    def backward(self, a: Tensor, inputs: list[Interval], image: Tensor) -> Lines:
        """Below: the element of highest `lo`. Above: that element too where no other can pass it,
        else the highest `hi`, a constant."""
        lo, hi = inputs[0].lo[image], inputs[0].hi[image]
        lowest, winner = self._pool(lo)  # winner: place in the flattened (H, W)
        highest = self._pool(hi)[0]
        height, width = self.padding
        padded = F.pad(hi, (width, width, height, height), value=DOWN)
        windows = padded.unfold(2, self.kernel[0], self.stride[0])
        windows = windows.unfold(3, self.kernel[1], self.stride[1])  # a view (R, C, h, w, kh, kw)
        rivals = (windows > lowest[..., None, None]).sum(dim=(-2, -1))
        places = winner.flatten(2)
        own = hi.flatten(2).gather(2, places).view_as(lowest)
        decided = rivals == (own > lowest)
        through = torch.where(decided, a, a.clamp_min(0))
        before = torch.zeros_like(lo).flatten(2).scatter_add_(2, places, through.flatten(2))
        constant = flat(torch.where(decided, 0, a.clamp_max(0) * highest)).sum(dim=1)
        return (before.view_as(lo),), constant

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = F.max_pool2d(
            x, self.kernel, self.stride, self.padding, return_indices=True
        )
        return values, places


@dataclass(frozen=True, eq=False, kw_only=True)
class LogSumExp(Operation):
    """log sum_i exp(x_i) over all k elements of an image, such as the logits of some classes.

    It rises in every element and is convex. Exponents are taken relative to the largest, so that
    nothing overflows; what exp, log and the sums round is far below `_slack`.
    """

    input_shape: tuple[int, ...]

    def value(self, *inputs: Tensor) -> Tensor:
        return flat(inputs[0]).logsumexp(dim=1).view(-1, *self.shape)

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        slack = self._slack(x.peak()).view(-1, *(1,) * len(self.shape))
        return Interval(self.value(x.lo) - slack, self.value(x.hi) + slack)

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak() + math.log(math.prod(self.input_shape))

    def backward(self, a: Tensor, inputs: list[Interval], image: Tensor) -> Lines:
        """Below: the tangent at the middle of the box. Above: exp is below its chords, and log of
        their sum below its tangent at their sum in the middle."""
        lo, hi = flat(inputs[0].lo)[image], flat(inputs[0].hi)[image]
        peak = inputs[0].peak()[image]
        a = a.reshape(len(a))
        up, down = a.clamp_min(0), a.clamp_max(0)

        middle = (lo + hi) / 2
        tangent = middle.softmax(dim=1)
        below = middle.logsumexp(dim=1) - (tangent * middle).sum(dim=1)

        top = hi.amax(dim=1, keepdim=True)
        low, high = (lo - top).exp(), (hi - top).exp()
        slope = torch.where(hi > lo, (high - low) / (hi - lo), high)
        # as for ReLU: the rounded slope is used, and its line raised above both ends
        chord = torch.maximum(low - slope * (lo - top), high - slope * (hi - top))
        total = ((low + high) / 2).sum(dim=1, keepdim=True)  # at least 1/2
        above = (top + total.log() - 1).squeeze(1) + ((chord - slope * top) / total).sum(dim=1)

        width = (hi - lo).sum(dim=1)
        slack = self._slack(peak + width + (chord / total).sum(dim=1))
        constant = up * (below - slack) + down * (above + slack)
        coefficients = up[:, None] * tangent + down[:, None] * slope / total
        return (coefficients.view(-1, *self.input_shape),), constant

    def _slack(self, magnitude: Tensor) -> Tensor:
        return 16 * (math.prod(self.input_shape) + 16) * UNIT * (1 + magnitude)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Operation):
    """The sum of two branches, as at the end of a residual block."""

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def interval(self, *inputs: Interval) -> Interval:
        x, y = inputs
        down, up = x.lo.new_tensor(DOWN), x.lo.new_tensor(UP)
        return Interval(torch.nextafter(x.lo + y.lo, down), torch.nextafter(x.hi + y.hi, up))

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak() + inputs[1].peak()

    def backward(self, a: Tensor, _inputs: list[Interval], _image: Tensor) -> Lines:
        return (a, a), None


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Operation):
    """The same elements in the same order."""

    input_shape: tuple[int, ...]
    mixes: ClassVar[int] = 0

    def value(self, *inputs: Tensor) -> Tensor:
        return self._to(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        ball = x.ball
        if ball is not None:
            ball = Ball(self._to(ball.center), self._to(ball.gains), self._to(ball.error))
        return Interval(self._to(x.lo), self._to(x.hi), ball)

    def peak(self, *inputs: Interval) -> Tensor:
        return inputs[0].peak()

    def backward(self, a: Tensor, _inputs: list[Interval], _image: Tensor) -> Lines:
        return (a.reshape(len(a), *self.input_shape),), None

    def _to(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


@dataclass(frozen=True, eq=False)
class Program:
    """A network as operations: the first is the images, the last one logit an image."""

    operations: list[Operation] = field(default_factory=list)

    def append(self, operation: Operation) -> int:
        """The place of the new operation."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def logits(self, images: Tensor) -> Tensor:
        """(B,) the network's own answer."""
        values = [images]
        for operation in self.operations[1:]:
            values.append(operation.value(*(values[i] for i in operation.inputs)))
        return values[-1]


def flat(x: Tensor) -> Tensor:
    """(B, elements), also for one element an image."""
    return x.reshape(len(x), -1)


def _power(weight: Tensor, power: int) -> Tensor:
    return (weight, weight.abs(), weight.square())[power] if power else weight
