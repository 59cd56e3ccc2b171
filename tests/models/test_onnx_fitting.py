"""ONNX as exporters write it: made fit and said so; onnxruntime on the file as it came judges."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, load
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import Tensor, nn
from torchvision import models as torchvision

from adap.models import conversion, loading
from adap.models.conversion import Converted
from adap.models.errors import ModelFileError
from adap.models.header import ONE_LOGIT, Declaration, InputSpec, OutputSpec
from adap.models.limits import CostLimits
from adap.models.wrappers import Scorer
from tests.models.exports import graph_of, write

TWO = OutputSpec(kind="multiclass", classes=["cat", "dog"])
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
DENSE = RANDOM.normal(0, 1, (4, 2)).astype(np.float32)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def value(name: str, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def classifier(
    *last: Any,
    first: Any = (),
    images: str = "x",
    ends: str = "y",
    weights: dict[str, Any] | None = None,
    size: list[Any] | None = None,
    shape: list[Any] | None = None,
    opset: int = 18,
) -> ModelProto:
    """A convolution, a mean, two logits `z`, then `last`."""
    nodes = [
        *first,
        node("Conv", f"{images} k", "c", pads=[1] * 4),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f d", "z" if last else "y"),
        *last,
    ]
    return graph_of(
        nodes,
        {"k": KERNEL, "d": DENSE, **(weights or {})},
        outputs=[value(ends, shape or ["batch", 2])],
        size=size or ("batch", 3, 8, 8),
        opset=opset,
    )


def logits(images: Tensor) -> Tensor:
    maps = nn.functional.conv2d(images, torch.from_numpy(KERNEL), padding=1)
    return maps.mean((2, 3)) @ torch.from_numpy(DENSE)


def take_in(
    model: ModelProto | bytes,
    folder: Path,
    *,
    output: OutputSpec = TWO,
    size: int = 8,
    limits: CostLimits = conversion.DEFAULT_LIMITS,
) -> tuple[Converted, Scorer]:
    spec = InputSpec(channels=3, height=size, width=size, mean=[0.0] * 3, std=[1.0] * 3)
    declared = Declaration(architecture=None, input=spec, output=output)
    path = write(model, folder / "m.onnx")
    converted = conversion.to_safetensors(path, declared, folder=folder, limits=limits)
    scorer, _ = loading.load(converted.path, None, device="cpu")
    return converted, scorer


def refused(model: ModelProto, folder: Path, output: OutputSpec = TWO) -> str:
    with pytest.raises(ModelFileError) as caught:
        take_in(model, folder, output=output)
    return str(caught.value)


def turned() -> ModelProto:
    return classifier(
        first=[node("Transpose", "x", "t", perm=[0, 3, 1, 2])],
        images="t",
        size=["batch", 8, 8, 3],
    )


FIT: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "as it should be": (classifier, ""),
    "channels last": (turned, "images turned from channels last"),
    "channels last in sizes that are not told": (
        lambda: classifier(
            first=[
                node("Mul", "x one", "scaled"),
                node("Transpose", "scaled", "t", perm=[0, 3, 1, 2]),
            ],
            images="t",
            size=["batch", "a", "b", "c"],
            weights={"one": np.array(1, np.float32)},
        ),
        "images turned from channels last",
    ),
    "sizes that are not told": (lambda: classifier(size=["batch", "a", "b", "c"]), ""),
    "an input of no shape": (lambda: without_shape(classifier()), ""),
    "opset 7": (lambda: classifier(opset=7), "opset 7 read as 9"),
    "opset 8": (lambda: classifier(opset=8), "opset 8 read as 9"),
    "a batch of one": (
        lambda: classifier(size=[1, 3, 8, 8], shape=[1, 2]),
        "batch of 1 made free",
    ),
    "a batch of four": (
        lambda: classifier(size=[4, 3, 8, 8], shape=[4, 2]),
        "batch of 4 made free",
    ),
    "a batch of -1": (lambda: classifier(size=[-1, 3, 8, 8]), ""),
    "a Reshape that holds the batch": (
        lambda: classifier(
            node("Reshape", "z s", "y"),
            weights={"s": np.array([1, 2])},
            size=[1, 3, 8, 8],
        ),
        "batch of 1 made free",
    ),
    "a Reshape to one in a file with a free batch": (
        lambda: classifier(node("Reshape", "z s", "y"), weights={"s": np.array([1, 2])}),
        "sizes that held a batch of one made free",
    ),
    "a Reshape that joins the images of a batch to one row": (
        lambda: classifier(
            node("Reshape", "z s", "y"),
            weights={"s": np.array([1, -1])},
            size=[1, 3, 8, 8],
        ),
        "batch of 1 made free",
    ),
    "a Reshape without a batch": (
        lambda: classifier(
            node("Reshape", "z s", "r"),
            node("Mul", "r one", "y"),
            weights={"s": np.array([-1]), "one": np.ones(2, np.float32)},
            size=[1, 3, 8, 8],
            shape=[2],
        ),
        "batch of 1 made free",
    ),
    "a local function": (
        lambda: with_function(classifier(helper.make_node("Head", ["z"], ["y"], domain="ours"))),
        "local functions put in place of their calls",
    ),
    "axes of size 1": (
        lambda: classifier(
            node("Unsqueeze", "z a", "y"),
            weights={"a": np.array([2, 3])},
            shape=["batch", 2, 1, 1],
        ),
        "output (2, 1, 1) flattened to (2)",
    ),
    "one of two outputs": (
        lambda: with_outputs(classifier(), "f"),
        "output `y` taken, not `f`",
    ),
    "a computed weight": (
        lambda: classifier(
            node("Mul", "z two", "y"),
            first=[node("Ceil", "q", "one"), node("Mul", "one one", "two")],
            weights={"q": np.array([0.5], np.float32)},
        ),
        "1 constant computed once",
    ),
    "constants among the inputs": (  # as Caffe2 wrote them
        lambda: with_input(
            classifier(
                node("Mul", "z two", "y"),
                first=[node("Ceil", "q", "one"), node("Mul", "one one", "two")],
                weights={"q": np.array([0.5], np.float32)},
            ),
            "q",
        ),
        "1 constant computed once",
    ),
    "an input that nothing uses": (
        lambda: with_input(classifier(), "queue"),
        "left out, as nothing uses them: inputs 'queue'",
    ),
    "a batch of one before IR version 4": (
        lambda: before_ir_4(
            classifier(
                node("Reshape", "z s", "y"),
                weights={"s": np.array([1, 2])},
                size=[1, 3, 8, 8],
                opset=9,
            ),
        ),
        "batch of 1 made free",
    ),
    "a softmax": (lambda: classifier(node("Softmax", "z", "y", axis=1)), "last softmax cut off"),
    "a softmax before a Squeeze": (
        lambda: classifier(
            node("Unsqueeze", "z a", "u"),
            node("Softmax", "u", "s", axis=1),
            node("Squeeze", "s a", "y"),
            weights={"a": np.array([2])},
        ),
        "last softmax cut off",
    ),
}


def without_shape(model: ModelProto) -> ModelProto:
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def with_input(model: ModelProto, name: str) -> ModelProto:
    model.graph.input.append(value(name, [1]))
    return model


def with_function(model: ModelProto, *more: Any) -> ModelProto:
    """`Head` of the domain `ours`, which is `Inner` of it twice, each of which changes nothing."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    twice = [helper.make_node("Neg", [a], [b]) for a, b in (("a", "m"), ("m", "b"))]
    inner = helper.make_function("ours", "Inner", ["a"], ["b"], twice, opsets)
    calls = [
        helper.make_node("Inner", [a], [b], domain="ours") for a, b in (("a", "m"), ("m", "b"))
    ]
    head = helper.make_function("ours", "Head", ["a"], ["b"], calls, opsets)
    model.functions.extend([*more, inner, head])
    model.opset_import.append(helper.make_opsetid("ours", 1))
    return model


def before_ir_4(model: ModelProto) -> ModelProto:
    """As Caffe2 and MXNet wrote files: each tensor is an input with a value of its own."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(kind)
    return model


def with_outputs(model: ModelProto, *names: str) -> ModelProto:
    model.graph.output.extend(value(name, ["batch", 4]) for name in names)
    return model


@pytest.mark.parametrize("case", FIT)
def test_a_file_is_made_fit_and_gives_the_logits_of_the_network(case: str, tmp_path: Path) -> None:
    make, said = FIT[case]
    named = TWO.model_copy(update={"name": "y"}) if "outputs" in case else TWO
    converted, scorer = take_in(make(), tmp_path, output=named)
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(scorer.outputs(images), logits(images), atol=1e-5)
    assert converted.manifest is not None
    summary = converted.reading(converted.manifest).summary
    assert summary == ("ONNX: as it is" if not said else summary)
    assert said in summary
    assert loading.probe(scorer).problems == []


def calling(name: str, called: str, count: int) -> Any:
    """A function that calls another one after the other."""
    names = ["a", *(f"v{i}" for i in range(count - 1)), "b"]
    calls = [
        helper.make_node(called, [one], [other], domain="ours")
        for one, other in itertools.pairwise(names)
    ]
    return helper.make_function("ours", name, ["a"], ["b"], calls, [helper.make_opsetid("ours", 1)])


def test_functions_that_unfold_without_end_are_refused_before_they_do(tmp_path: Path) -> None:
    def first(name: str) -> ModelProto:
        return classifier(helper.make_node(name, ["z"], ["y"], domain="ours"))

    bomb = [calling(f"F{i}", f"F{i + 1}" if i < 60 else "Inner", 2) for i in range(61)]
    assert "unfold to more" in refused(with_function(first("F0"), *bomb), tmp_path)
    ring = [calling("F0", "F1", 1), calling("F1", "F0", 1)]
    assert "which calls itself" in refused(with_function(first("F0"), *ring), tmp_path)


@pytest.mark.parametrize("given", [{}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1, "transB": 1}])
@pytest.mark.parametrize("side", [0, 1])
def test_a_product_with_no_weights_of_its_own_is_that_of_onnxruntime(
    given: dict[str, Any], side: int, tmp_path: Path
) -> None:
    """A Gemm whose one factor is a constant on the left, or follows from the size of the images."""
    turned = given.get("transA", 0)
    first = [
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "b"),
        node("Cast", "b", "n", to=1),
    ]
    if side == 0:  # z (N, 2) on the right, as columns, and made rows again
        last = [
            node("Transpose", "z", "t", perm=[1, 0]) if not turned else node("Identity", "z", "t"),
            node("Gemm", "w t bias", "g", **given),
            node("Transpose", "g", "y", perm=[1, 0]),
        ]
        weights = {"bias": np.array([[0.5], [2]], np.float32)}
    else:
        first += [node("Div", "n n", "i"), node("Mul", "w i", "v")]
        last = [
            node("Transpose", "z", "t", perm=[1, 0]) if turned else node("Identity", "z", "t"),
            node("Gemm", "t v bias", "y", **given),
        ]
        weights = {"bias": np.array([0.5, 2], np.float32)}
    weights |= {"w": np.array([[1, 2], [3, 5]], np.float32)}
    numbers = {"zero": np.array([0]), "one": np.array([1])}
    model = classifier(*last, first=first, weights={**weights, **numbers})
    _, scorer = take_in(model, tmp_path)
    images = torch.rand(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(None, {"x": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(scorer.outputs(images).numpy(), wanted, atol=1e-5)


def test_a_constant_before_what_it_mixes_is_no_layer(tmp_path: Path) -> None:
    mixed = [
        node("Unsqueeze", "z two", "u"),
        node("MatMul", "m u", "o"),
        node("Squeeze", "o two", "y"),
    ]
    mixing = np.array([[0, 1], [1, 1]], np.float32)
    model = classifier(*mixed, weights={"m": mixing, "two": np.array([2])})
    _, scorer = take_in(model, tmp_path)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        wanted = logits(images) @ torch.from_numpy(mixing.T)
        assert torch.allclose(scorer.outputs(images), wanted, atol=1e-5)


def test_a_layer_with_computed_weights_is_refused_by_its_name(tmp_path: Path) -> None:
    first = [
        *(node("Shape", "x", "s"), node("Slice", "s zero one", "b"), node("Cast", "b", "n", to=1)),
        *(node("Mul", "e n", "v"), node("Conv", "x v", "h")),
    ]
    weights = {"e": np.ones((3, 3, 1, 1), np.float32), "zero": np.array([0]), "one": np.array([1])}
    told = refused(classifier(first=first, images="h", weights=weights), tmp_path)
    assert "got Conv with computed ones" in told


def test_a_squeeze_of_everything_keeps_the_batch(tmp_path: Path) -> None:
    weights = {"w": np.ones((2, 1), np.float32)}
    model = classifier(node("MatMul", "z w", "o"), node("Squeeze", "o", "y"), weights=weights)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    assert scorer(torch.rand(1, 3, 8, 8)).shape == (1,)
    assert scorer(torch.rand(3, 3, 8, 8)).shape == (3,)


def test_a_transformer_frozen_at_one_image_is_freed(tmp_path: Path) -> None:
    import io
    import warnings

    torch.manual_seed(0)
    network = torchvision.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=2).eval()
    nn.init.normal_(network.heads.head.weight)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, 16, 16),), buffer, dynamo=False)
    converted, scorer = take_in(buffer.getvalue(), tmp_path, size=16, limits=CostLimits(batch=3))
    assert "batch of 1 made free" in converted.steps
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(scorer.outputs(images), network(images), atol=1e-5)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("operators", "mean", "pixels", "codes"),
    [
        ([("Sub", MEAN), ("Div", STD)], MEAN, "0..1", ["normalised_twice"]),
        ([("Sub", MEAN), ("Div", STD)], (0, 0, 0), "0..1", []),
        ([("Div", [255])], (0, 0, 0), "0..1", ["scale_of_another_range"]),
        ([("Mul", [1 / 127.5]), ("Sub", [1])], (0, 0, 0), "0..1", ["scale_of_another_range"]),
        ([("Div", [255])], (0, 0, 0), "0..255", []),
        ([], MEAN, "0..1", []),
    ],
)
def test_pixels_that_a_file_scales_itself_are_a_caution_where_the_declaration_does_too(
    operators: list[Any], mean: Any, pixels: Any, codes: list[str], tmp_path: Path
) -> None:
    names = ["x", *(f"n{i}" for i in range(len(operators)))]
    weights = {
        f"c{i}": np.array(numbers, np.float32).reshape(-1, 1, 1)
        for i, (_, numbers) in enumerate(operators)
    }
    first = [node(op, f"{names[i]} c{i}", names[i + 1]) for i, (op, _) in enumerate(operators)]
    path = write(classifier(first=first, images=names[-1], weights=weights), tmp_path / "m.onnx")
    spec = InputSpec(
        channels=3,
        height=8,
        width=8,
        mean=list(map(float, mean)),
        std=[1.0] * 3,
        value_range=pixels,
    )
    declared = Declaration(architecture=None, input=spec, output=TWO)
    found = conversion.to_safetensors(path, declared, folder=tmp_path)
    assert [fact.code for fact in found.facts] == codes


@pytest.mark.parametrize(
    ("model", "output", "said"),
    [
        (with_outputs(classifier(), "f"), TWO, "name the output that is meant: --output-name y"),
        (
            with_outputs(classifier(), "f"),
            OutputSpec(kind="multiclass", classes=list("abcd")),
            "name the output that is meant: --output-name f",
        ),
        (classifier(), ONE_LOGIT, "answers with 2 numbers an image: name its 2 classes"),
        (
            classifier(node("Sigmoid", "z", "y")),
            TWO,
            "ends in a sigmoid for each class, so that each probability stands for itself",
        ),
        (
            classifier(node("Softmax", "z", "y")),
            OutputSpec(kind="multilabel", classes=["cat", "dog"]),
            "ends in a softmax, whose probabilities add up to 1",
        ),
        (
            classifier(size=["batch", 3, 16, 16]),
            TWO,
            "got (any, 3, 16, 16): declare --size 16 --channels 3",
        ),
    ],
)
def test_what_is_ambiguous_is_refused_with_what_to_say(
    model: ModelProto, output: OutputSpec, said: str, tmp_path: Path
) -> None:
    assert said in refused(model, tmp_path, output)


def test_large_weights_computed_in_the_graph_are_kept_and_held_once(tmp_path: Path) -> None:
    left = RANDOM.normal(0, 0.1, (4, 3000)).astype(np.float32)
    right = RANDOM.normal(0, 0.1, (3000, 2)).astype(np.float32)
    model = classifier(
        node("Mul", "l two", "m"),  # of constants: computed once, and as large as before
        node("MatMul", "f m", "h"),
        node("MatMul", "h r", "y"),
        weights={"l": left, "r": right, "two": np.array(2, np.float32)},
    )
    _, scorer = take_in(model, tmp_path)
    images = torch.rand(3, 3, 8, 8)
    maps = nn.functional.conv2d(images, torch.from_numpy(KERNEL), padding=1).mean((2, 3))
    expected = maps @ torch.from_numpy(2 * left) @ torch.from_numpy(right)
    assert torch.allclose(scorer.outputs(images), expected, atol=1e-4)
    of_shape: dict[Any, set[int]] = {}
    for held in (*scorer.network.parameters(), *scorer.network.buffers()):
        of_shape.setdefault(tuple(held.shape), set()).add(held.data_ptr())
    for shape in (KERNEL.shape, left.shape, right.shape):
        assert len(of_shape[shape]) == 1  # also where a layer of the library has it, too


def test_a_choice_behind_the_scores_is_refused_and_the_scores_can_be_named(tmp_path: Path) -> None:
    model = classifier(node("ArgMax", "z", "y", axis=1, keepdims=0), shape=["batch"])
    said = refused(model, tmp_path)
    assert "'ArgMax', the choice of the best" in said
    assert said.endswith("name the scores that it is fed: --output-name 'z'")
    _, scorer = take_in(model, tmp_path, output=TWO.model_copy(update={"name": "z"}))
    images = torch.rand(3, 3, 8, 8)
    assert torch.allclose(scorer.outputs(images), logits(images), atol=1e-5)


def test_what_is_no_network_of_images_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    two = classifier(node("Add", "z age", "y"))
    two.graph.input.append(value("age", ["batch", 1]))
    assert "holds what else its network takes as constants" in refused(two, tmp_path)
    for size in ([3, 8, 8], [8, 8, 3]):
        assert "with a batch in front" in refused(classifier(size=size), tmp_path)
    assert "do not tell whether a pixel's colours" in refused(rows(), tmp_path)


def rows(*last: Any, **fields: Any) -> ModelProto:
    """Two logits, or what `last` makes of them, of rows of 192 pixels."""
    weight = np.random.default_rng(1).normal(0, 1, (192, 2)).astype(np.float32)
    nodes = [node("MatMul", "x w", "z" if last else "y"), *last]
    return graph_of(nodes, {"w": weight}, outputs=[value("y", None)], size=["b", 192], **fields)


@pytest.mark.parametrize("last", [[node("Greater", "z z", "y")], [node("Cast", "z", "y", to=7)]])
def test_answers_that_are_a_choice_are_no_scores(last: list[Any], tmp_path: Path) -> None:
    model = classifier(*last)
    kind = TensorProto.BOOL if last[0].op_type == "Greater" else TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = kind
    assert "expected scores that are floats, got" in refused(model, tmp_path)


def test_grey_rows_of_pixels_are_images_and_scored_as_onnxruntime_does(tmp_path: Path) -> None:
    spec = InputSpec(channels=1, height=12, width=16, mean=[0.0], std=[1.0])
    model = rows()
    path = write(model, tmp_path / "m.onnx")
    declared = Declaration(architecture=None, input=spec, output=TWO)
    converted = conversion.to_safetensors(path, declared, folder=tmp_path)
    assert converted.steps == ["images flattened to a row of pixels each"]
    scorer, _ = loading.load(converted.path, None, device="cpu")
    images = torch.rand(3, 1, 12, 16)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.reshape(3, -1).numpy()})
    assert np.allclose(scorer.outputs(images).detach().numpy(), expected, atol=1e-4)


def test_what_a_classical_pipeline_answers_by_name_is_named_and_refused_for_what_it_is(
    tmp_path: Path,
) -> None:
    named = helper.make_node(
        "ZipMap", ["p"], ["by_name"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )
    tree = helper.make_node("TreeEnsembleClassifier", ["z"], ["label", "p"], domain="ai.onnx.ml")
    model = classifier(tree, named)
    del model.graph.output[:]
    model.graph.output.extend([value("label", ["batch"]), value("by_name", None)])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert "--output-name p (`name`" in refused(model, tmp_path)
    of_p = TWO.model_copy(update={"name": "p"})
    assert "which has no gradient to attack" in refused(model, tmp_path, of_p)


def test_probabilities_become_the_logits_before_them(tmp_path: Path) -> None:
    declared = OutputSpec(kind="probabilities", classes=["cat", "dog"])
    model = classifier(node("Softmax", "z", "y", axis=1))
    converted, _ = take_in(model, tmp_path, output=declared)
    assert converted.manifest is not None
    assert converted.manifest.output == TWO
    assert [fact.code for fact in converted.facts] == ["softmax_cut_off"]


def test_a_softmax_in_other_operators_is_found_by_its_numbers(tmp_path: Path) -> None:
    by_hand = [node("Exp", "z", "e"), node("ReduceSum", "e a", "s"), node("Div", "e s", "y")]
    model = classifier(*by_hand, weights={"a": np.array([1])})
    _, scorer = take_in(model, tmp_path)
    assert "outputs from 0 to 1 that add up to 1" in loading.probe(scorer).problems[0]


def test_a_sigmoid_in_other_operators_is_found_by_its_numbers(tmp_path: Path) -> None:
    weights = {
        "w": np.array([[40.0], [-40.0]], np.float32),
        "one": np.array(1, np.float32),
    }
    by_hand = [
        node("MatMul", "z w", "o"),
        node("Exp", "o", "e"),
        node("Add", "e one", "s"),
        node("Reciprocal", "s", "y"),
    ]
    model = classifier(*by_hand, weights=weights, shape=["batch", 1])
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    assert "stay between 0 and 1 whatever the image" in loading.probe(scorer).problems[0]


# --- operators, one by one, against onnxruntime ---------------------------------------------------

WEIGHTS = {
    "half": np.array([0.5], np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([1, 3, 5, 7]),
    "axes": np.array([2, 3]),
    "channels": np.ones(3, np.float32) * 1.5,
    "shift": np.ones(3, np.float32) * 0.2,
    "plane": np.ones((8, 8), np.float32),
    "swap": np.array([2, 0, 1]),
    "repeat": np.array([1, 1, 2, 1]),
    "corner": np.array([[0, 0, 1, 2], [0, 2, 3, 4]]),
    "two": np.array([0.3, 0.6], np.float32),
    "first": np.zeros((1, 3, 8, 1), np.int64),
    "row": np.full((1, 3, 8, 1), 0.4, np.float32),
}

SINGLE: dict[str, Any] = {
    "LRN": node("LRN", "x", "o", size=3),
    "Ceil": node("Ceil", "x", "o"),
    "Floor": node("Floor", "x", "o"),
    "Round": node("Round", "x", "o"),
    "Sign": node("Sign", "x", "o"),
    "Sin": node("Sin", "x", "o"),
    "Cos": node("Cos", "x", "o"),
    "Atan": node("Atan", "x", "o"),
    "HardSwish": node("HardSwish", "x", "o"),
    "Mish": node("Mish", "x", "o"),
    "Gelu": node("Gelu", "x", "o"),
    "Softsign": node("Softsign", "x", "o"),
    "ThresholdedRelu": node("ThresholdedRelu", "x", "o", alpha=0.3),
    "Resize nearest": helper.make_node("Resize", ["x", "", "scales"], ["o"], mode="nearest"),
    "Resize linear": helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["o"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    ),
    "InstanceNormalization": node("InstanceNormalization", "x channels shift", "o"),
    "LayerNormalization": node("LayerNormalization", "x plane", "o", axis=2),
    "LpNormalization": node("LpNormalization", "x", "o", axis=1),
    "MeanVarianceNormalization": node("MeanVarianceNormalization", "x", "o"),
    "Einsum": node("Einsum", "x plane", "o", equation="bchw,wk->bchk"),
    "Gather": node("Gather", "x swap", "o", axis=1),
    "Tile": node("Tile", "x repeat", "o"),
    "DepthToSpace": node("SpaceToDepth", "x", "o", blocksize=2),
    "ReduceL1": node("ReduceL1", "x axes", "o"),
    "ReduceMin": node("ReduceMin", "x axes", "o"),
    "ReduceLogSumExp": node("ReduceLogSumExp", "x axes", "o"),
    "ReduceSumSquare": node("ReduceSumSquare", "x axes", "o"),
    "GlobalLpPool": node("GlobalLpPool", "x", "o"),
    "LpPool": node("LpPool", "x", "o", kernel_shape=[2, 2], strides=[2, 2]),
    "Mod": node("Mod", "x half", "o", fmod=1),
    "Celu": node("Celu", "x", "o", alpha=0.7),
    "Trilu": node("Trilu", "x", "o"),
    "ScatterND": node("ScatterND", "x corner two", "o"),
    "ScatterElements": node("ScatterElements", "x first row", "o", axis=3),
}


LSTM = {
    "into": RANDOM.normal(0, 0.3, (1, 20, 8)).astype(np.float32),
    "back": RANDOM.normal(0, 0.3, (1, 20, 5)).astype(np.float32),
    "rows": np.array([0, 24, 8]),
}
GRU = {**LSTM, "into": LSTM["into"][:, :15], "back": LSTM["back"][:, :15]}
ANTIALIASED = {"antialias": 1, "exclude_outside": 1}
GRID = {"start": np.array([0]), "end": np.array([2]), "axis": np.array([3])}

SEVERAL: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    # name: nodes to `o`, tensors, opset
    "Attention": ([node("Attention", "x x x", "o", is_causal=1)], {}, 23),
    "GridSample": (
        [
            node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
            node("Slice", "t start end axis", "grid"),
            node("GridSample", "x grid", "o", align_corners=0, padding_mode="border"),
        ],
        GRID,
        20,
    ),
    "LSTM": (
        [
            node("Reshape", "x rows", "r"),
            node("Transpose", "r", "s", perm=[1, 0, 2]),
            helper.make_node("LSTM", ["s", "into", "back"], ["o"], hidden_size=5),
        ],
        LSTM,
        18,
    ),
    "GRU": (
        [
            node("Reshape", "x rows", "r"),
            node("Transpose", "r", "s", perm=[1, 0, 2]),
            helper.make_node("GRU", ["s", "into", "back"], ["o"], hidden_size=5),
        ],
        GRU,
        18,
    ),
    "antialiased Resize": (
        [
            helper.make_node(
                "Resize", ["x", "", "", "small"], ["o"], mode="linear", axes=[2, 3], **ANTIALIASED
            )
        ],
        {"small": np.array([5, 3])},
        18,
    ),
    "antialiased Resize by scales": (
        [
            helper.make_node(
                "Resize",
                ["x", "", "shares"],
                ["o"],
                mode="cubic",
                cubic_coeff_a=-0.5,
                **ANTIALIASED,
            )
        ],
        {"shares": np.array([1, 1, 0.5, 0.25], np.float32)},
        18,
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_what_newer_exporters_write_answers_as_in_onnxruntime(case: str, tmp_path: Path) -> None:
    nodes, tensors, opset = SEVERAL[case]
    recurrent = case in ("LSTM", "GRU")  # (steps, directions, batch, numbers)
    batch_first = [node("Transpose", "o", "q", perm=[2, 0, 1, 3] if recurrent else [0, 1, 2, 3])]
    ends = [node("Flatten", "q", "f"), node("ReduceMax", "f last", "y", keepdims=1)]
    model = graph_of(
        [*nodes, *batch_first, *ends],
        {**tensors, "last": np.array([1])},
        opset=opset,
        ir_version=10,
    )
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    got = scorer(images)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.detach().numpy()})
    assert np.allclose(got.detach().numpy(), expected.flatten(), atol=1e-4)
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_an_antialiased_resize_that_pytorch_lacks_is_refused_by_its_name(tmp_path: Path) -> None:
    shrink = helper.make_node("Resize", ["x", "", "", "small"], ["r"], mode="linear", antialias=1)
    model = classifier(first=[shrink], images="r", weights={"small": np.array([1, 3, 4, 4])})
    assert "expected an antialiased Resize as PyTorch exports it" in refused(model, tmp_path)


@pytest.mark.parametrize("case", SINGLE)
def test_an_operator_answers_as_in_onnxruntime_and_can_be_followed(
    case: str, tmp_path: Path
) -> None:
    nodes = [
        SINGLE[case],
        node("Sin", "o", "a"),
        node("Add", "o a", "b"),
        node("ReduceMean", "b", "m", axes=[2, 3], keepdims=0),
        node("ReduceSum", "m one", "y", keepdims=1),
    ]
    used = {name for made in nodes for name in made.input}
    weights = {name: array for name, array in WEIGHTS.items() if name in used}
    opset = {"Gelu": 20, "Mish": 18}.get(case, 17)
    nodes[3] = (
        node("ReduceMean", "b", "m", axes=[2, 3], keepdims=0)
        if opset < 18
        else node("ReduceMean", "b axes", "m", keepdims=0)
    )
    if opset >= 18:
        weights["axes"] = WEIGHTS["axes"]
    if case.startswith("Reduce"):  # before opset 18 the axes are an attribute
        nodes[0] = helper.make_node(nodes[0].op_type, ["x"], ["o"], axes=[2, 3])
        weights.pop("axes")
    model = graph_of(nodes, {**weights, "one": np.array([1])}, opset=opset, ir_version=9)
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    got = scorer(images)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.detach().numpy()})
    assert np.allclose(got.detach().numpy(), expected.flatten(), atol=1e-4)
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0  # also through what rounds


def quantised(*, as_one_operator: bool) -> ModelProto:
    """uint8 activations and int8 weights of the convolution, either way of writing it."""
    scale = np.array(0.02, np.float32)
    weights = {
        "xs": scale,
        "xz": np.array(128, np.uint8),
        "wq": np.round(KERNEL / 0.01).clip(-127, 127).astype(np.int8),
        "ws": np.full(4, 0.01, np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": np.array(0.05, np.float32),
        "yz": np.array(128, np.uint8),
        "d": DENSE,
    }
    if as_one_operator:
        nodes = [
            node("QuantizeLinear", "x xs xz", "q"),
            node("QLinearConv", "q xs xz wq ws wz ys yz", "cq", pads=[1] * 4),
        ]
    else:
        nodes = [
            node("QuantizeLinear", "x xs xz", "q"),
            node("DequantizeLinear", "q xs xz", "xd"),
            node("DequantizeLinear", "wq ws wz", "wd", axis=0),
            node("Conv", "xd wd", "c", pads=[1] * 4),
            node("QuantizeLinear", "c ys yz", "cq"),
        ]
    nodes += [
        node("DequantizeLinear", "cq ys yz", "cd"),
        node("GlobalAveragePool", "cd", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f d", "y"),
    ]
    return graph_of(nodes, weights, outputs=[value("y", ["batch", 2])], opset=17, ir_version=8)


@pytest.mark.parametrize(
    ("operators", "bounds"),
    [
        (["Clip x low high p"], {"low": np.float32(0), "high": np.float32(1)}),
        (
            ["QuantizeLinear x step zero q", "DequantizeLinear q step zero p"],
            {"step": np.float32(1 / 255), "zero": np.uint8(0)},
        ),
    ],
    ids=["clipped", "bytes"],
)
def test_black_and_white_pixels_keep_their_gradient_where_a_graph_clips_at_them(
    operators: list[str], bounds: dict[str, Any], tmp_path: Path
) -> None:
    nodes = []
    for text in operators:
        kind, *names = text.split()
        nodes.append(node(kind, " ".join(names[:-1]), names[-1]))
    nodes += [
        node("Conv", "p w", "c", pads=[1] * 4),
        node("GlobalAveragePool", "c", "m"),
        node("Flatten", "m", "f"),
        node("MatMul", "f d", "y"),
    ]
    weights = {**{name: np.asarray(of) for name, of in bounds.items()}, "w": KERNEL, "d": DENSE}
    model = graph_of(nodes, weights, outputs=[value("y", ["batch", 2])], opset=17, ir_version=8)
    _, scorer = take_in(model, tmp_path)
    images = torch.tensor([0.0, 1.0, 100 / 255]).view(3, 1, 1, 1).repeat(1, 3, 8, 8)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.outputs(images)[:, 0].sum(), images)
    assert gradient[2].abs().max() > 0
    torch.testing.assert_close(gradient, gradient[2].expand_as(gradient))  # the graph is linear


@pytest.mark.parametrize("as_one_operator", [True, False])
def test_a_quantised_network_scores_exactly_and_has_a_gradient(
    as_one_operator: bool, tmp_path: Path
) -> None:
    model = quantised(as_one_operator=as_one_operator)
    converted, scorer = take_in(model, tmp_path)
    assert "gradients straight through" in converted.steps[0]
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.detach().numpy()})
    got = scorer.outputs(images)
    # a sum that lies between two steps may fall to either: one step of one pixel of the mean
    assert np.allclose(got.detach().numpy(), expected, atol=0.05 / 64 * np.abs(DENSE).max() * 4)
    (gradient,) = torch.autograd.grad(got[:, 0].sum(), images)
    assert gradient.abs().sum() > 0


class Calibration(CalibrationDataReader):
    """Images as onnxruntime's quantiser asks for them."""

    def __init__(self) -> None:
        self._left = [RANDOM.random((4, 3, 8, 8)).astype(np.float32)]

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        return {"x": self._left.pop()} if self._left else None


@pytest.mark.parametrize("per_channel", [True, False])
def test_what_onnxruntime_quantises_to_whole_operators_is_read(
    per_channel: bool, tmp_path: Path
) -> None:
    """QLinearConv, QLinearConcat, QLinearGlobalAveragePool and QGemm."""
    nodes = [
        node("Conv", "x k", "c", pads=[1] * 4),
        node("Concat", "c x", "cx", axis=1),
        node("GlobalAveragePool", "cx", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f d b", "y", transB=1),
    ]
    dense = RANDOM.normal(0, 1, (2, 7)).astype(np.float32)
    weights = {"k": KERNEL, "d": dense, "b": np.array([0.2, -0.1], np.float32)}
    plain = graph_of(nodes, weights, outputs=[value("y", ["batch", 2])], opset=13, ir_version=8)
    made = tmp_path / "quantised.onnx"
    quantize_static(
        plain, made, Calibration(), quant_format=QuantFormat.QOperator, per_channel=per_channel
    )
    model = load(made)
    assert {"QLinearConv", "QLinearConcat", "QGemm"} <= {n.op_type for n in model.graph.node}
    _, scorer = take_in(model, tmp_path)
    images = torch.rand(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(made)
    (expected,) = session.run(None, {"x": images.numpy()})
    assert np.allclose(scorer.outputs(images).detach().numpy(), expected, atol=0.02)
    assert np.ptp(expected[:, 0]) > 0


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, None])
@pytest.mark.parametrize("beside", [False, True])
def test_what_two_operators_round_together_scores_exactly_and_is_followed_as_if_unrounded(
    kind: int | None, beside: bool, tmp_path: Path
) -> None:
    """Casts to whole numbers and back, or what a remainder leaves (kind None); alone, and beside a
    branch that is not rounded."""
    rounded = (
        [node("Mod", "a eighth", "m", fmod=1), node("Sub", "a m", "r")]
        if kind is None
        else [
            node("Cast", "a", "i", to=kind),
            node("Cast", "i", "r", to=TensorProto.FLOAT),
        ]
    )
    nodes = [
        node("Mul", "x ten", "a"),
        *rounded,
        *([node("Add", "r x", "s")] if beside else [node("Identity", "r", "s")]),
        node("Flatten", "s", "f"),
        node("MatMul", "f w", "y"),
    ]
    w = np.random.default_rng(1).normal(size=(192, 1)).astype(np.float32)
    weights = {"ten": np.float32([10]), "eighth": np.float32(1 / 8), "w": w}
    if kind is not None:
        del weights["eighth"]
    model = graph_of(nodes, weights, opset=17, ir_version=8)
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": images.detach().numpy()})
    got = scorer(images)
    assert np.allclose(got.detach().numpy(), expected.flatten(), atol=1e-3)
    with torch.no_grad():
        assert torch.equal(scorer(images), got)
    (gradient,) = torch.autograd.grad(got.sum(), images)
    slope = torch.tensor(w).reshape(3, 8, 8).expand(3, -1, -1, -1) * (11 if beside else 10)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)


def test_a_remainder_by_itself_keeps_its_own_slope(tmp_path: Path) -> None:
    nodes = [
        node("Mod", "x two", "m", fmod=1),
        node("Flatten", "m", "f"),
        node("MatMul", "f w", "y"),
    ]
    w = np.random.default_rng(1).normal(size=(192, 1)).astype(np.float32)
    model = graph_of(nodes, {"two": np.float32(2), "w": w}, opset=17, ir_version=8)
    _, scorer = take_in(model, tmp_path, output=ONE_LOGIT)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(scorer(images).sum(), images)
    torch.testing.assert_close(gradient[0].flatten(), torch.tensor(w)[:, 0], rtol=1e-4, atol=1e-5)
