"""Branches that the size of the images decides are taken; all others are refused by their name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.models.test_onnx_fitting import classifier, node, refused, take_in, value

HALF = numpy_helper.from_array(np.array(0.5, np.float32), "half")
NUMBERS = {"at": np.array(1), "three": np.array(3), "two": np.array(2), "low": np.array(4)}


def branching(*question: Any, twice: bool = False) -> ModelProto:
    """Two logits times a half or less three, as `asked` decides; both branches name `a` and `b`."""
    halved = helper.make_graph(
        [node("Mul", "z half", "a"), node("Identity", "a", "b")],
        "halved",
        [],
        [value("b", ["batch", 2])],
        [HALF],
    )
    less = helper.make_graph(
        [
            helper.make_node("Constant", [], ["half"], value=HALF),
            node("Neg", "z", "a"),
            node("Sub", "a half", "b"),
        ],
        "less",
        [],
        [value("b", ["batch", 2])],
    )
    either = {"then_branch": halved, "else_branch": less}
    last = [helper.make_node("If", ["asked"], ["y"], **either)]
    if twice:
        last[0].output[0] = "first"
        last += [
            node("Not", "asked", "other"),
            helper.make_node("If", ["other"], ["second"], **either),
            node("Add", "first second", "y"),
        ]
    return classifier(*question, *last, weights=NUMBERS)


SIZES = node("Shape", "x", "sizes")
DECIDED = {
    "the channels": [SIZES, node("Gather", "sizes at", "n"), node("Equal", "n three", "asked")],
    "not the channels": [
        *(SIZES, node("Gather", "sizes at", "n"), node("Equal", "n three", "yes")),
        node("Not", "yes", "asked"),
    ],
    "the size of a map": [
        node("Shape", "c", "sizes"),
        node("Gather", "sizes two", "n"),
        node("Greater", "n low", "asked"),
    ],
}


@pytest.mark.parametrize("case", DECIDED)
@pytest.mark.parametrize("twice", [False, True])
def test_the_branch_of_this_size_is_taken(case: str, twice: bool, tmp_path: Path) -> None:
    model = branching(*DECIDED[case], twice=twice)
    converted, scorer = take_in(model, tmp_path)
    assert f"branches taken as the size of the images decides: {1 + twice}" in converted.steps
    images = torch.rand(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.numpy()})
    assert np.allclose(scorer.outputs(images).detach().numpy(), expected, atol=1e-5)


def test_a_branch_that_the_batch_or_the_pixels_decide_is_refused(tmp_path: Path) -> None:
    by_batch = [
        *(SIZES, node("Gather", "sizes zero", "n"), node("Equal", "n two", "asked")),
    ]
    model = branching(*by_batch)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    assert "'If', a branch" in refused(model, tmp_path)
    brightness = node("ReduceMax", "x", "most", keepdims=0)
    limit = node("Cast", "low", "limit", to=TensorProto.FLOAT)
    by_pixels = branching(brightness, limit, node("Greater", "most limit", "asked"))
    assert "'If', a branch" in refused(by_pixels, tmp_path)


def test_tensors_outside_of_the_file_are_refused_in_a_branch_too(tmp_path: Path) -> None:
    model = branching(*DECIDED["the channels"])
    (branch,) = (n for n in model.graph.node if n.op_type == "If")
    tensor = next(item for item in branch.attribute if item.name == "then_branch").g.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    assert "with external data, which is never looked for" in refused(model, tmp_path)
