"""What saturates behind logits is cut off, with what only scales, turns round or picks from it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from adap.models import loading
from adap.models.header import ONE_LOGIT, OutputSpec
from tests.models.exports import graph_of
from tests.models.test_onnx_fitting import TWO, classifier, node, refused, take_in

NUMBERS = {
    "hundred": np.array(100, np.float32),
    "one": np.array([1], np.float32),
    "low": np.array(1e-6, np.float32),
    "high": np.array(1 - 1e-6, np.float32),
    "quarter": np.array(0.25, np.float32),
    "picked": np.array([1]),
    "other": np.array(0),
}
P = OutputSpec(kind="probability")
MULTILABEL = OutputSpec(kind="multilabel", classes=["cat", "dog"])
SINGLE = node("Gather", "z picked", "u", axis=1)  # one logit of the two

# Nodes behind the logits `z`, what is declared, and the scale that makes the answer a probability;
# 0: it is a hyperbolic tangent.
ENDINGS: dict[str, tuple[list[Any], OutputSpec, float]] = {
    "percent": (
        [SINGLE, node("Sigmoid", "u", "prob"), node("Mul", "prob hundred", "y")],
        P,
        0.01,
    ),
    "the other side": (
        [SINGLE, node("Sigmoid", "u", "prob"), node("Sub", "one prob", "y")],
        ONE_LOGIT,
        1,
    ),
    "less than one": (
        [SINGLE, node("Sigmoid", "u", "prob"), node("Neg", "prob", "n"), node("Add", "n one", "y")],
        ONE_LOGIT,
        1,
    ),
    "kept off the ends": (
        [SINGLE, node("Sigmoid", "u", "prob"), node("Clip", "prob low high", "y")],
        ONE_LOGIT,
        1,
    ),
    "a share of percent": (
        [
            SINGLE,
            node("Sigmoid", "u", "prob"),
            node("Mul", "hundred prob", "q"),
            node("Div", "q one", "y"),
        ],
        ONE_LOGIT,
        0.01,
    ),
    "one of two probabilities": (
        [node("Softmax", "z", "prob", axis=1), node("Gather", "prob picked", "y", axis=1)],
        P,
        1,
    ),
    "the other of two, turned round": (
        [
            node("Softmax", "z", "prob", axis=1),
            node("Gather", "prob other", "q", axis=1),
            node("Sub", "one q", "y"),
        ],
        ONE_LOGIT,
        1,
    ),
    "percent of each of two labels": (
        [node("Sigmoid", "z", "prob"), node("Mul", "prob hundred", "y")],
        MULTILABEL,
        0.01,
    ),
    "a hyperbolic tangent": ([SINGLE, node("Tanh", "u", "y")], ONE_LOGIT, 0),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_the_logits_are_those_by_which_the_file_answers(case: str, tmp_path: Path) -> None:
    nodes, output, scale = ENDINGS[case]
    converted, scorer = take_in(classifier(*nodes, weights=NUMBERS), tmp_path, output=output)
    images = torch.rand(4, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (answers,) = session.run(None, {"x": images.numpy()})
    answer = torch.from_numpy(answers).double().reshape(4, -1)
    p = (answer + 1) / 2 if scale == 0 else answer * scale
    with torch.no_grad():
        logits = scorer.outputs(images).double()
    # of a tangent's input twice the logit: tanh(z) = 2 sigmoid(2 z) - 1
    wanted = torch.logit(p) / (2 if scale == 0 else 1)
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert not loading.probe(scorer).warnings
    (fact,) = converted.facts
    assert fact.code.endswith("_cut_off")
    assert "cut off" in converted.steps[-1]
    assert converted.onnx_difference is not None


def test_what_clips_whole_ranges_of_images_is_left_as_it_ranks(tmp_path: Path) -> None:
    nodes = [SINGLE, node("Sigmoid", "u", "prob"), node("Max", "prob quarter", "y")]
    converted, scorer = take_in(classifier(*nodes, weights=NUMBERS), tmp_path, output=ONE_LOGIT)
    assert converted.facts == []
    with torch.no_grad():
        assert float(scorer.outputs(torch.rand(4, 3, 8, 8)).min()) >= 0.25


def test_one_of_three_probabilities_is_no_difference_of_two(tmp_path: Path) -> None:
    weights = {"d": np.random.default_rng(0).normal(0, 1, (192, 3)).astype(np.float32)}
    model = graph_of(
        [
            node("Flatten", "x", "f"),
            node("MatMul", "f d", "z"),
            node("Softmax", "z", "prob", axis=1),
            node("Gather", "prob picked", "y", axis=1),
        ],
        {**weights, **NUMBERS},
    )
    converted, scorer = take_in(model, tmp_path, output=P)
    assert converted.facts == []
    assert any("probabilities" in text for text in loading.probe(scorer).warnings)


def test_a_cast_of_the_answer_hides_no_softmax(tmp_path: Path) -> None:
    nodes = [node("Softmax", "z", "prob", axis=1), node("Cast", "prob", "y", to=TensorProto.DOUBLE)]
    model = classifier(*nodes)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    converted, _ = take_in(model, tmp_path)
    assert "last softmax cut off: its input is audited" in converted.steps


def test_a_product_of_probabilities_is_not_taken_for_a_scaled_one(tmp_path: Path) -> None:
    nodes = [SINGLE, node("Sigmoid", "u", "prob"), node("Mul", "prob prob", "y")]
    converted, _ = take_in(classifier(*nodes, weights=NUMBERS), tmp_path, output=ONE_LOGIT)
    assert converted.facts == []


def test_shares_of_a_hundred_are_refused_as_logits_however_they_are_made(tmp_path: Path) -> None:
    nodes = [
        node("Exp", "z", "e"),
        node("ReduceSum", "e picked", "s"),
        node("Div", "e s", "prob"),
        node("Mul", "prob hundred", "y"),
    ]
    _, scorer = take_in(classifier(*nodes, weights=NUMBERS), tmp_path, output=TWO)
    (problem,) = loading.probe(scorer).problems
    assert "outputs that add up to 100 for every image" in problem
    assert "declare its classes" in refused(
        classifier(node("Softmax", "z", "y", axis=1)), tmp_path, output=ONE_LOGIT
    )
