"""Networks as ONNX files, exported by PyTorch or written by hand."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from adap.models.header import Declaration, Manifest


def declaration(manifest: Manifest) -> Declaration:
    """What an upload with this manifest would say."""
    return Declaration(
        architecture=manifest.architecture, input=manifest.input, output=manifest.output
    )


def export(network: nn.Module, images: torch.Tensor, *, legacy: bool = False) -> bytes:
    """An ONNX file with a dynamic batch and all tensors inside.

    legacy: by the exporter of before PyTorch 2.9, which makes other operators, and is faster.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if legacy:
            axes = {"x": {0: "batch"}, "y": {0: "batch"}}
            torch.onnx.export(
                network,
                (images,),
                buffer,
                dynamo=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes=axes,
            )
        else:
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            assert program is not None
            program.save(buffer)
    return buffer.getvalue()


def small_network(*, channels: int = 3, outputs: int = 1, last: nn.Module | None = None) -> Any:
    """A convolution, BatchNorm with statistics of its own, ReLU, mean and a linear layer."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    layers = [
        *(nn.Conv2d(channels, 6, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, outputs)),
    ]
    return nn.Sequential(*layers, *([] if last is None else [last])).eval()


def graph_of(
    nodes: Sequence[Any],
    weights: dict[str, Any] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    opset: int = 18,
    size: Sequence[Any] = ("batch", 3, 8, 8),
    **fields: Any,
) -> ModelProto:
    """A model written by hand: from the images `x` to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "by hand",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(size))],
        outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        initializer=[
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in (weights or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, **fields)


def linear(*more: Any, output: str = "y", weights: dict[str, Any] | None = None) -> ModelProto:
    """The pixels times a weight each; `more` nodes come after, from `output`."""
    numbers = np.linspace(-1, 1, 192, dtype=np.float32)[:, None]
    return graph_of(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], [output]),
            *more,
        ],
        {"weight": numbers, **(weights or {})},
    )


def write(model: ModelProto | bytes, path: Path) -> Path:
    """Save a model."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path
