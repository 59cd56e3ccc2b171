"""Files in half and double precision or of bytes; onnxruntime on each as it came judges."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from adap.models import conversion, loading
from adap.models.conversion import Converted
from adap.models.errors import ModelFileError
from adap.models.header import Declaration, InputSpec, OutputSpec
from adap.models.wrappers import Scorer
from adap.reading import Fact
from tests.models.exports import export, graph_of, write

TWO = OutputSpec(kind="multiclass", classes=["cat", "dog"])
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(0, 0.3, (40, 3, 6, 6)).astype(np.float32)  # 4,320: held beside the model
DENSE = RANDOM.normal(0, 1, (40, 2)).astype(np.float32)


def network(
    *first: Any,
    images: str = "x",
    kind: int = TensorProto.FLOAT,
    size: tuple[Any, ...] = ("batch", 3, 8, 8),
    weights: dict[str, Any] | None = None,
) -> ModelProto:
    """A convolution, a mean, two logits; `first` stands before them."""
    nodes = [
        *first,
        helper.make_node("Conv", [images, "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])]
    held = {"k": KERNEL, "d": DENSE, **(weights or {})}
    model = graph_of(nodes, held, outputs=outputs, size=size, opset=17, ir_version=8)
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


def cast(name: str, to: str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_node("Cast", [name], [to], to=kind)


def take_in(model: ModelProto, folder: Path, **spec: Any) -> tuple[Converted, Scorer]:
    plain = {"channels": 3, "height": 8, "width": 8, "mean": [0.0] * 3, "std": [1.0] * 3}
    declared = Declaration(architecture=None, input=InputSpec(**{**plain, **spec}), output=TWO)
    path = write(model, folder / "m.onnx")
    converted = conversion.to_safetensors(path, declared, folder=folder)
    scorer, _ = loading.load(converted.path, None, device="cpu")
    return converted, scorer


def said(converted: Converted, level: str) -> list[Fact]:
    """What was said of another precision than float32."""
    return [f for f in converted.facts if (f.code, f.level) == ("made_float32", level)]


def asked(model: ModelProto, images: np.ndarray) -> np.ndarray:
    """(N, 2) logits by onnxruntime, of images as the file takes them."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (answer,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(answer, np.float32)


@pytest.mark.parametrize("ends_too", [True, False])
def test_half_precision_is_computed_in_single(ends_too: bool, tmp_path: Path) -> None:
    model = convert_float_to_float16(network(), keep_io_types=not ends_too)
    converted, scorer = take_in(model, tmp_path)
    assert "float16 made float32" in converted.steps
    (caution,) = said(converted, "caution")
    assert "is not measured, as onnxruntime on a CPU does not compute in half" in caution.message
    images = torch.rand(3, 3, 8, 8).half().float()
    got = scorer.outputs(images).numpy(force=True)
    sent = images.numpy().astype(np.float16 if ends_too else np.float32)
    assert np.abs(got - asked(model, sent)).max() < 5e-3  # what half precision rounds
    # the same weights, computed in single precision
    kernel, dense = (
        torch.from_numpy(w.astype(np.float16).astype(np.float32)) for w in (KERNEL, DENSE)
    )
    maps = torch.relu(torch.nn.functional.conv2d(images, kernel))
    assert torch.allclose(torch.from_numpy(got), maps.mean((2, 3)) @ dense, atol=1e-5)


def test_onnxruntime_itself_does_not_compute_in_half_precision() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Add", ["f", "far"], ["a"]),
        helper.make_node("Sub", ["a", "far"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    weights = RANDOM.normal(0, 1, (192, 2)).astype(np.float16)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 2])]
    held = {"far": np.array(200, np.float16), "w": weights}
    model = graph_of(nodes, held, outputs=outputs, size=("batch", 3, 8, 8), opset=17, ir_version=8)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    images = RANDOM.random((3, 3, 8, 8)).astype(np.float16)
    flat, far = images.reshape(3, -1), np.float16(200)
    single = flat.astype(np.float32) @ weights.astype(np.float32)
    half = (flat + far - far).astype(np.float32) @ weights.astype(np.float32)
    got = asked(model, images)
    assert np.abs(got - single).max() < 0.05 < 0.5 < np.abs(got - half).max()


def test_weights_that_are_only_kept_in_half_precision_are_no_caution(tmp_path: Path) -> None:
    model = network(cast("k16", "k"), weights={"k16": KERNEL.astype(np.float16)})
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "k"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    converted, scorer = take_in(model, tmp_path)
    assert "float16 made float32" in converted.steps
    assert not [fact for fact in converted.facts if fact.code == "made_float32"]
    images = torch.rand(2, 3, 8, 8)
    expected = asked(model, images.numpy())
    assert np.abs(scorer.outputs(images).numpy(force=True) - expected).max() < 1e-4


def in_other_numbers(model: ModelProto, kind: int) -> ModelProto:
    """The same, all in another kind of number."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            helper.make_tensor(
                tensor.name, kind, tensor.dims, numpy_helper.to_array(tensor).flatten()
            )
        )
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("ends_in_softmax", [False, True])
def test_double_precision_that_onnxruntime_does_not_run_is_compared_in_single(
    ends_in_softmax: bool,
    tmp_path: Path,
) -> None:
    model = in_other_numbers(network(), TensorProto.DOUBLE)
    if ends_in_softmax:
        model.graph.node.append(helper.make_node("Softmax", ["y"], ["q"]))
        model.graph.output[0].name = "q"
    converted, scorer = take_in(model, tmp_path)
    assert "float64 made float32" in converted.steps
    assert any("which does not run the file itself" in step for step in converted.steps)
    (info,) = said(converted, "info")
    assert "not measured, as onnxruntime does not run it" in info.message
    images = torch.rand(2, 3, 8, 8)
    assert np.allclose(
        scorer.outputs(images).numpy(force=True), asked(network(), images.numpy()), atol=1e-5
    )


@pytest.mark.parametrize(("far", "level"), [(1.0, "info"), (3e4, "caution")])
def test_double_precision_is_a_caution_where_single_precision_differs(
    far: float, level: str, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Add", ["f", "far"], ["a"]),
        helper.make_node("Sub", ["a", "far"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 2])]
    held = {"far": np.array(far), "w": RANDOM.normal(0, 1, (192, 2))}
    model = graph_of(nodes, held, outputs=outputs, size=("batch", 3, 8, 8), opset=17, ir_version=8)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    converted, _ = take_in(model, tmp_path)
    (fact,) = said(converted, level)
    assert ("may rank otherwise" in fact.message) is (level == "caution")
    assert (fact.figures["difference"] > 1e-4) is (level == "caution")


@pytest.mark.parametrize("where", ["images", "scores", "all"])
def test_bfloat16_is_compared_in_single_precision(where: str, tmp_path: Path) -> None:
    ends = {"images": network(cast("x", "f0"), images="f0", kind=TensorProto.BFLOAT16)}
    ends["scores"] = network()
    ends["scores"].graph.node.append(cast("y", "z", TensorProto.BFLOAT16))
    ends["scores"].graph.output[0].name = "z"
    ends["scores"].graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    ends["all"] = in_other_numbers(network(), TensorProto.BFLOAT16)
    converted, scorer = take_in(ends[where], tmp_path)
    assert any("which does not run the file itself" in step for step in converted.steps)
    (caution,) = said(converted, "caution")
    assert "computes in bfloat16" in caution.message
    images = torch.rand(2, 3, 8, 8)
    kernel, dense = (torch.from_numpy(weights) for weights in (KERNEL, DENSE))
    if where == "all":
        kernel, dense = kernel.bfloat16().float(), dense.bfloat16().float()
    maps = torch.relu(torch.nn.functional.conv2d(images, kernel))
    assert torch.allclose(scorer.outputs(images), maps.mean((2, 3)) @ dense, atol=1e-5)


SCALE = {"s": np.array(255, np.float32), "half": np.array(0.5, np.float32)}
BYTES: dict[str, ModelProto] = {
    "cast": network(cast("x", "f0"), images="f0", kind=TensorProto.UINT8),
    "cast, divided, centred": network(
        cast("x", "a"),
        helper.make_node("Div", ["a", "s"], ["b"]),
        helper.make_node("Sub", ["b", "half"], ["n"]),
        images="n",
        kind=TensorProto.UINT8,
        weights=SCALE,
    ),
    "channels last, turned before the cast": network(
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        cast("t", "f0"),
        images="f0",
        kind=TensorProto.UINT8,
        size=("batch", 8, 8, 3),
    ),
    "dequantised": network(
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["n"]),
        images="n",
        kind=TensorProto.UINT8,
        weights={"scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)},
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_images_of_bytes_score_as_in_onnxruntime_and_have_a_gradient(
    case: str, tmp_path: Path
) -> None:
    model = BYTES[case]
    converted, scorer = take_in(model, tmp_path)
    assert "images of bytes taken as floats from 0 to 255" in converted.steps
    assert converted.manifest is not None
    assert converted.manifest.input.value_range == "0..255"
    pixels = RANDOM.integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    images = torch.from_numpy(pixels / np.float32(255)).requires_grad_()
    got = scorer.outputs(images)
    sent = pixels.transpose(0, 2, 3, 1) if "channels last" in case else pixels
    expected = asked(model, np.ascontiguousarray(sent))
    assert np.abs(got.numpy(force=True) - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    (gradient,) = torch.autograd.grad(got[:, 0].sum(), images)
    assert gradient.abs().sum() > 0


class Masked(nn.Module):
    """Attention in which no place sees those behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut = nn.Conv2d(3, 8, 4, stride=4)
        self.ask, self.tell, self.end = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = self.cut(images).flatten(2).transpose(1, 2)
        scores = self.ask(places) @ self.tell(places).transpose(1, 2)
        behind = torch.ones(4, 4, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(behind, float("-inf")).softmax(-1)
        answer: torch.Tensor = self.end((weights @ places)[:, 0])
        return answer


def test_a_mask_of_minus_infinity_stays_a_mask_and_infinite_weights_are_refused(
    tmp_path: Path,
) -> None:
    network = Masked().eval()
    path = tmp_path / "masked.onnx"
    path.write_bytes(export(network, torch.rand(2, 3, 8, 8), legacy=True))
    model = onnx.load(path)
    converted, scorer = take_in(model, tmp_path)
    assert "masks of minus infinity made those of the lowest number" in converted.steps
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    got = scorer.outputs(images)
    assert torch.allclose(got, network(images), atol=1e-5)
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    for tensor in model.graph.initializer:
        if tensor.name.endswith("end.bias"):
            diverged = np.array([-np.inf, 0], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(diverged, tensor.name))
    with pytest.raises(ModelFileError, match="finite weights"):
        take_in(model, tmp_path)


def test_bytes_are_not_normalised_by_the_declaration_and_stay_bytes_for_nobody(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelFileError, match=r"no mean and std .*without --imagenet"):
        take_in(BYTES["cast"], tmp_path, mean=[0.4] * 3)
    counted = network(
        helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[1, 1]),
        cast("m", "f0"),
        images="f0",
        kind=TensorProto.UINT8,
    )
    with pytest.raises(ModelFileError, match=r"got MaxPool of bytes; export .*float32 input"):
        take_in(counted, tmp_path)
