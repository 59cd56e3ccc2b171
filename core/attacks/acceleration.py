"""The same scorer, cheaper to attack: rewritten for one shape of image, and for its gradient.

An attack asks the same frozen network the same question thousands of times, so the network may be
prepared for it. All of it is exact but for rounding, and none of it looks at a pixel:

- BatchNorm in eval mode is a scale and a shift, and goes into the convolution before it.
- Channels last, the layout in which convolutions need no copies.
- Where it is asked for, bfloat16 up to the last layer, whose weights are cast once.

On a CPU, in float32:

- A kernel larger than the image it slides over multiplies mostly padding (the last layers of a
  ResNet at 32x32): there the convolution is one small matrix product.
- The gradient to the few channels of the image wastes most of a vector register, where the first
  layer has a stride: its phases are computed side by side, as channels, and woven together after.

On a CPU:

- A batch is worked off in pieces whose activations stay in the cache and whose memory is used
  again, instead of being asked from the operating system and cleared for each layer.

On a GPU the pass of a whole batch, forward and backward, is captured as a CUDA graph.

benchmarks/attacks.py measures it beside `torch.compile`, which gains a fraction of that on a
ResNet-18 and no more on a small network, needs a C++ compiler and half a minute before the first
step: it is not used.
"""

import copy
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from adap.core.attacks.base import loss_and_gradient
from adap.core.capture import Captured, Recorder
from adap.core.config.training import Precision
from adap.core.precision import cast_once, forward_in

log = logging.getLogger(__name__)

PROBES = 2  # images that are shown to a scorer to learn its shapes and to check the result
# Passes, of one image each, that pay for the rewriting: three times what it costs for a ResNet-18.
WORTHWHILE = 1000
# Of the largest logit: far above what is rounded over many layers, far below a wrong rewrite.
TOLERANCE: Mapping[Precision, float] = {"float32": 1e-3, "tf32": 1e-3, "bfloat16": 0.1}
PIECE_BYTES = 8 << 20  # of the largest activation of a piece, on a CPU
WHOLE = 2**62  # images of a piece elsewhere
SMALLEST_PIECE = 32
NARROW = 16  # channels that fill a vector register; convolutions to fewer are padded to as many


def accelerate(
    scorer: nn.Module,
    x: Tensor,
    *,
    passes: int,
    precision: Precision = "float32",
    recorder: Recorder | None = None,
) -> nn.Module:
    """A scorer with the same logits and gradients up to rounding, faster for images like `x`.

    scorer: (B, C, H, W) in [0, 1] to (B,) logits, in eval mode, each image by itself; its copy is
    what is rewritten.  x: (B, C, H, W) images of the shape to come, of which a few are tried.
    passes: forward and backward passes to come, of one image each: how much work it is for.
    precision: of its passes, whose logits are float32 in any case.
    recorder: by which passes over a batch are captured, those of the size of the first one.

    The result differentiates once, to the input only. Gives back the scorer itself where nothing
    would be gained or is known: for little work, on a device that is neither a CPU nor an NVIDIA
    GPU, in train mode, and for a network that does not stand it, which is logged. What decides is
    never a clock, so that the same work gives the same bits.
    """
    on_cpu = x.device.type == "cpu"
    known = on_cpu or x.device.type == "cuda"
    if passes < WORTHWHILE or not known or any(m.training for m in scorer.modules()):
        return scorer
    probes = x[:PROBES].detach()
    # Whatever another's network does with its layers, the audit goes on with the original.
    try:
        with torch.no_grad():
            expected = scorer(probes)
            network = copy.deepcopy(scorer).requires_grad_(False)
            largest = _rewrite(network, probes, for_cpu=on_cpu and precision == "float32")
            network.to(memory_format=torch.channels_last)
            piece = max(PIECE_BYTES // largest, SMALLEST_PIECE) if on_cpu else WHOLE
            if precision == "bfloat16":
                network = Rounded(network, probes)
                loss_and_gradient(network, probes)  # its own functions may not stand the format
            fast = Accelerated(network, piece)
            got = torch.cat([fast(probe) for probe in torch.split(probes, 1)])  # and each by itself
        difference = (got - expected).abs().max() / expected.abs().max()
        reason = f"its logits were off by {difference:.1g} of the largest"
        same = bool(difference <= TOLERANCE[precision])
    except Exception as error:  # noqa: BLE001
        same, reason = False, repr(error)
    if same:
        fast.capture(recorder)
        return fast
    # Who asked for another format is to hear that the search is in float32.
    level = logging.INFO if precision == "float32" else logging.WARNING
    log.log(level, "attack.not_accelerated", extra={"reason": reason, "asked_for": precision})
    return scorer


class Accelerated(nn.Module):
    """A rewritten network that works off a batch in pieces, forward and backward together."""

    def __init__(self, network: nn.Module, piece: int) -> None:
        super().__init__()
        self.network = network
        self.piece = piece
        self.capture(None)

    def capture(self, recorder: Recorder | None) -> None:
        """Replay passes over a piece from now on, if there is what records them."""
        # not of this object, which would then hold itself, its weights and its graphs
        self._scored = Captured(partial(_logits, self.network), recorder)
        self._followed = Captured(partial(_logits_and_gradients, self.network), recorder)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) logits."""
        logits: Tensor
        if torch.is_grad_enabled() and x.requires_grad:
            logits = _LogitsInPieces.apply(x, self)
            return logits
        # clone: what is replayed comes in the same tensor again
        return torch.cat([self._scored(part).clone() for part in torch.split(x, self.piece)])

    def followed(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) logits of a piece, and (B, C, H, W) the gradient of each, until the next call."""
        return self._followed(part)


def _logits(network: nn.Module, part: Tensor) -> Tensor:
    """(B,) logits of a piece."""
    logits: Tensor = network(part.contiguous(memory_format=torch.channels_last))
    return logits


def _logits_and_gradients(network: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) logits of a piece, and (B, C, H, W) the gradient of each."""
    with torch.enable_grad():
        part = part.detach().requires_grad_()
        logits = _logits(network, part)
        if not logits.requires_grad:
            return logits, torch.zeros_like(part)
        (gradients,) = torch.autograd.grad(
            logits.sum(), part, allow_unused=True, materialize_grads=True
        )
    return logits.detach(), gradients


class Rounded(nn.Module):
    """A network that computes in bfloat16 up to its last layer, by weights that are cast once."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        cast_once(network, x)
        self.network = network
        self._passed = forward_in("bfloat16", network, device=x.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) float32 logits."""
        return self._passed(x)


class _LogitsInPieces(torch.autograd.Function):
    """Each logit depends on its own image alone, so its gradient can be taken at once: nothing of
    a piece has to be kept but that, and the backward pass is a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scorer: Accelerated) -> Tensor:
        logits, gradients = [], []
        for part in torch.split(x, scorer.piece):
            logit, gradient = scorer.followed(part)
            logits.append(logit.clone())
            gradients.append(gradient.clone())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * gradients, None


# --- rewriting ------------------------------------------------------------------------------------


def _rewrite(network: nn.Module, probes: Tensor, *, for_cpu: bool) -> int:
    """Rewrite the layers of a network in place; the bytes of its largest activation, an image.

    for_cpu: also what pays on a CPU alone, in float32.
    """
    seen = Observed(network)
    with seen:
        network(probes)
    convolutions = seen.convolutions()
    for name, norm_name in seen.pairs():
        norm = network.get_submodule(norm_name)
        assert isinstance(norm, nn.BatchNorm2d)
        network.set_submodule(name, fuse_conv_bn_eval(convolution_of(network, name), norm))
        network.set_submodule(norm_name, nn.Identity())
    for name, (x, y) in convolutions.items() if for_cpu else ():
        convolution = convolution_of(network, name)
        if (
            convolution.groups > 1
            or convolution.padding_mode != "zeros"
            or isinstance(convolution.padding, str)
        ):
            continue
        if Dense.pays(convolution, x.shape, y.shape):
            network.set_submodule(name, Dense(convolution, x.shape, y.shape))
        elif Strided.pays(convolution):
            network.set_submodule(name, Strided(convolution))
    return max(seen.largest // len(probes), 1)


def convolution_of(network: nn.Module, name: str) -> nn.Conv2d:
    """The layer of this name, which is known to be one."""
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def _padding(convolution: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(convolution.padding, str)
    above, left = convolution.padding
    return above, left


class Observed(TorchFunctionMode):
    """What one run of a network shows: the inputs and outputs of its convolutions and BatchNorms,
    how often each tensor is used, and the bytes of the largest result."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._uses: Counter[int] = Counter()
        self._alive: list[Any] = []  # so that no two tensors have the same id
        self._hooks: list[RemovableHandle] = []
        self.largest = 0

    def __enter__(self) -> Self:
        for name, module in self._network.named_modules():
            # Not of a subclass, nor with hooks of others: those may do more than the layer does.
            if type(module) in (nn.Conv2d, nn.BatchNorm2d) and not (
                module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            ):
                self._hooks.append(module.register_forward_hook(self._record(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if made:  # otherwise it was a look at a shape or the like
            taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self._uses.update(id(tensor) for tensor in taken)
            self.largest = max(self.largest, *(tensor.nbytes for tensor in made))
            self._alive.append((taken, made))
        return result

    def convolutions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Input and output of each convolution that ran once, its weight being used by it alone."""
        return {
            name: calls[0]
            for name, calls in self._calls.items()
            if isinstance(module := self._network.get_submodule(name), nn.Conv2d)
            and len(calls) == self._uses[id(module.weight)] == 1
        }

    def pairs(self) -> list[tuple[str, str]]:
        """Convolutions whose output went into a BatchNorm in eval mode, and nowhere else."""
        made_by = {id(y): name for name, (_, y) in self.convolutions().items()}
        return [
            (made_by[id(x)], name)
            for name, ((x, _), *more) in self._calls.items()
            if isinstance(norm := self._network.get_submodule(name), nn.BatchNorm2d)
            and not (more or norm.training or norm.running_mean is None)
            and id(x) in made_by
            and self._uses[id(x)] == 1
        ]

    def _record(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._calls.setdefault(name, []).append((inputs[0], output))

        return hook


class Dense(nn.Module):
    """A convolution of an image hardly larger than a pixel, as one matrix product.

    matrix: (H * W * C, H' * W' * K), what becomes of each pixel and channel alone.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, x: torch.Size, y: torch.Size) -> None:
        super().__init__()
        self.channels, self.height, self.width = y[1:]
        weight = convolution.weight.detach()
        down, right = convolution.stride
        above, left = _padding(convolution)
        matrix = weight.new_zeros(x[2], x[3], x[1], y[2], y[3], y[1])
        for i, j, k, m in itertools.product(*map(range, (y[2], y[3], *convolution.kernel_size))):
            row = i * down + k * convolution.dilation[0] - above
            column = j * right + m * convolution.dilation[1] - left
            if 0 <= row < x[2] and 0 <= column < x[3]:
                matrix[row, column, :, i, j] = weight[:, :, k, m].T
        bias = weight.new_zeros(y[1]) if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("matrix", matrix.view(x[1:].numel(), -1))
        self.register_buffer("bias", bias.repeat(self.height * self.width))

    @staticmethod
    def pays(convolution: nn.Conv2d, x: torch.Size, y: torch.Size) -> bool:
        """Whether the matrix has hardly more entries than the kernel, so that it saves work."""
        places = x[2] * x[3] * y[2] * y[3]
        kernel = convolution.kernel_size[0] * convolution.kernel_size[1]
        return places <= 2 * kernel

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H', W'), channels last."""
        rows = x.permute(0, 2, 3, 1).reshape(len(x), -1)  # a view of what is channels last
        product = torch.addmm(self.bias, rows, self.matrix)
        return product.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)


class Strided(nn.Module):
    """A convolution with a stride, of an image with few channels: the same forward pass, and a
    backward pass that makes all phases of the gradient at once.

    An input pixel s * i + r, where s is the stride, is touched by every s-th entry of the kernel
    only. So the gradient of each phase r is a plain convolution of the gradient of the output, and
    all of them together are one, with s * s times as many channels as the image.
    """

    kernel: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        stride = convolution.stride[0]
        weight = convolution.weight.detach()
        out, channels, height, width = weight.shape
        rows, columns = -(-height // stride), -(-width // stride)
        # Tap s * q + r of the kernel belongs to phase r; the gradient sees its q backwards.
        taps = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
        taps = taps.view(out, channels, rows, stride, columns, stride).flip(2, 4)
        kernel = taps.permute(1, 3, 5, 0, 2, 4).reshape(-1, out, rows, columns)
        self.register_buffer("kernel", kernel)

    @staticmethod
    def pays(convolution: nn.Conv2d) -> bool:
        """Whether there is a stride, and room for its phases in a vector register."""
        return (
            convolution.stride[0] == convolution.stride[1] > 1
            and convolution.in_channels < NARROW
            and convolution.dilation == (1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution's own."""
        y: Tensor = _StridedConvolution.apply(x, self.convolution, self.kernel)
        return y


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: nn.Conv2d, kernel: Tensor) -> Tensor:
        ctx.shape, ctx.stride, ctx.padding = x.shape, convolution.stride[0], _padding(convolution)
        ctx.save_for_backward(kernel)
        y: Tensor = convolution(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (kernel,) = ctx.saved_tensors
        (height, width), (above, left) = ctx.shape[2:], ctx.padding
        full = (kernel.shape[2] - 1, kernel.shape[3] - 1)
        phases = F.conv2d(upstream, kernel, padding=full)
        woven = F.pixel_shuffle(phases, ctx.stride)
        # Of the padded image; what no window reached has no gradient.
        below, right = height + above - woven.shape[2], width + left - woven.shape[3]
        return F.pad(woven, (-left, right, -above, below)), None, None
