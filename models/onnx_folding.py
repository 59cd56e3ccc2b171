"""What an ONNX graph computes from constants alone, computed once, by onnxruntime.

A few numbers may ask for a constant of any size, and for any work: sizes and operations are
foreseen before anything is run. What would grow too large, or has no size that can be told, stays
in the graph, whose cost is looked at as a whole; too much work is refused.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.models import onnx_weights
from adap.models.errors import ModelFileError
from adap.models.graphs import OPERATORS

MAX_NUMBERS = 2**24  # of a computed constant, where no tensor of the file has more: 64 MiB
MAX_OPERATIONS = 4 * 10**9  # for all constants together: seconds of a slow core
MAX_ROUNDS = 50  # each makes constants that let the sizes of the next be told

Shape = tuple[int, ...]

_RANDOM = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
_LEFT = (
    *("Pad", "Range", "Resize", "Upsample", "OneHot", "EyeLike", "Einsum"),
    *("AffineGrid", "Attention", "GRU", "GridSample", "LSTM", "RNN", "RotaryEmbedding"),
)
_FEWER = ("NonZero", "Compress", "Unique")  # at most each number's place; which, only numbers say
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_WINDOWS = ("AveragePool", "LpPool", "MaxPool", "LRN")
_PLAIN = frozenset(OPERATORS) - {*_PRODUCTS, *_WINDOWS}  # one operation for each number


def fold(model: Any, held: onnx_weights.Held) -> int:
    """Compute in place what does not depend on the images; how many values came of it.

    Raises ModelFileError where that is too much work, or onnxruntime cannot.
    """
    largest = max((math.prod(tensor.dims) for tensor in model.graph.initializer), default=0)
    folded = work = 0
    for _ in range(MAX_ROUNDS):
        nodes, more = _foldable(model, max(largest, MAX_NUMBERS), work)
        if not nodes:
            break
        work += more
        folded += _compute(model, nodes, held)
    return folded


def _foldable(model: Any, most: int, before: int) -> tuple[list[Any], int]:
    """The operators on constants of which no result has more than `most` numbers; their work."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    candidates = []
    for node in graph.node:
        if node.op_type == "Constant":
            known.update(node.output)
        elif (
            node.input
            and not node.domain
            and not node.op_type.startswith((*_RANDOM, *_LEFT))
            and all(name in known for name in node.input if name)
        ):
            candidates.append(node)
            known.update(node.output)
    if not candidates:
        return [], 0
    shapes = _shapes(model, candidates)
    left: set[str] = set()
    nodes, work = [], 0
    for node in candidates:
        sizes = [_numbers(node, name, shapes) for name in node.output if name]
        if not left.isdisjoint(node.input) or any(size is None or size > most for size in sizes):
            left.update(node.output)
            continue
        work += _operations(node, shapes, max((size or 0 for size in sizes), default=0))
        if before + work > MAX_OPERATIONS:
            raise ModelFileError(
                f"expected constants that take at most {MAX_OPERATIONS:.3g} operations to compute, "
                f"got at least {before + work:.3g} up to {node.op_type}: compute them before the "
                "export, so that the file holds the results"
            )
        nodes.append(node)
    return nodes, work


def _numbers(node: Any, name: str, shapes: Mapping[str, Shape]) -> int | None:
    """The most numbers that a result may have; None where that cannot be told."""
    if name in shapes:
        return math.prod(shapes[name])
    source = shapes.get(node.input[0])
    if node.op_type in _FEWER and source is not None:
        return math.prod(source) * max(len(source), 1)
    return None


def _operations(node: Any, shapes: Mapping[str, Shape], made: int) -> int:
    """At least as many as it takes, from the shapes; made: numbers of the largest result."""
    given = [shapes.get(name, ()) for name in node.input if name]
    largest = max((math.prod(shape) for shape in given), default=0)
    match node.op_type:
        case "MatMul" | "Gemm":
            return made * max(given[0], default=1)
        case "Conv" | "ConvTranspose" if len(given) > 1:
            return max(made, math.prod(given[0])) * math.prod(given[1][1:])
        case operator if operator in _PLAIN or operator in _FEWER:
            return max(made, largest)
        case _:
            return largest * max(made, math.isqrt(largest))


def _shapes(model: Any, nodes: Iterable[Any]) -> dict[str, Shape]:
    """What onnx infers of the values of these operators, and the shapes of the constants.

    Large tensors are shown to it by their shapes alone.
    """
    import onnx
    from onnx import helper

    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    small.graph.name = "constants"
    shapes: dict[str, Shape] = {}

    def show(name: str, tensor: Any) -> None:
        shapes[name] = tuple(tensor.dims)
        small.graph.input.append(
            helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        )

    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= onnx_weights.SMALL:
            shapes[tensor.name] = tuple(tensor.dims)
            small.graph.initializer.append(tensor)
        else:
            show(tensor.name, tensor)
    for node in model.graph.node:
        if node.op_type != "Constant":
            continue
        large = [
            a.t
            for a in node.attribute
            if a.name == "value" and math.prod(a.t.dims) > onnx_weights.SMALL
        ]
        if large:
            show(node.output[0], large[0])
        else:
            small.graph.node.append(node)
    small.graph.node.extend(nodes)
    try:
        inferred = onnx.shape_inference.infer_shapes(small, data_prop=True).graph
    except Exception as error:  # whatever a broken graph makes it raise
        raise ModelFileError(
            f"expected constants whose sizes can be told, got {str(error)[:200]}"
        ) from error
    for item in inferred.value_info:
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[item.name] = tuple(max(int(d.dim_value), 0) for d in kind.shape.dim)
    return shapes


def _compute(model: Any, nodes: list[Any], held: onnx_weights.Held) -> int:
    """Run these operators and keep what others use of them; how many values that is."""
    from onnx import helper, numpy_helper

    graph = model.graph
    folded = {name for node in nodes for name in node.output if name}
    rest = [node for node in graph.node if not folded.intersection(node.output)]
    used = {name for node in rest for name in node.input} | {item.name for item in graph.output}
    wanted = sorted(folded & used)
    if folded.intersection(item.name for item in graph.output):
        raise ModelFileError("expected an output that depends on the images, got a constant")
    needed = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        [n for n in graph.node if n.op_type == "Constant" and needed.intersection(n.output)]
        + nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    small = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        values = opened(onnx_weights.whole(small, held), plain=True).run(None, {})
    except Exception as error:
        raise ModelFileError(
            f"expected constants that onnxruntime computes, got {str(error)[:200]}"
        ) from error
    replace(graph.node, rest)
    for name, value in zip(wanted, values, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    drop_dead(model)
    return len(wanted)


def constants(graph: Any) -> dict[str, NDArray[Any]]:
    """The small tensors of whole numbers, which may be shapes."""
    from onnx import TensorProto, numpy_helper

    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32)
        and 0 <= math.prod(tensor.dims) <= onnx_weights.SMALL
    }
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1:
            attribute = node.attribute[0]
            if attribute.name == "value" and math.prod(attribute.t.dims) <= onnx_weights.SMALL:
                if attribute.t.data_type in (TensorProto.INT64, TensorProto.INT32):
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif attribute.name == "value_ints":
                found[node.output[0]] = np.array(attribute.ints, np.int64)
    return found


def drop_dead(model: Any) -> None:
    """Operators and tensors that lead nowhere."""
    needed = {item.name for item in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace(model.graph.node, reversed(kept))
    unused = [i for i, t in enumerate(model.graph.initializer) if t.name not in needed]
    for i in reversed(unused):
        del model.graph.initializer[i]


def opened(content: bytes | Path, *, plain: bool) -> Any:
    """onnxruntime on a file; plain: its operators one by one, none fused with another."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # which would keep what one run took
    levels = onnxruntime.GraphOptimizationLevel
    # the highest level also keeps the weights in another order, at twice their memory
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_EXTENDED
    )
    try:
        file = str(content) if isinstance(content, Path) else content
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelFileError(
            f"expected a network that onnxruntime runs, got {str(error)[:300]}"
        ) from error


def replace(field_: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field_[:]
    field_.extend(values)
