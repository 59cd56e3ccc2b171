"""A scorer as a list of operations that can be bounded, or a refusal that names what cannot.

The scorer is run once on two images while torch.fx records every tensor operation it asks for
(`make_fx`), so it may be written in any way. What is recorded is checked: a decision that depends
on pixel values stops the recording, an operation that is not in `HANDLERS` is refused, nothing may
mix the images of a batch, and the list must give the scorer's own logits on other images.
"""

import copy
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adap.core.audit.certify.operations import (
    Add,
    Conv,
    Linear,
    LogSumExp,
    MaxPool,
    Operation,
    Program,
    ReLU,
    Reshape,
    Scale,
    Source,
)
from adap.core.errors import ModelError

TRACED = 2  # images in the batch that is recorded; 1 would hide what is broadcast over the batch


def trace(scorer: nn.Module, shape: tuple[int, ...], *, device: torch.device) -> Program:
    """The operations of a scorer for images of this shape (C, H, W), in float64 and eval mode.

    The scorer itself is left as it is. Raises ModelError for a network that cannot be bounded.
    """
    # Slow to import, and needed by nobody else.
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    network = copy.deepcopy(scorer).to(device=device, dtype=torch.float64).eval()
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)  # any images do; the same ones each time

    def some_images() -> Tensor:
        pixels = torch.rand(TRACED, *shape, dtype=torch.float64, generator=generator)
        return pixels.to(device)

    example, others = some_images(), some_images()
    with torch.no_grad():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the recording, not about the network
                recorded = make_fx(functionalize(network))(example)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                "expected a network made of tensor operations alone, with nothing that depends on "
                f"the values of pixels, got one whose operations cannot be recorded: {error}"
            ) from error
        program = _Reader(example, recorded).program()
        _check_same(program, network, others)
    return program


def _check_same(program: Program, network: nn.Module, images: Tensor) -> None:
    """Catches what a recording misses: values that reached the result outside torch."""
    expected, got = network(images), program.logits(images)
    if not torch.allclose(got, expected, rtol=1e-6, atol=1e-9):
        raise ModelError(
            f"expected a network that its recorded operations repeat, got logits "
            f"{expected.tolist()} and {got.tolist()} for the same images"
        )


@dataclass(frozen=True)
class _Ref:
    """A recorded value that depends on the images: the place of its operation."""

    place: int


class _Reader:
    """Turns the recorded graph into a program, node by node, running it along for the shapes."""

    def __init__(self, example: Tensor, recorded: torch.fx.GraphModule) -> None:
        self._recorded = recorded
        self._result = Program()
        self._refs: dict[torch.fx.Node, Any] = {}  # _Ref, or the value of a constant
        self._values: dict[torch.fx.Node, Any] = {}  # what the node gave for the example
        self._example = example

    def program(self) -> Program:
        self._recorded.graph.eliminate_dead_code()
        for node in self._recorded.graph.nodes:
            if node.op == "output":
                return self._finish(node)
            self._read(node)
        raise AssertionError("a graph ends with its output")

    def _read(self, node: torch.fx.Node) -> None:
        if node.op == "placeholder":
            self._values[node] = self._example
            shape = tuple(self._example.shape[1:])
            self._refs[node] = _Ref(self._result.append(Source(shape=shape)))
            return
        if node.op == "get_attr":
            value = self._recorded
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self._values[node] = self._refs[node] = value
            return
        assert callable(node.target)
        args, kwargs = self._mapped(node, self._values)
        value = self._values[node] = node.target(*args, **kwargs)
        if not any(isinstance(self._refs[source], _Ref) for source in node.all_input_nodes):
            self._refs[node] = value
            return
        args, kwargs = self._mapped(node, self._refs)
        if node.target is operator.getitem and args[1] == 0:
            self._refs[node] = args[0]  # of (values, indices) or (values, statistics)
            return
        handler = HANDLERS.get(str(node.target))
        if handler is None:
            raise _refused(node)
        first = value[0] if isinstance(value, tuple) else value
        if not isinstance(first, Tensor) or first.dim() == 0 or len(first) != TRACED:
            raise _refused(node, "it mixes the images of a batch")
        site = _Site(node, self._result, tuple(first.shape[1:]), first.device)
        self._refs[node] = _Ref(self._result.append(handler(site, *args, **kwargs)))

    def _mapped(
        self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = torch.fx.map_arg(node.args, values.__getitem__)
        kwargs = torch.fx.map_arg(node.kwargs, values.__getitem__)
        return tuple(args), dict(kwargs)

    def _finish(self, node: torch.fx.Node) -> Program:
        (output,) = node.args
        ref = self._refs[output] if isinstance(output, torch.fx.Node) else None
        if not isinstance(ref, _Ref):
            raise ModelError("expected logits that depend on the images, got constants")
        operations = self._result.operations
        if operations[ref.place].shape != ():
            raise ModelError(
                "expected one logit an image, (B,), got "
                f"(B, {', '.join(map(str, operations[ref.place].shape))})"
            )
        assert ref.place == len(operations) - 1  # dead code was removed, so the result is last
        return self._result


@dataclass(frozen=True)
class _Site:
    """Where an operation stands: for its shapes and for the message if it is refused."""

    node: torch.fx.Node
    result: Program
    shape: tuple[int, ...]  # of the output, for one image
    device: torch.device

    def shape_of(self, x: _Ref) -> tuple[int, ...]:
        return self.result.operations[x.place].shape

    def constant(self, value: Any) -> Tensor:
        """A constant as it broadcasts to (B, *shape), without taking images apart."""
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        sizes = zip(reversed(tensor.shape), reversed((1, *self.shape)), strict=False)
        fits = tensor.dim() <= 1 + len(self.shape) and all(n in (1, full) for n, full in sizes)
        self.need(fits, "its constant differs from image to image")
        return tensor

    def need(self, met: bool, reason: str) -> None:
        if not met:
            raise self.refused(reason)

    def refused(self, reason: str) -> ModelError:
        return _refused(self.node, reason)


def _refused(node: torch.fx.Node, reason: str = "") -> ModelError:
    return ModelError(
        "expected convolution, linear, BatchNorm, ReLU, average and max pooling, flatten, sums of "
        "branches and constants, logsumexp of logits, "
        f"got {node.target}{f': {reason}' if reason else ''}"
    )


def _pair(value: Any, default: tuple[int, int] | None = None) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    if not values and default is not None:
        return default
    return (values[0], values[-1])


def _are_refs(*values: Any) -> bool:
    return all(isinstance(value, _Ref) for value in values)


# --- one handler for each recorded operation, with the arguments of that operation ----------------


def _scale(site: _Site, x: Any, scale: Any, bias: Any) -> Operation:
    site.need(site.shape_of(x) == site.shape, "its constant makes the images larger")
    return Scale(
        inputs=(x.place,),
        shape=site.shape,
        scale=site.constant(scale),
        bias=site.constant(bias),
    )


def _add(site: _Site, x: Any, y: Any, *, alpha: float = 1) -> Operation:
    site.need(alpha == 1, f"alpha is {alpha}")
    if _are_refs(x, y):
        site.need(site.shape_of(x) == site.shape_of(y), "its branches have different shapes")
        return Add(inputs=(x.place, y.place), shape=site.shape)
    return _scale(site, x, 1.0, y) if _are_refs(x) else _scale(site, y, 1.0, x)


def _subtract(site: _Site, x: Any, y: Any, *, alpha: float = 1) -> Operation:
    site.need(alpha == 1, f"alpha is {alpha}")
    if _are_refs(x, y):
        return _add(site, x, _Ref(site.result.append(_negated(site, y))))
    return _scale(site, x, 1.0, -y) if _are_refs(x) else _scale(site, y, -1.0, x)


def _negated(site: _Site, x: _Ref) -> Operation:
    one = torch.ones((), dtype=torch.float64, device=site.device)
    return Scale(inputs=(x.place,), shape=site.shape_of(x), scale=-one, bias=0 * one)


def _multiply(site: _Site, x: Any, y: Any) -> Operation:
    site.need(not _are_refs(x, y), "both sides depend on the images")
    return _scale(site, x, y, 0.0) if _are_refs(x) else _scale(site, y, x, 0.0)


def _divide(site: _Site, x: Any, y: Any) -> Operation:
    site.need(not _are_refs(y), "the divisor depends on the images")
    return _scale(site, x, 1 / torch.as_tensor(y, dtype=torch.float64), 0.0)


def _batch_norm(
    site: _Site,
    x: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    _momentum: float,
    eps: float,
) -> Operation:
    site.need(not training, "it uses the statistics of the batch")
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    over = (1, -1, *(1,) * (len(site.shape) - 1))  # the channels come first
    return _scale(site, x, scale.view(over), shift.view(over))


def _batch_norm_in_eval(site: _Site, x: Any, *args: Any) -> Operation:
    weight, bias, mean, variance, momentum, eps = args
    return _batch_norm(site, x, weight, bias, mean, variance, False, momentum, eps)


def _convolution(
    site: _Site,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    _output_padding: Any,
    groups: int,
) -> Operation:
    site.need(not _are_refs(weight), "its weights depend on the images")
    site.need(not transposed and weight.dim() == 4, "only two-dimensional, not transposed")
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return Conv(
        inputs=(x.place,),
        shape=site.shape,
        input_shape=site.shape_of(x),
        weight=weight,
        bias=bias.view(1, -1, 1, 1),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


def _addmm(
    site: _Site, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1
) -> Operation:
    site.need(_are_refs(x) and not _are_refs(bias) and not _are_refs(weight), "not x W + b")
    site.need(beta == 1 and alpha == 1, f"beta is {beta}, alpha is {alpha}")
    return Linear(inputs=(x.place,), shape=site.shape, weight=weight.T, bias=site.constant(bias))


def _mm(site: _Site, x: Any, weight: Any) -> Operation:
    site.need(_are_refs(x) and not _are_refs(weight), "not x W")
    return Linear(inputs=(x.place,), shape=site.shape, weight=weight.T, bias=weight.new_zeros(1))


def _relu(site: _Site, x: Any) -> Operation:
    return ReLU(inputs=(x.place,), shape=site.shape)


def _max_pool(
    site: _Site,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Operation:
    site.need(_pair(dilation) == (1, 1) and not ceil_mode, "dilation or ceil_mode")
    return MaxPool(
        inputs=(x.place,),
        shape=site.shape,
        kernel=_pair(kernel),
        stride=_pair(stride, _pair(kernel)),
        padding=_pair(padding),
    )


def _average(
    site: _Site, x: _Ref, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Operation:
    """Average pooling as a convolution of each channel on its own."""
    channels = site.shape_of(x)[0]
    weight = torch.full(
        (channels, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64, device=site.device
    )
    return Conv(
        inputs=(x.place,),
        shape=(*site.shape, 1, 1)[:3],  # a mean may have dropped the height and width of 1
        input_shape=site.shape_of(x),
        weight=weight,
        bias=weight.new_zeros(()),
        stride=stride,
        padding=padding,
        groups=channels,
    )


def _average_pool(
    site: _Site,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Operation:
    padded = _pair(padding) != (0, 0)
    site.need(not ceil_mode and divisor_override is None, "ceil_mode or divisor_override")
    site.need(count_include_pad or not padded, "padding that is not counted")
    return _average(site, x, _pair(kernel), _pair(stride, _pair(kernel)), _pair(padding))


def _adaptive_average_pool(site: _Site, x: Any, size: Any) -> Operation:
    channels, height, width = site.shape_of(x)
    rows, columns = _pair(size)
    if height % rows == 0 and width % columns == 0:
        kernel = (height // rows, width // columns)
        return _average(site, x, kernel, kernel, (0, 0))
    # windows of different sizes, which may overlap: a matrix over the places of a channel
    down, across = (
        F.adaptive_avg_pool1d(
            torch.eye(size, dtype=torch.float64, device=site.device), windows
        ).T.contiguous()
        for size, windows in ((height, rows), (width, columns))
    )
    weight = torch.kron(down, across)  # (rows * columns, height * width)
    places = site.result.append(
        Reshape(
            inputs=(x.place,),
            shape=(channels, height * width),
            input_shape=(channels, height, width),
        )
    )
    pooled = site.result.append(
        Linear(
            inputs=(places,),
            shape=(channels, rows * columns),
            weight=weight,
            bias=weight.new_zeros(1),
        )
    )
    return Reshape(inputs=(pooled,), shape=site.shape, input_shape=(channels, rows * columns))


def _mean(site: _Site, x: Any, dims: Any, keepdim: bool = False) -> Operation:
    shape = site.shape_of(x)
    over = {dim % (len(shape) + 1) for dim in dims}
    site.need(len(shape) == 3 and over == {2, 3}, "only over height and width")
    pooled = _average(site, x, (shape[1], shape[2]), (1, 1), (0, 0))
    if keepdim:
        return pooled
    return _reshape(site, _Ref(site.result.append(pooled)))


def _reshape(site: _Site, x: Any, *_args: Any) -> Operation:
    before = site.shape_of(x)
    site.need(math.prod(before) == math.prod(site.shape), "it leaves out elements")
    return Reshape(inputs=(x.place,), shape=site.shape, input_shape=before)


def _index(site: _Site, x: Any, indices: Any) -> Operation:
    """Some classes of the logits, as a matrix of zeros and ones."""
    shape, columns = site.shape_of(x), list(indices)
    some = len(shape) == 1 and len(columns) == 2 and columns[0] is None
    site.need(
        some and not _are_refs(columns[1]) and columns[1].dim() == 1,
        "only constant columns of logits (B, K)",
    )
    each = torch.eye(shape[0], dtype=torch.float64, device=site.device)
    weight = each[columns[1]]
    return Linear(inputs=(x.place,), shape=site.shape, weight=weight, bias=weight.new_zeros(1))


def _logsumexp(site: _Site, x: Any, dims: Any, _keepdim: bool = False) -> Operation:
    shape = site.shape_of(x)
    over = {dim % (len(shape) + 1) for dim in dims}
    site.need(len(shape) == 1 and over == {1}, "only over the columns of logits (B, K)")
    if shape == (1,):
        return _reshape(site, x)  # of one element that element
    return LogSumExp(inputs=(x.place,), shape=site.shape, input_shape=shape)


HANDLERS: dict[str, Callable[..., Operation]] = {
    "aten.add.Tensor": _add,
    "aten.sub.Tensor": _subtract,
    "aten.mul.Tensor": _multiply,
    "aten.div.Tensor": _divide,
    "aten.native_batch_norm.default": _batch_norm,
    "aten.cudnn_batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_in_eval,
    "aten.convolution.default": _convolution,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _mm,
    "aten.relu.default": _relu,
    "aten.max_pool2d_with_indices.default": _max_pool,
    "aten.avg_pool2d.default": _average_pool,
    "aten._adaptive_avg_pool2d.default": _adaptive_average_pool,
    "aten.mean.dim": _mean,
    "aten.index.Tensor": _index,
    "aten.logsumexp.default": _logsumexp,
    # the same elements in the same order, if none is left out
    "aten.view.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.squeeze.dims": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.select.int": _reshape,
    "aten.alias.default": _reshape,
    "aten.clone.default": _reshape,
    "aten.detach.default": _reshape,
}
