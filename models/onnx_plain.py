"""ONNX in plain operators: what a reader of operators one by one does not take, written out.

Local functions, as some exporters keep modules, are put in place of their calls. A Gemm on values
that the graph computes becomes MatMul, Mul and Add; a constant before a MatMul is transposed twice,
as the reader would take it for the weights of a layer, which stand behind. None of it changes what
the network is. For the sandboxed child alone.
"""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np

from adap.models import onnx_folding
from adap.models.errors import ModelFileError
from adap.models.graphs import MAX_NODES, refused_operator
from adap.models.header import shown


def inlined(model: Any) -> Any:
    """The model with the bodies of its local functions in place of their calls.

    How many operators that makes is counted before. Raises ModelFileError.
    """
    _check_functions(model)
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # whatever a broken function makes it raise
        raise ModelFileError(
            "expected local functions that can be put in place of their calls, got "
            f"{str(error)[:200]}: export the network again, with dynamo=True"
        ) from error


def _check_functions(model: Any) -> None:
    """Raise ModelFileError for functions that stand in for ONNX's own operators, branch or loop,
    call themselves, or unfold to too many operators."""
    for function in model.functions:
        if function.domain in ("", "ai.onnx"):
            raise ModelFileError(
                f"expected local functions in a domain of their own, got {shown(function.name)}, "
                "which would stand in for an operator of ONNX"
            )
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    on_the_way: set[tuple[str, str]] = set()

    def size_of(nodes: Any) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if any(item.HasField("g") or item.graphs for item in node.attribute):
                raise ModelFileError(refused_operator(node.op_type))
            total += count(key) if key in functions else 1
            if total > MAX_NODES:
                raise ModelFileError(
                    f"expected at most {MAX_NODES} operators, got local functions that unfold to "
                    "more"
                )
        return total

    def count(key: tuple[str, str]) -> int:
        if key not in sizes:
            if key in on_the_way:
                raise ModelFileError(
                    f"expected functions that end, got {shown(key[1])}, which calls itself"
                )
            on_the_way.add(key)
            sizes[key] = size_of(functions[key].node)
        return sizes[key]

    size_of(model.graph.node)


def read_as_opset_9(model: Any) -> int | None:
    """Let a file of opset 7 or 8 be one of 9, in place; which it was, or None.

    9 defines operators of these as they did, but for those that are left to be refused.
    """
    changed = {"Scan", "Upsample", "MaxUnpool"}
    for item in model.opset_import:
        older = item.version in (7, 8) and item.domain in ("", "ai.onnx")
        if older and changed.isdisjoint(node.op_type for node in model.graph.node):
            was, item.version = int(item.version), 9
            return was
    return None


def put_in_order(model: Any) -> None:
    """Each operator behind those that it waits for, as onnxruntime runs them; in place.

    Tools that make half precision of a file put their casts last. What waits for ever stays last.
    """
    graph = model.graph
    made_here = {name for node in graph.node for name in node.output if name}
    waiting = {
        i: {name for name in node.input if name in made_here} for i, node in enumerate(graph.node)
    }
    users: dict[str, list[int]] = {}
    for i, names in waiting.items():
        for name in names:
            users.setdefault(name, []).append(i)
    ready = [i for i, names in waiting.items() if not names]
    heapq.heapify(ready)
    order = []
    while ready:  # of all that may come next, the one that came first in the file
        i = heapq.heappop(ready)
        order.append(i)
        for name in graph.node[i].output:
            for user in users.pop(name, ()):
                waiting[user].discard(name)
                if not waiting[user]:
                    heapq.heappush(ready, user)
    if order != sorted(order):
        order += sorted(waiting.keys() - set(order))
        onnx_folding.replace(graph.node, [graph.node[i] for i in order])


def write_out(model: Any) -> None:
    """Each product that is no layer with weights of its own in operators that are; in place."""
    graph = model.graph
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            ranks[node.output[0]] = max((len(item.t.dims) for item in node.attribute), default=0)
    nodes: list[Any] = []
    for node in graph.node:
        given = [name for name in node.input if name]
        known = [name in ranks for name in given]
        if node.domain or known in ([False, True], [False, True, True]):
            nodes.append(node)
        elif node.op_type == "Gemm" and len(known) > 1:
            nodes += _product(node, graph, ranks)
        elif node.op_type == "MatMul" and known == [True, False]:
            nodes += _behind(node, ranks)
        else:
            nodes.append(node)
    onnx_folding.replace(graph.node, nodes)


def _behind(node: Any, ranks: Mapping[str, int]) -> list[Any]:
    """A MatMul whose first factor is a constant, which is then none to the reader."""
    from onnx import helper

    left, right = node.input
    last = ranks[left]
    if last < 2:
        return [node]
    swap = [*range(last - 2), last - 1, last - 2]
    names = [f"adap.{node.output[0]}.{i}" for i in (0, 1)]
    return [
        helper.make_node("Transpose", [left], names[:1], perm=swap),
        helper.make_node("Transpose", names[:1], names[1:], perm=swap),
        helper.make_node("MatMul", [names[1], right], node.output),
    ]


def _product(node: Any, graph: Any, ranks: Mapping[str, int]) -> list[Any]:
    """What a Gemm computes, alpha A B + beta C, either of A and B transposed before."""
    from onnx import helper, numpy_helper

    name, (left, right, *bias) = f"adap.{node.output[0]}", node.input
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    made: list[Any] = []

    def step(operator: str, *inputs: str, **attributes: Any) -> str:
        result = f"{name}.{len(made)}"
        made.append(helper.make_node(operator, inputs, [result], **attributes))
        return result

    def scaled(value: str, factor: str) -> str:
        number = np.array(given.get(factor, 1.0), np.float32)
        if number == 1:
            return value
        graph.initializer.append(numpy_helper.from_array(number, f"{name}.{factor}"))
        return step("Mul", value, f"{name}.{factor}")

    for _ in range(1 if given.get("transA") else 2 if left in ranks else 0):
        left = step("Transpose", left, perm=[1, 0])
    if given.get("transB"):
        right = step("Transpose", right, perm=[1, 0])
    value = scaled(step("MatMul", left, right), "alpha")
    if bias and bias[0]:
        step("Add", value, scaled(bias[0], "beta"))
    made[-1].output[0] = node.output[0]
    return made
