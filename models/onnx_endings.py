"""What an ONNX network does behind its logits, cut off so that they are audited.

A softmax or a sigmoid saturates, and hides from an attack what it could follow. So does what only
scales, clips, turns round or picks from its answer: `100 * p`, `1 - p`, `p[:, 1]`. None of it
changes which image ranks first, but that it rounds numbers to equal ones. By an `Ending` the
file's own answers are compared all the same. For the sandboxed child alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adap.models import onnx_folding
from adap.models.errors import ModelFileError
from adap.models.header import OutputSpec
from adap.reading import Fact

Kind = Literal["softmax", "sigmoid", "tanh"]

_KINDS: dict[str, Kind] = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_PASSING = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast")
_PICKING = ("Gather", "Slice")
_SCALING = ("Mul", "Div", "Add", "Sub", "Neg", "Clip", "Min", "Max")
MOST_CLIPPED = 1e-3  # of probabilities at either end, as exporters keep them off 0 and 1


@dataclass(frozen=True)
class _Step:
    """One operator behind the probabilities: scale * value + shift, or held between two bounds."""

    scale: float = 1.0
    shift: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def __call__(self, values: Tensor) -> Tensor:
        return (values * self.scale + self.shift).clamp(self.low, self.high)


@dataclass(frozen=True)
class Ending:
    """What a file answers, by the logits that are audited in its place."""

    kind: Kind
    turned: bool = False  # the logits are those of the other side
    steps: tuple[_Step, ...] = ()

    def answer(self, logits: Tensor) -> Tensor:
        """(B, K) logits to the file's own answer."""
        logits = -logits if self.turned else logits
        answers = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
        values = torch.softmax(logits, 1) if self.kind == "softmax" else answers[self.kind](logits)
        for step in self.steps:
            values = step(values)
        return values


@dataclass(frozen=True)
class Cut:
    """What was cut off, what is then declared, and what is said."""

    ending: Ending
    output: OutputSpec
    step: str
    fact: Fact


def cut(
    model: Any, output: OutputSpec, shapes: Callable[[], Mapping[str, tuple[int, ...]]]
) -> Cut | None:
    """Cut off what saturates, in place; None where the network ends in nothing of the kind.

    shapes: asked for the sizes of values where one of two classes is picked.
    Raises ModelFileError where the declaration contradicts what was found.
    """
    graph = model.graph
    numbers = _numbers(graph)
    chain = _chain(graph, numbers)
    if not chain:
        return None
    first, *path = chain
    kind, logits = _KINDS[first.op_type], first.input[0]
    steps = [_step(node, numbers) for node in path if node.op_type in _SCALING]
    picked = any(node.op_type in _PICKING for node in path)
    turned = math.prod(step.scale for step in steps) < 0
    if not _keeps_order(kind, steps):
        return None
    if picked:  # of two classes: their difference, in place of either probability
        if kind != "softmax" or output.classes is not None or shapes().get(logits, ())[1:] != (2,):
            return None
        kind, made = "sigmoid", output.model_copy(update={"kind": "logit"})
    elif kind == "tanh":
        if output.one_is_true or output.are_probabilities:
            return None  # logits of several classes, bounded as they are, are compared
        made = output
    else:
        if turned and kind == "softmax":
            return None
        made = _as_logits(output, kind)
    _check_alone(graph, first, kind)
    put = _replacement(graph, first, picked=picked, turned=turned)
    _leave_out(graph, first, path, put)
    what = f"last {first.op_type.lower()} cut off"
    scaling = sorted({node.op_type for node in path if node.op_type in _SCALING})
    if scaling:
        what += f", with what only scales it ({', '.join(scaling)})"
    audited = "the difference of its two inputs is" if picked else "its input is"
    message = (
        f"the network ends in a {first.op_type.lower()}, which was cut off: "
        f"{'the difference of its two inputs' if picked else 'its input, the logits,'} is audited, "
        "as probabilities round to 1 and hide what an attack could follow"
    )
    fact = Fact(level="info", code=f"{first.op_type.lower()}_cut_off", message=message)
    return Cut(Ending(kind, turned, tuple(steps)), made, f"{what}: {audited} audited", fact)


def _chain(graph: Any, numbers: Mapping[str, float]) -> list[Any]:
    """What saturates, then what is behind it up to the output; empty where nothing does."""
    by_output = {name: node for node in graph.node for name in node.output}
    node = by_output.get(graph.output[0].name)
    chain: list[Any] = []
    while node is not None:
        chain.insert(0, node)
        if node.op_type in _KINDS:
            return chain
        data = _data(node, numbers)
        if data is None or (len(chain) > 1 and _users(graph, node.output[0]) > 1):
            return []
        node = by_output.get(data)
    return []


def _data(node: Any, numbers: Mapping[str, float]) -> str | None:
    """The value that a node behind probabilities changes; None where it does more than that."""
    if node.op_type in _PASSING:
        to = next((item.i for item in node.attribute if item.name == "to"), 1)
        return str(node.input[0]) if to == 1 else None
    if node.op_type in _PICKING:
        return str(node.input[0])
    if node.op_type not in _SCALING:
        return None
    data = [name for name in node.input if name and name not in numbers]
    if len(data) != 1 or (node.op_type in ("Div", "Clip") and data[0] != node.input[0]):
        return None
    return str(data[0])


def _numbers(graph: Any) -> dict[str, float]:
    """The constants of one number."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: float(np.asarray(numpy_helper.to_array(tensor)).reshape(-1)[0])
        for name, tensor in tensors.items()
        if math.prod(tensor.dims) == 1
    }


def _step(node: Any, numbers: Mapping[str, float]) -> _Step:
    """What a node of `_SCALING` does to each number."""
    given = [numbers.get(name) for name in node.input]
    number = next((value for value in given if value is not None), 0.0)
    match node.op_type:
        case "Mul":
            return _Step(scale=number)
        case "Div":
            return _Step(scale=1 / number if number else 0.0)
        case "Add":
            return _Step(shift=number)
        case "Sub" if given[0] is None:
            return _Step(shift=-number)
        case "Sub":
            return _Step(scale=-1.0, shift=number)
        case "Neg":
            return _Step(scale=-1.0)
        case "Max":
            return _Step(low=number)
        case "Min":
            return _Step(high=number)
        case _:
            bounds = {item.name: item.f for item in node.attribute}
            bounds |= {
                name: value
                for name, value in zip(("min", "max"), given[1:], strict=False)
                if value is not None
            }
            return _Step(low=bounds.get("min", -math.inf), high=bounds.get("max", math.inf))


def _keeps_order(kind: Kind, steps: Sequence[_Step]) -> bool:
    """Whether all answers but those at the very ends stay apart.

    Where whole ranges are clipped to one number, that is how the network ranks its images.
    """
    ends = torch.tensor([-1.0 if kind == "tanh" else 0.0, 1.0], dtype=torch.float64)
    inside = ends + torch.tensor([1.0, -1.0], dtype=torch.float64) * MOST_CLIPPED
    for step in steps:
        unclipped = inside * step.scale + step.shift
        inside = step(inside)
        if step.scale == 0 or not torch.equal(inside, unclipped):
            return False
    return True


def _as_logits(output: OutputSpec, ending: Kind) -> OutputSpec:
    """The declaration once the ending is gone; raises where the two contradict each other."""
    if output.classes is not None and ending == "sigmoid" and output.one_is_true:
        raise ModelFileError(
            "expected a network of which one class is true, got one that ends in a sigmoid for "
            "each class, so that each probability stands for itself: declare --multilabel (kind "
            "multilabel), or send it with a logit a class and without the sigmoid; where it "
            "answers with one number an image, leave --classes out (--positive says what is high)"
        )
    if ending == "softmax" and not output.one_is_true:
        what = "a single logit" if output.classes is None else "classes of which each may be true"
        raise ModelFileError(
            f"expected {what} as declared, got a network that ends in a softmax, whose "
            "probabilities add up to 1: declare its classes (--classes, kind multiclass)"
        )
    kinds = {"probability": "logit", "probabilities": "multiclass"}
    return output.model_copy(update={"kind": kinds.get(output.kind, output.kind)})


def _check_alone(graph: Any, first: Any, kind: Kind) -> None:
    if _users(graph, first.output[0]) > 1:
        raise ModelFileError(
            f"expected a network that ends in logits, got one whose {kind} feeds other operators "
            "too: send it without"
        )


def _users(graph: Any, name: str) -> int:
    return sum(name in node.input for node in graph.node)


def _replacement(graph: Any, first: Any, *, picked: bool, turned: bool) -> str:
    """The value in place of what saturates, made right behind it."""
    from onnx import helper, numpy_helper

    value, name = first.input[0], f"adap.{first.output[0]}"
    made = []
    if picked:  # (a, b) to (a - b, b - a), of which either is picked as before
        graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), f"{name}.order"))
        made.append(helper.make_node("Gather", [value, f"{name}.order"], [f"{name}.other"], axis=1))
        made.append(helper.make_node("Sub", [value, f"{name}.other"], [f"{name}.odds"]))
        value = f"{name}.odds"
    if turned:
        made.append(helper.make_node("Neg", [value], [f"{name}.turned"]))
        value = f"{name}.turned"
    place = next(i for i, node in enumerate(graph.node) if node is first)
    onnx_folding.replace(graph.node, [*graph.node[:place], *made, *graph.node[place:]])
    return str(value)


def _leave_out(graph: Any, first: Any, path: Sequence[Any], value: str) -> None:
    """Drop what saturates and what scales it; what passes on or picks follows the logits."""
    gone = {first.output[0]}
    by_output = {name: node for node in graph.node for name in node.output}
    for node in [by_output[each.output[0]] for each in path]:
        if node.op_type in _SCALING:
            gone.add(node.output[0])
        else:
            node.input[0] = value
            value = node.output[0]
    graph.output[0].name = value
    onnx_folding.replace(graph.node, [n for n in graph.node if gone.isdisjoint(n.output)])
