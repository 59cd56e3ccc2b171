"""ONNX in other numbers than float32: other precision made single, and images of bytes floats.

Weights of half precision are the same numbers in float32, those of double precision are rounded;
either way the network then computes in float32, which moves its scores. How far from double
precision, onnxruntime on the file as it came tells; how far from half precision, nothing here does,
as onnxruntime on a CPU computes float16 in float32, and bfloat16 hardly at all. A network that
takes bytes makes them floats itself, first of all: that first cast is left to do nothing, so that
an attack can move between two bytes. For the sandboxed child alone.
"""

from typing import Any, Literal

import numpy as np

from adap.models import onnx_weights
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, shown
from adap.reading import Fact

Kind = Literal["float32", "float16", "float64", "bfloat16", "uint8"]

_FLOATS = (1, 10, 11)  # of ONNX: float32, float16, float64
_OTHERS: dict[int, Kind] = {10: "float16", 11: "float64", 16: "bfloat16"}  # made float32
_MASKING = {"Add", "ConstantOfShape", "Expand", "Unsqueeze", "Where"}
_PASSING = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split")
_BYTES_WAY_OUT = "export the network with a float32 input, without what reads bytes"


def image_kind(images: Any) -> Kind:
    """The kind of number that an input takes. Raises ModelFileError for one that is no pixel."""
    from onnx import TensorProto

    kinds: dict[int, Kind] = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.DOUBLE: "float64",
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.UINT8: "uint8",
    }
    kind = images.type.tensor_type.elem_type
    if kind not in kinds:
        name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else kind
        raise ModelFileError(
            f"expected images as floats or bytes, got an input of {name}; {_BYTES_WAY_OUT}"
        )
    return kinds[kind]


def widen(model: Any, held: onnx_weights.Held) -> set[Kind]:
    """Make every number of another precision float32, in place; which there were.

    A cast alone, between tensors of float32, is left as it is.
    """
    from onnx import AttributeProto, TensorProto, numpy_helper

    kinds = _OTHERS
    graph = model.graph
    attributes = [(node, item) for node in graph.node for item in node.attribute]
    tensors = [item.t for _, item in attributes if item.type == AttributeProto.TENSOR]
    ends = [item.type.tensor_type for item in (*graph.input, *graph.output)]
    found = {kinds[t.data_type] for t in (*graph.initializer, *tensors) if t.data_type in kinds}
    found |= {kinds[end.elem_type] for end in ends if end.elem_type in kinds}
    if not found:
        return found
    for tensor in (*graph.initializer, *tensors):
        if tensor.data_type not in kinds:
            continue
        name = tensor.name
        try:
            numbers = numpy_helper.to_array(tensor).astype(np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelFileError(
                f"expected as many numbers as {shown(name)} declares, got others: {error}"
            ) from error
        inside = any(tensor is other for other in tensors)
        if inside or numbers.size <= onnx_weights.SMALL or name in held:
            tensor.CopyFrom(numpy_helper.from_array(numbers, name))
        else:
            held[name] = numbers
            tensor.Clear()
            tensor.name, tensor.data_type = name, TensorProto.FLOAT
            tensor.dims.extend(numbers.shape)
    for node, item in attributes:
        if item.name == "to" and node.op_type == "Cast" and item.i in kinds:
            item.i = TensorProto.FLOAT
    for end in ends:
        if end.elem_type in kinds:
            end.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    return found


def computed_in(model: Any) -> frozenset[Kind]:
    """The other precisions that a file computes in, or takes images or answers in.

    Weights that are merely kept in one and cast before they are used are not computed in it.
    """
    graph = model.graph
    kept = {item.name: item.data_type for item in graph.initializer}
    found = {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)}
    for node in graph.node:
        if node.op_type != "Cast":
            found |= {kept[name] for name in node.input if name in kept}
        for item in node.attribute:
            if item.name == "to" and node.op_type == "Cast":
                found.add(item.i)
            elif item.HasField("t"):  # of a constant
                kept |= dict.fromkeys(node.output, item.t.data_type)
    return frozenset(_OTHERS[kind] for kind in found if kind in _OTHERS)


def finite_masks(model: Any, held: onnx_weights.Held) -> int:
    """Make what masks with minus infinity mask with the lowest number, in place; how many did.

    Exporters write the mask of an attention so. Behind a softmax both are 0, and a gradient exists.
    An infinite weight, of a training that diverged, is left to be refused.
    """
    from onnx import numpy_helper

    graph = model.graph
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    tensors = [(tensor, users.get(tensor.name, set())) for tensor in graph.initializer]
    for node in graph.node:
        used = users.get(node.output[0], set()) if node.op_type == "Constant" else {node.op_type}
        tensors += [(item.t, used) for item in node.attribute if item.name == "value"]
    found = 0
    for tensor, used in tensors:
        if tensor.data_type not in _FLOATS or not used or not used <= _MASKING:
            continue
        name = tensor.name
        try:
            numbers = held[name] if name in held else numpy_helper.to_array(tensor)
        except (ValueError, TypeError, OverflowError):
            continue  # it lacks numbers, and is refused by its name where it is read
        infinite = np.isneginf(numbers)
        if infinite.any() and not numbers[~infinite].any():
            lowest = np.where(infinite, np.finfo(np.float32).min, 0).astype(np.float32)
            if name in held:
                held[name] = lowest
            else:
                tensor.CopyFrom(numpy_helper.from_array(lowest, name))
            found += 1
    return found


def widened_fact(kinds: frozenset[Kind], difference: float | None, *, most: float) -> Fact:
    """What is said of a file that computed in other precision.

    difference: of its outputs in double precision, relative to the largest; None where onnxruntime
    does not run the file as it came.  most: what float32 alone may make of it.
    """
    came = " and ".join(sorted(kinds))
    message = (
        f"the file computes in {came} and is audited in float32, where gradients exist and batches "
        "agree"
    )
    if kinds != {"float64"}:
        message += (
            ": how far its scores differ is not measured, as onnxruntime on a CPU does not compute "
            "in half precision, so a deployment in it may rank otherwise: deploy in float32, or "
            "compare the scores there"
        )
        return Fact(level="caution", code="made_float32", message=message)
    if difference is None:
        message += ": how far its scores differ is not measured, as onnxruntime does not run it"
        return Fact(level="info", code="made_float32", message=message)
    message += f": its outputs differ by {difference:.2g} of the largest"
    off = difference > most
    if off:
        message += ", so a deployment in float64 may rank otherwise: deploy in float32"
    return Fact(
        level="caution" if off else "info",
        code="made_float32",
        message=message,
        figures={"difference": difference},
    )


def free_of_bytes(model: Any, name: str) -> None:
    """Let the input `name` of bytes take floats from 0 to 255, in place.

    Raises ModelFileError where bytes are used as bytes before they are made floats.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    bytes_, made = {name}, []
    for node in graph.node:
        if bytes_.isdisjoint(node.input):
            made.append(node)
            continue
        to = next((item.i for item in node.attribute if item.name == "to"), None)
        if node.op_type == "Cast" and to in floats:
            made.append(node)
        elif node.op_type in _PASSING and node.input[0] in bytes_:
            bytes_.update(node.output)
            made.append(node)
        elif node.op_type == "DequantizeLinear":
            value, scale, *zero = node.input
            centred = f"adap.{node.output[0]}.centred"
            if zero and zero[0]:
                wide = f"adap.{node.output[0]}.zero"
                made.append(helper.make_node("Cast", [zero[0]], [wide], to=TensorProto.FLOAT))
                made.append(helper.make_node("Sub", [value, wide], [centred]))
                value = centred
            made.append(helper.make_node("Mul", [value, scale], list(node.output)))
        else:
            raise ModelFileError(
                f"expected a network that makes the bytes of its images floats first, got "
                f"{node.op_type} of bytes; {_BYTES_WAY_OUT}"
            )
    if graph.output[0].name in bytes_:
        raise ModelFileError("expected scores, got an output that is the image itself")
    del graph.node[:]
    graph.node.extend(made)
    images = next(item for item in graph.input if item.name == name)
    images.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]


def for_bytes(spec: InputSpec) -> tuple[InputSpec, Fact]:
    """The declaration of a network that takes bytes, 0 to 255 as they are, and what is said of it.

    Raises ModelFileError where the declaration normalises, as no byte is normalised.
    """
    if any(spec.mean) or any(value != 1 for value in spec.std):
        raise ModelFileError(
            "expected no mean and std with a network that takes bytes, which it normalises itself "
            f"if at all, got mean {spec.mean} and std {spec.std}: declare none (without --imagenet)"
        )
    message = (
        "the network takes bytes, so its pixels are 0..255 as they are; scores of images of 8 bits "
        "are the file's own, and an attack may move between two bytes"
    )
    fact = Fact(level="info", code="takes_bytes", message=message)
    return spec.model_copy(update={"value_range": "0..255"}), fact
