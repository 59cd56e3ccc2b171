"""Branches of an ONNX graph that the size of the images decides, once that is declared.

PyTorch writes `squeeze(1)` and whatever it scripts as an If on a size: with images of one size it
takes the same way each time. What is asked is computed for batches of two and of three, from sizes
alone; where both agree, the branch that is taken stands in place of the If. All others are left, to
be refused by their name. For the sandboxed child alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adap.models import onnx_folding
from adap.models.errors import ModelFileError

Shapes = Callable[[int], Mapping[str, tuple[int, ...]]]

MAX_BRANCHES = 100
MAX_ASKED = 50  # operators that one question takes
_FEW = 8  # numbers of a constant in a question
# None of these makes more numbers of few: a question stays as small as it was.
_ASKING = frozenset(
    (
        *("Add", "And", "Cast", "Constant", "Div", "Equal", "Gather", "Greater"),
        *("GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Mod", "Mul", "Not", "Or"),
        *("ReduceProd", "Shape", "Size", "Slice", "Squeeze", "Sub"),
    )
)
_BATCHES = (2, 3)


def has_branches(model: Any) -> bool:
    """Whether the graph branches at all."""
    return any(node.op_type == "If" for node in model.graph.node)


def settle(model: Any, shapes: Shapes) -> int:
    """Put the branches that sizes decide in place of their Ifs; how many there were.

    shapes: the sizes of values for so many images, as far as they can be told.
    """
    settled = 0
    while settled < MAX_BRANCHES:
        for place, node in enumerate(model.graph.node):
            if node.op_type == "If" and (taken := _taken(model, node, shapes)) is not None:
                _put(model.graph, place, node, taken)
                settled += 1
                break
        else:
            break
    return settled


def _taken(model: Any, node: Any, shapes: Shapes) -> Any | None:
    """The branch that images of this size take in batches of any number; None: not told."""
    question = _question(model.graph, node.input[0])
    if question is None:
        return None
    answers = {_answer(model, question, node.input[0], shapes(batch)) for batch in _BATCHES}
    if len(answers) > 1 or None in answers:
        return None
    name = "then_branch" if answers == {True} else "else_branch"
    branch = next((item.g for item in node.attribute if item.name == name), None)
    inner = [] if branch is None else [item for n in branch.node for item in n.attribute]
    if branch is None or any(item.HasField("g") or item.graphs for item in inner):
        return None
    return branch


def _question(graph: Any, name: str) -> list[Any] | None:
    """The operators that lead to a value from sizes and constants; None where others do."""
    makers = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found: list[Any] = []
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        if name in tensors:
            if len(tensors[name].dims) > 1 or math.prod(tensors[name].dims) > _FEW:
                return None
            continue
        node = makers.get(name)
        if node is None or node.domain or node.op_type not in _ASKING or len(found) == MAX_ASKED:
            return None
        if any(len(item.t.dims) > 1 or math.prod(item.t.dims) > _FEW for item in node.attribute):
            return None
        if node not in found:
            found.append(node)
        if node.op_type not in ("Shape", "Size"):
            waiting += node.input
    return [node for node in graph.node if node in found]


def _answer(
    model: Any, question: list[Any], name: str, shapes: Mapping[str, tuple[int, ...]]
) -> bool | None:
    from onnx import helper, numpy_helper

    nodes, known = [], []
    for node in question:
        if node.op_type not in ("Shape", "Size"):
            nodes.append(node)
            continue
        if node.input[0] not in shapes:
            return None
        shape = shapes[node.input[0]]
        bounds = {item.name: item.i for item in node.attribute}
        size = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        value = np.array(math.prod(shape) if node.op_type == "Size" else size, np.int64)
        known.append(numpy_helper.from_array(value, node.output[0]))
    used = {one for node in nodes for one in node.input} | {name}
    known += [tensor for tensor in model.graph.initializer if tensor.name in used]
    asked = helper.make_graph(
        nodes, "question", [], [helper.make_empty_tensor_value_info(name)], known
    )
    small = helper.make_model(asked, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        (answer,) = onnx_folding.opened(small.SerializeToString(), plain=True).run(None, {})
    except Exception as error:  # whatever a broken graph makes it raise
        raise ModelFileError(
            f"expected a branch whose question onnxruntime answers, got {str(error)[:200]}"
        ) from error
    answer = np.asarray(answer)
    return bool(answer.reshape(-1)[0]) if answer.size == 1 else None


def _put(graph: Any, place: int, node: Any, branch: Any) -> None:
    """The operators of a branch in place of the If, under names that only it has."""
    from onnx import NodeProto, TensorProto, helper

    own = {tensor.name for tensor in branch.initializer}
    own |= {name for inner in branch.node for name in inner.output if name}
    if len(branch.output) != len(node.output):
        raise ModelFileError("expected a branch that answers as its If does, got another count")

    def renamed(name: str) -> str:
        return f"{node.output[0]}.{name}" if name in own else name

    made = []
    for inner in branch.node:
        copy = NodeProto()
        copy.CopyFrom(inner)
        copy.input[:] = [renamed(name) for name in inner.input]
        copy.output[:] = [renamed(name) for name in inner.output]
        made.append(copy)
    for tensor in branch.initializer:
        held = TensorProto()
        held.CopyFrom(tensor)
        held.name = renamed(tensor.name)
        graph.initializer.append(held)
    made += [
        helper.make_node("Identity", [renamed(answer.name)], [name])
        for answer, name in zip(branch.output, node.output, strict=True)
        if name
    ]
    onnx_folding.replace(graph.node, [*graph.node[:place], *made, *graph.node[place + 1 :]])
