"""Operations and memory of a network for so many images, without computing it.

The network's own code runs on stand-ins: tensors with a shape and no numbers. Only small tensors
are computed, as shapes and positions are made of them. So an operation that would take an hour, or
a tensor of a terabyte, costs nothing to foresee, and is refused before it is made. Operations of
matrix products, convolutions and attention are counted by torch, pooling as its window for each
number; all else as one for each number.

It does NOT foresee what depends on more numbers than are computed, and refuses that; nor what a
gradient costs, which is a small multiple. Limits of time and memory stand behind it.
"""

import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

from adap.models.errors import ModelFileError
from adap.models.graphs import Node
from adap.models.header import InputSpec
from adap.models.limits import CostLimits
from adap.models.onnx_files import GraphNetwork

COMPUTED = 2**16  # numbers of a tensor that is really computed
POOLED = 16  # operations of a matrix product that take as long as a number in a pooling window
SLACK_FLOPS = 10**9  # work too small to ask what it grows with
SLACK_BYTES = 2**26
PASS_FLOPS = 10**11  # of one pass in scoring: a few seconds of a slow core
PASS_BYTES = 2**31
_END = 2**31 - 1  # of a slice: exporters write this or more for "to the last"
GROWTH = 2  # times the work of one image that each of several may take

# what networks raise where sizes do not fit each other, or no network was built for this size
_MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError)

_aten = torch.ops.aten
_VALUES = (  # answers that are numbers, or as many as the numbers say: of small tensors only
    *(_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.nonzero),
    *(_aten.masked_select, _aten.item),
)


@dataclass(frozen=True)
class Cost:
    """Of one forward pass."""

    flops: int
    bytes: int  # of all values that are there at one moment, weights excepted


def check_cost(network: nn.Module, spec: InputSpec, limits: CostLimits) -> Cost:
    """The cost of one image; ModelFileError if that is over the limits, or grows with the others.

    The work of several images may be theirs together: what grows faster would stop a service that
    scores many at once, and no network that ranks images needs it.
    """
    one = foresee(network, spec, 1, limits)
    for batch in _sizes(network, served_batch(one, limits.batch)):
        most = CostLimits(
            flops=GROWTH * batch * one.flops + SLACK_FLOPS,
            bytes=GROWTH * batch * one.bytes + SLACK_BYTES,
        )
        foresee(network, spec, batch, most, alone=one)
    return one


def served_batch(one: Cost, most: int) -> int:
    """How many images to score in a pass, so that it ends soon: of a costly network, few."""
    return max(1, min(most, PASS_FLOPS // max(one.flops, 1), PASS_BYTES // max(one.bytes, 1)))


def foresee(
    network: Callable[[Tensor], Any],
    spec: InputSpec,
    batch: int,
    limits: CostLimits,
    *,
    alone: Cost | None = None,
) -> Cost:
    """The cost of a pass; ModelFileError where it is over the limits or cannot be told.

    alone: what one image costs, for the sentence that refuses several.
    """
    images = torch.empty((batch, spec.channels, spec.height, spec.width), device="meta")
    meter = _Meter(batch, limits, alone)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that torch does not count
    try:
        with torch.no_grad(), meter:
            network(_StandIn(images))
    except _MISFITS as error:
        raise ModelFileError(
            f"expected a network that runs on {'an image' if batch == 1 else f'{batch} images'} of "
            f"the declared size, {_size(spec)}, got {str(error)[:300] or repr(error)}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Cost(meter.flops, meter.largest)


def _sizes(network: nn.Module, most: int) -> Sequence[int]:
    """The batches to look at: all where a size may shrink as the batch grows, else the largest.

    Where none shrinks, the largest batch costs most.
    """
    graphs = [module for module in network.modules() if isinstance(module, GraphNetwork)]
    for graph in graphs:
        tensors = graph.tensors()
        if any(_may_shrink(node, tensors) for node in graph.graph.nodes):
            return range(2, most + 1)
    return [most] if most > 1 else []


def _may_shrink(node: Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a size that the operator makes may become smaller, or go, as another grows.

    A size behind any other operator of `OPERATORS` is a sum or product of the sizes before it, or
    cut at a constant, and so grows with them.
    """
    match node.operator:
        case "Shape" | "Size":
            return True
        case "Squeeze":  # without axes it takes whatever is 1
            return "axes" not in node.attributes and len(node.inputs) < 2
        case "Split":  # into equal parts: the last is what remains
            return "split" not in node.attributes and len(node.inputs) < 2
        case "Resize":  # of a fixed aspect ratio: a longer side makes the other shorter
            return node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        case "Slice":
            return _crosses(node, tensors)
        case _:
            return False


def _crosses(node: Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a slice runs from a place counted from one end to one counted from the other."""
    bounds: list[list[int]] = []
    for place, name in enumerate(("starts", "ends", "axes", "steps")):
        held = node.attributes.get(name, [])
        if len(node.inputs) > place + 1 and node.inputs[place + 1]:
            if node.inputs[place + 1] not in tensors:
                return True
            held = tensors[node.inputs[place + 1]].flatten().tolist()
        bounds.append([int(n) for n in held] if isinstance(held, list) else [])
    starts, ends, _, steps = bounds
    return any(step < 0 for step in steps) or any(
        start < 0 <= end < _END for start, end in zip(starts, ends, strict=False)
    )


class _StandIn(torch.Tensor):
    """A tensor on the CPU, to whoever asks; inside, one of the same shape without numbers."""

    shadow: Tensor

    @staticmethod
    def __new__(cls, shadow: Tensor) -> "_StandIn":
        made: _StandIn = torch.Tensor._make_wrapper_subclass(
            cls,
            shadow.size(),
            strides=shadow.stride(),
            storage_offset=shadow.storage_offset(),
            dtype=shadow.dtype,
            device=torch.device("cpu"),
        )
        made.shadow = shadow
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} without a meter")


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation on stand-ins, and adds up what it would have cost."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not asked of the compiler, which nobody calls here and which takes a second to import."""
        return False

    def __init__(self, batch: int, limits: CostLimits, alone: Cost | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.largest = 0
        self._now = 0
        self._batch, self._limits, self._alone = batch, limits, alone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, structure = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        real = not any(isinstance(value, _StandIn) for value in tensors) and all(
            value.numel() <= COMPUTED for value in tensors
        )
        packet = func.overloadpacket
        if packet in _VALUES:
            if not real:
                raise _untold(f"{packet.__name__} of numbers that depend on the images")
            return func(*args, **kwargs)
        shadows, options = tree_unflatten(list(map(_shadow, flat)), structure)
        if options.get("device") is not None or _is_factory(func):
            options = {**options, "device": torch.device("meta")}
        try:
            made = func(*shadows, **options)
        except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, RuntimeError) and "data-dependent" not in str(error):
                raise  # as it would on numbers: shapes that do not fit
            raise _untold(f"{packet.__name__}: {str(error)[:200]}") from error
        outputs = [value for value in tree_flatten(made)[0] if isinstance(value, Tensor)]
        self._count(packet, shadows, options, made, outputs)
        if real and all(value.numel() <= COMPUTED for value in outputs):
            return func(*args, **kwargs)
        if func._schema.is_mutable and isinstance(args[0], _StandIn):
            return args[0]
        return tree_map(
            lambda value: self._kept(value) if isinstance(value, Tensor) else value, made
        )

    def _count(
        self, packet: Any, args: Any, kwargs: Any, made: Any, outputs: Sequence[Tensor]
    ) -> None:
        if packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **kwargs, out_val=made))
        else:
            inputs = [value for value in tree_flatten(args)[0] if isinstance(value, Tensor)]
            most = max((value.numel() for value in (*inputs, *outputs)), default=0)
            window = _window(packet, args, kwargs)
            self.flops += max(most, window * max((v.numel() for v in outputs), default=0))
        coming = sum(map(_bytes, outputs))
        self.largest = max(self.largest, self._now + coming)
        if self.flops > self._limits.flops:
            raise self._refusal(
                f"{self.flops:.3g} operations", f"{self._limits.flops:.3g} operations", "FLOPS"
            )
        if self.largest > self._limits.bytes:
            raise self._refusal(f"{self.largest} bytes", f"{self._limits.bytes} bytes", "BYTES")

    def _kept(self, value: Tensor) -> _StandIn:
        held = _bytes(value)
        made = _StandIn(value)
        self._now += held
        weakref.finalize(made, self._gone, held)
        return made

    def _gone(self, held: int) -> None:
        self._now -= held

    def _refusal(self, got: str, most: str, name: str) -> ModelFileError:
        if self._alone is None:
            return ModelFileError(
                f"expected a network that takes at most {most} for one image "
                f"(ADAP_MAX_MODEL_{name}), got at least {got}"
            )
        return ModelFileError(
            f"expected work that grows with the number of images, got at least {got} for "
            f"{self._batch} images, and {self._alone.flops:.3g} operations and "
            f"{self._alone.bytes} bytes for one: sizes must not grow faster than the batch"
        )


def _shadow(value: Any) -> Any:
    if isinstance(value, _StandIn):
        return value.shadow
    if isinstance(value, Tensor):
        return value.detach().to("meta") if value.device.type != "meta" else value
    return value


def _bytes(value: Tensor) -> int:
    """What it takes where it is made; onnxruntime makes what torch only shows another view of."""
    return value.numel() * value.element_size()


def _window(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """What a pooling operation takes for each number that it gives; 1 for all others."""
    found = re.search(r"pool(\d)d", packet.__name__)
    names = [argument.name for argument in packet.default._schema.arguments] if found else []
    if not found or "kernel_size" not in names:
        return 1
    place = names.index("kernel_size")
    kernel = args[place] if place < len(args) else kwargs["kernel_size"]
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    return POOLED * int(math.prod(sizes if len(sizes) > 1 else sizes * int(found[1])))


def _is_factory(func: Any) -> bool:
    """Whether it makes a tensor from nothing but sizes."""
    arguments = func._schema.arguments
    return any(argument.name == "device" for argument in arguments) and not any(
        str(argument.type) == "Tensor" for argument in arguments
    )


def _size(spec: InputSpec) -> str:
    channels = f"{spec.channels} channel{'' if spec.channels == 1 else 's'}"
    return f"{spec.width}x{spec.height} with {channels}"


def _untold(what: str) -> ModelFileError:
    return ModelFileError(f"expected a network whose cost can be told from its shapes, got {what}")
