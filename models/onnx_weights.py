"""The large tensors of an ONNX file, held once, beside a model that has their shapes alone.

A model is read, changed and written several times on its way in; its weights are not. Copies of
them were most of the memory that it took.
"""

import contextlib
import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = 4096
"""Numbers of a tensor that may be a shape, and stays in the model."""

Held = dict[str, NDArray[Any]]
"""Tensors by the names of the initializers that lack their numbers; each has its own memory."""


def take_out(model: Any) -> tuple[Any, Held]:
    """The model without the numbers of its large tensors, and these.

    What does not hold as many numbers as it declares stays as it is, to be refused by its name.
    """
    from onnx import ModelProto, TensorProto

    kinds = {TensorProto.FLOAT: "<f4", TensorProto.INT8: "i1", TensorProto.UINT8: "u1"}
    held: Held = {}
    for tensor in model.graph.initializer:
        count, kind = math.prod(tensor.dims), kinds.get(tensor.data_type)
        if count <= SMALL or kind is None or tensor.name in held:
            continue
        numbers = np.frombuffer(tensor.raw_data, np.uint8)
        if numbers.size == count * np.dtype(kind).itemsize:
            held[tensor.name] = numbers.view(kind).reshape(tuple(tensor.dims)).copy()
            tensor.ClearField("raw_data")
    bare = ModelProto()
    bare.ParseFromString(model.SerializeToString())  # of a field that is cleared the memory stays
    return bare, held


def give_back() -> None:
    """Hand memory that was let go of back to the system, where its library can (glibc)."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def whole(model: Any, held: Held) -> bytes:
    """The file of a model with its numbers."""
    from onnx import ModelProto

    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in held:
            tensor.raw_data = held[tensor.name].tobytes()
    content: bytes = made.SerializeToString()
    return content


def keep_used(model: Any, held: Held) -> None:
    """Let go of what the model no longer names."""
    names = {tensor.name for tensor in model.graph.initializer}
    for name in held.keys() - names:
        del held[name]


def add(graph: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Initializers of these numbers, copied once, where a list of protos would be copied again."""
    from onnx import numpy_helper

    for name, array in arrays.items():
        graph.initializer.add().CopyFrom(numpy_helper.from_array(array, name))
