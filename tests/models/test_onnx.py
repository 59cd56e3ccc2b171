"""ONNX in: PyTorch judges scores and gradients; what is no plain network is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import nn
from torchvision import models as torchvision

from adap.models import conversion, loading, onnx_files
from adap.models.errors import ModelFileError
from adap.models.graphs import GRAPH_TENSOR, MAX_GRAPH_BYTES, OPERATORS, decode
from adap.models.header import ONE_LOGIT, InputSpec, Manifest, OutputSpec
from adap.models.limits import CostLimits
from adap.models.onnx_fitting import Original
from adap.models.wrappers import Scorer
from tests.models.exports import declaration, export, graph_of, linear, small_network, write


def manifest(
    size: int = 8, *, channels: int = 3, output: OutputSpec = ONE_LOGIT, architecture: str = "onnx"
) -> Manifest:
    spec = InputSpec(
        channels=channels, height=size, width=size, mean=[0.4] * channels, std=[0.3] * channels
    )
    return Manifest(architecture=architecture, input=spec, output=output)


def take_in(path: Path, declared: Manifest, folder: Path) -> Scorer:
    """What the intake of a model does with a file."""
    converted = conversion.to_safetensors(
        path, declaration(declared), folder=folder, limits=CostLimits(batch=5)
    )
    assert converted.format == "onnx"
    scorer, read = loading.load(converted.path, None, device="cpu")
    assert read == declared
    return scorer


def refused(model: ModelProto | bytes, folder: Path, **declared: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        take_in(write(model, folder / "m.onnx"), manifest(**declared), folder)
    return str(caught.value)


def transformer() -> nn.Module:
    network = torchvision.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=1)
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero
    return network


ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small": (small_network, 8),
    "resnet18": (lambda: torchvision.resnet18(num_classes=1), 32),
    "mobilenet_v3": (lambda: torchvision.mobilenet_v3_small(num_classes=1), 32),
    "densenet": (lambda: torchvision.DenseNet(4, (1, 1), 8, num_classes=1), 32),
    "convnext": (
        lambda: torchvision.ConvNeXt(
            [torchvision.convnext.CNBlockConfig(8, None, 2)], num_classes=1
        ),
        32,
    ),
    "transformer": (transformer, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_network_scores_and_differentiates_as_in_pytorch(name: str, tmp_path: Path) -> None:
    make, size = ZOO[name]
    torch.manual_seed(1)
    network = make().eval()
    images = torch.rand(5, 3, size, size)
    path = write(export(network, images[:2], legacy=True), tmp_path / "m.onnx")
    scorer = take_in(path, manifest(size), tmp_path)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    expected = network((theirs - 0.4) / 0.3).flatten()
    got = scorer(ours)
    # both run the same float32 kernels, apart from BatchNorm that the exporter folds
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
    got.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    largest = theirs.grad.abs().max()
    assert (ours.grad - theirs.grad).abs().max() <= 1e-4 * largest
    assert loading.probe(scorer).problems == []


@pytest.mark.slow
def test_the_exporter_of_today_is_read_too(tmp_path: Path) -> None:
    network = small_network(channels=1, outputs=3)
    images = torch.rand(4, 1, 9, 9)
    path = write(export(network, images[:2]), tmp_path / "m.onnx")
    output = OutputSpec(kind="multiclass", classes=["a", "b", "c"])
    scorer = take_in(path, manifest(9, channels=1, output=output), tmp_path)
    with torch.no_grad():
        assert torch.allclose(scorer.outputs(images), network((images - 0.4) / 0.3), atol=1e-6)


def test_what_is_kept_is_the_same_each_time_and_can_be_sent_again(tmp_path: Path) -> None:
    path = write(export(small_network(), torch.rand(2, 3, 8, 8), legacy=True), tmp_path / "m.onnx")
    scorer = take_in(path, manifest(), tmp_path)
    first = (tmp_path / "converted.safetensors").read_bytes()
    saved = tmp_path / "saved.safetensors"
    loading.save(scorer, saved, manifest())
    assert saved.read_bytes() == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = conversion.to_safetensors(saved, None, folder=elsewhere)
    assert again.path == saved
    other, _ = loading.load(saved, None, device="cpu")
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(other(images), scorer(images))


def test_names_of_the_file_do_not_survive(tmp_path: Path) -> None:
    evil = "../../<script>\n"
    model = linear()
    text = model.SerializeToString().replace(b"weight", b"we/../")
    take_in(write(text, tmp_path / "m.onnx"), manifest(), tmp_path)
    node = helper.make_node("Relu", ["p"], ["y"], name=evil, doc_string=evil)
    take_in(write(linear(node, output="p"), tmp_path / "m.onnx"), manifest(), tmp_path)
    content = (tmp_path / "converted.safetensors").read_bytes()
    assert b"script" not in content
    assert sorted(read_tensors(content)) == [GRAPH_TENSOR, "w0"]


def test_an_onnx_file_needs_its_declaration(tmp_path: Path) -> None:
    path = write(linear(), tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"an input declaration \(`input`, --size\)"):
        conversion.to_safetensors(path, None, folder=tmp_path)
    other = declaration(manifest(architecture="small_cnn"))
    with pytest.raises(ModelFileError, match="the architecture 'onnx' with an ONNX file"):
        conversion.to_safetensors(path, other, folder=tmp_path)


# --- S3: tensors outside the file -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["..", "absolute", "symlink", "hardlink"])
@pytest.mark.parametrize("where", ["weight", "constant"])
def test_tensors_outside_the_file_are_refused_unread(kind: str, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    pipe = tmp_path / "secret"
    os.mkfifo(pipe)  # whoever opens it waits for ever
    inside = folder / "weights.bin"
    if kind == "symlink":
        inside.symlink_to(pipe)
    elif kind == "hardlink":
        inside.hardlink_to(pipe)
    location = {"..": "../secret", "absolute": str(pipe)}.get(kind, inside.name)
    model = linear(helper.make_node("Add", ["p", "bias"], ["y"]), output="p")
    tensor = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if where == "weight":
        model.graph.initializer.append(tensor)
    else:
        constant = helper.make_node("Constant", [], ["bias"], value=tensor)
        model.graph.node.insert(0, constant)
    with pytest.raises(ModelFileError, match="'bias' with external data, which is never looked"):
        take_in(write(model, folder / "m.onnx"), manifest(), folder)


def test_a_location_is_refused_even_where_it_is_not_used(tmp_path: Path) -> None:
    model = linear()
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    assert "external data" in refused(model, tmp_path)


# --- what is no plain network ---------------------------------------------------------------------


def branch() -> ModelProto:
    side = helper.make_graph(
        [helper.make_node("Identity", ["p"], ["q"])],
        "side",
        [],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["batch", 1])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["p"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["y"], then_branch=side, else_branch=side),
    ]
    return linear(*nodes, output="p")


def hidden_branch() -> ModelProto:
    """A graph as the attribute of an operator that takes none."""
    model = branch()
    model.graph.node[-1].op_type = "Relu"
    return model


def of_a_domain(domain: str = "com.evil", operator: str = "Relu") -> ModelProto:
    model = linear(helper.make_node(operator, ["p"], ["y"], domain=domain), output="p")
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_a_function() -> ModelProto:
    model = linear()
    model.functions.append(
        helper.make_function("", "Relu", ["a"], ["b"], [], [helper.make_opsetid("", 18)])
    )
    return model


def of_pixel_dependent_size() -> ModelProto:
    """Memory that the brightness of a pixel asks for."""
    return linear(
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["count", "one"], ["shape"]),
        helper.make_node("Expand", ["p", "shape"], ["y"]),
        output="p",
        weights={"one": np.array([1])},
    )


def with_weight(value: Any) -> ModelProto:
    node = helper.make_node("Add", ["p", "bias"], ["y"])
    return linear(node, output="p", weights={"bias": value})


def with_tensor(**fields: Any) -> ModelProto:
    model = with_weight(np.zeros(1, np.float32))
    model.graph.initializer[1].CopyFrom(TensorProto(name="bias", **fields))
    return model


def relu(**attributes: Any) -> ModelProto:
    return linear(helper.make_node("Relu", ["p"], ["y"], **attributes), output="p")


REFUSED: dict[str, tuple[Callable[[], ModelProto | bytes], str]] = {
    "an operator that is not known": (
        lambda: linear(helper.make_node("NonZero", ["p"], ["y"]), output="p"),
        "operators that are known here, got 'NonZero'",
    ),
    "an operator of somebody else": (of_a_domain, "got 'com.evil.Relu'"),
    "a branch": (branch, "got 'If'"),
    "a hidden branch": (hidden_branch, "branches and loops are not taken"),
    "a function": (with_a_function, "in a domain of their own, got 'Relu'"),
    "a size from pixels": (of_pixel_dependent_size, "do not depend on pixel values, got Expand"),
    "a mean over the batch": (
        lambda: graph_of([helper.make_node("ReduceMean", ["x"], ["y"])], size=(1, 3, 8, 8)),
        "the outputs of onnxruntime for 3 images, (3, 1), got (1, 1): the file joins the images",
    ),
    "another size": (
        lambda: graph_of([helper.make_node("ReduceMean", ["x"], ["y"])], size=("batch", 3, 9, 8)),
        "as declared, got (any, 3, 9, 8): declare --size 8x9 --channels 3",
    ),
    "a flat input": (
        lambda: graph_of([helper.make_node("ReduceMean", ["x"], ["y"])], size=("batch", 192)),
        "got rows of 192 pixels, which do not tell whether a pixel's colours lie together",
    ),
    "whole numbers as input": (
        lambda: graph_of(
            [helper.make_node("Cast", ["x"], ["y"], to=1)],
            inputs=[helper.make_tensor_value_info("x", TensorProto.INT64, ["b", 3, 8, 8])],
        ),
        "images as floats or bytes, got an input of INT64",
    ),
    "two inputs": (
        lambda: graph_of(
            [helper.make_node("Add", ["x", "z"], ["y"])],
            inputs=[
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, 8, 8])
                for name in ("x", "z")
            ],
        ),
        "one input, the images, got 2: 'x', 'z'",
    ),
    "two outputs": (
        lambda: graph_of(
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
            outputs=[
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, 8, 8])
                for name in ("y", "z")
            ],
        ),
        "one output, the scores, got 2: 'y', 'z'",
    ),
    "a constant output": (
        lambda: graph_of(
            [helper.make_node("Relu", ["w"], ["y"])], {"w": np.ones((1, 1), np.float32)}
        ),
        "an output that depends on the images, got a constant",
    ),
    "the images themselves": (
        lambda: graph_of([helper.make_node("Identity", ["x"], ["y"])]),
        "without operators",
    ),
    "training mode": (
        lambda: linear(
            helper.make_node("Dropout", ["p", "half", "yes"], ["y"]),
            output="p",
            weights={"half": np.array(0.5, np.float32), "yes": np.array(True)},
        ),
        "eval mode, got Dropout in training mode; call model.eval() before",
    ),
    "complex numbers": (
        lambda: with_weight(np.zeros(1, np.complex64)),
        "got COMPLEX64 in 'bias'; export the network in float32",
    ),
    "text": (lambda: with_tensor(data_type=TensorProto.STRING, dims=[1]), "got STRING"),
    "an unknown kind": (lambda: with_tensor(data_type=200, dims=[1]), "got another kind"),
    "NaN": (lambda: with_weight(np.array([np.nan], np.float32)), "finite weights, got NaN"),
    "fewer numbers than said": (
        lambda: with_tensor(data_type=1, dims=[1000], raw_data=bytes(8)),
        "as many numbers as 'bias' declares",
    ),
    "a huge tensor without numbers": (
        lambda: with_tensor(data_type=1, dims=[2**40, 2**20], raw_data=b""),
        "as many numbers as 'bias' declares",
    ),
    "a negative size": (
        lambda: with_tensor(data_type=1, dims=[-1], raw_data=b""),
        "",
    ),
    "an attribute that is not the operator's": (
        lambda: relu(alpha=1.0),
        "operators used as ONNX defines them, got Unrecognized attribute: alpha",
    ),
    "an attribute that is not finite": (
        lambda: linear(helper.make_node("Elu", ["p"], ["y"], alpha=np.inf), output="p"),
        "plain numbers in Elu",
    ),
    "a value before it is made": (
        lambda: linear(helper.make_node("Add", ["p", "later"], ["y"]), output="p"),
        "made before they are used, got 'later'",
    ),
    "a name used twice": (
        lambda: linear(helper.make_node("Relu", ["y"], ["y"])),
        "named once, got 'y' again",
    ),
    "a new opset": (
        lambda: graph_of([], opset=99),
        "opset from 7 to 25, got 99: export it with another (opset_version=18), or convert it: "
        "onnx.save(onnx.version_converter.convert_version(",
    ),
    "an operator of onnxruntime's optimisation": (
        lambda: of_a_domain("com.microsoft", "FusedConv"),
        "which onnxruntime's optimisation or quantisation made: send the file from before it",
    ),
    "probabilities under names": (
        lambda: of_a_domain("ai.onnx.ml", "ZipMap"),
        "convert with options={'zipmap': False}",
    ),
    "a cut file": (
        lambda: linear().SerializeToString()[:-40],
        "a sound ONNX file, got one that was cut",
    ),
    "noise": (
        lambda: b"\x08\x08\x12" + bytes(range(256)),
        "a sound ONNX file, got one that was cut",
    ),
    "infinite outputs": (
        lambda: linear(
            helper.make_node("Exp", ["p"], ["q"]),
            helper.make_node("Exp", ["q"], ["r"]),
            helper.make_node("Exp", ["r"], ["y"]),
            output="p",
        ),
        "finite outputs, got NaN or infinity from onnxruntime",
    ),
    "sizes that do not fit": (
        lambda: with_weight(np.zeros((7, 5), np.float32)),
        "",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_network_is_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    message = refused(make(), tmp_path)
    assert message.startswith("expected ")
    assert sentence in message
    assert not (tmp_path / "converted.safetensors").exists()


def test_more_operators_than_allowed_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"r{i}"]) for i in range(10_001)]
    assert "at most 10000 operators, got 10001" in refused(graph_of(nodes), tmp_path)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(linear(), tmp_path / "m.onnx")
    with path.open("r+b") as file:
        file.truncate(onnx_files.MAX_BYTES + 1)  # sparse: it takes no space
    with pytest.raises(ModelFileError, match="at most 1073741824 bytes, got 1073741825"):
        conversion.to_safetensors(path, declaration(manifest()), folder=tmp_path)


def test_a_network_that_differs_from_the_file_is_noticed(tmp_path: Path) -> None:
    scorer = take_in(write(linear(), tmp_path / "m.onnx"), manifest(), tmp_path)
    other = linear()
    values = numpy_helper.to_array(other.graph.initializer[0]) * np.float32(1.01)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "weight"))
    path = write(other, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="outputs of onnxruntime, got a network in PyTorch"):
        onnx_files.compare(Original.of(path), scorer.network, scorer.input_spec)


# --- the kept form, which anybody may send --------------------------------------------------------


def kept(folder: Path) -> dict[str, torch.Tensor]:
    node = helper.make_node("Relu", ["p"], ["y"])
    take_in(write(linear(node, output="p"), folder / "m.onnx"), manifest(), folder)
    return read_tensors((folder / "converted.safetensors").read_bytes())


def as_tensor(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"Relu"', b'"Loop"', "operators that are known here, got 'Loop'"),
        (b'"Relu"', b'"os.system"', "got 'os.system'"),
        (b'"inputs":["v1"]', b'"inputs":["v7"]', "v7 to be made before Relu"),
        (b'"inputs":["v1"]', b'"inputs":["v2"]', "v2 to be made before Relu"),
        (b'"outputs":["v2"]', b'"outputs":["v1"]', "got v1 again"),
        (b'"outputs":["v2"]', b'"outputs":["x"]', "got x again"),
        (b'"outputs":["v2"]', b'"outputs":["forward"]', "valid operations, got nodes.2"),
        (b'"output":"v2"', b'"output":"w0"', "got a constant"),
        (b'"opset":18', b'"opset":999', "valid operations, got opset"),
        (b'"opset":18', b'"opset":18,"code":"x"', "valid operations, got code"),
        (b'"attributes":{}', b'"attributes":{"__class__":1}', "valid operations"),
        (b'"attributes":{}', b'"attributes":{"domain":"evil"}', "as ONNX defines them"),
        (b'"attributes":{}', b'"attributes":{"a":{"tensor":"w5"}}', "w5 to be made before"),
        (b'"attributes":{}', b'"attributes":{"a":{"path":"w5"}}', "valid operations"),
        (b"{", b"[", "valid operations"),
        (b"}", b"", "valid operations"),
    ],
)
def test_a_graph_that_was_changed_is_refused(
    old: bytes, new: bytes, sentence: str, tmp_path: Path
) -> None:
    tensors = kept(tmp_path)
    graph = tensors[GRAPH_TENSOR].numpy().tobytes()
    assert old in graph
    head, _, rest = graph.rpartition(old)
    path = tmp_path / "changed.safetensors"
    path.write_bytes(write_tensors({**tensors, GRAPH_TENSOR: as_tensor(head + new + rest)}))
    with pytest.raises(ModelFileError) as caught:
        loading.load(path, manifest(), device="cpu")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({GRAPH_TENSOR: None}, "with a graph (tensor 'graph' of bytes), got 'w0'"),
        ({GRAPH_TENSOR: torch.zeros(4)}, "with a graph"),
        ({"../w1": torch.zeros(1)}, "'../w1' (F32)"),
        ({"w1": torch.zeros(1, dtype=torch.float64)}, "'w1' (F64)"),
        ({"w0": torch.full((192, 1), torch.inf)}, "finite weights"),
        ({GRAPH_TENSOR: torch.zeros(MAX_GRAPH_BYTES + 1, dtype=torch.uint8)}, "at most"),
    ],
)
def test_other_tensors_beside_the_graph_are_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in {**kept(tmp_path), **change}.items() if v is not None}
    path = tmp_path / "changed.safetensors"
    path.write_bytes(write_tensors(tensors))
    with pytest.raises(ModelFileError) as caught:
        loading.load(path, manifest(), device="cpu")
    assert sentence in str(caught.value)


def test_a_tensor_of_another_shape_fails_the_probe(tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    path.write_bytes(write_tensors({**kept(tmp_path), "w0": torch.zeros(5, 5)}))
    scorer, _ = loading.load(path, manifest(), device="cpu")
    assert "does not run" in loading.probe(scorer).problems[0]


def test_a_graph_survives_being_written(tmp_path: Path) -> None:
    content = kept(tmp_path)[GRAPH_TENSOR].numpy().tobytes()
    graph = decode(content)
    assert graph.encode() == content
    assert [node.operator for node in graph.nodes] == ["Flatten", "MatMul", "Relu"]


def test_the_graph_of_a_trusted_file_gives_its_logits(tmp_path: Path) -> None:
    network = small_network()
    images = torch.rand(3, 3, 8, 8)
    path = write(export(network, images[:2], legacy=True), tmp_path / "m.onnx")
    graph, arrays = onnx_files.read(path, manifest().input)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        got = onnx_files.GraphNetwork(graph, tensors).eval()(images)
        assert torch.allclose(got.flatten(), network(images).flatten(), atol=1e-6)


def test_what_is_kept_is_onnx_again(tmp_path: Path) -> None:
    network = small_network()
    images = torch.rand(3, 3, 8, 8)
    path = write(export(network, images[:2], legacy=True), tmp_path / "m.onnx")
    scorer = take_in(path, manifest(), tmp_path)
    assert isinstance(scorer.network, onnx_files.GraphNetwork)
    model = onnx_files.as_onnx(scorer.network.graph, scorer.network.tensors())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (got,) = session.run(None, {"x": images.numpy()})
    with torch.no_grad():
        assert np.allclose(got, network(images).numpy(), atol=1e-6)


def test_no_operator_may_branch_loop_or_read() -> None:
    forbidden = {"If", "Loop", "Scan", "SequenceMap", "ImageDecoder", "NonZero", "TopK", "Unique"}
    assert forbidden.isdisjoint(OPERATORS)
    assert not any(name.startswith(("Random", "Bernoulli", "Multinomial")) for name in OPERATORS)
