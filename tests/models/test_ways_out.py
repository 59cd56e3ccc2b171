"""Each way out that docs/models.md names for a file that is refused, walked with a real file."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from adap.models import conversion, loading
from adap.models.architectures import build
from adap.models.costs import check_cost, foresee
from adap.models.errors import ModelFileError
from adap.models.header import Declaration, InputSpec
from adap.models.limits import CostLimits
from tests.models.exports import export

IMAGES = torch.rand(3, 3, 16, 16)


def network() -> nn.Module:
    return build("small_cnn", channels=3, seed=0).eval()


LIMITS = CostLimits(batch=3)


def take_in(path: Path, *, limits: CostLimits = LIMITS) -> Tensor:
    """The logits of `IMAGES` by what became of the file, whose architecture it tells itself."""
    spec = InputSpec(channels=3, height=16, width=16, mean=[0.0] * 3, std=[1.0] * 3)
    declared = Declaration(architecture=None, input=spec)
    converted = conversion.to_safetensors(path, declared, folder=path.parent, limits=limits)
    scorer, _ = loading.load(converted.path, converted.manifest, device="cpu")
    assert loading.probe(scorer).problems == []
    with torch.no_grad():
        return scorer(IMAGES)


def weights(module: nn.Module, path: Path) -> None:
    save_file(module.state_dict(), path)


def whole_module(path: Path) -> Callable[[], None]:
    torch.save(network(), path)
    return lambda: weights(torch.load(path, weights_only=False), path)


def before_pytorch_1_6(path: Path) -> Callable[[], None]:
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False)
    return lambda: torch.save(torch.load(path, map_location="cpu", weights_only=True), path)


def torchscript(path: Path) -> Callable[[], None]:
    torch.jit.save(torch.jit.trace(network(), IMAGES), path)
    return lambda: weights(torch.jit.load(path), path)


def exported_program(path: Path) -> Callable[[], None]:
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network(), (IMAGES,), dynamic_shapes=batch)
    saved = path.with_suffix(".pt2")
    torch.export.save(program, saved)
    path.write_bytes(saved.read_bytes())

    def instead() -> None:
        made = torch.onnx.export(torch.export.load(saved), dynamo=True, verbose=False)
        assert made is not None
        buffer = io.BytesIO()
        made.save(buffer)
        path.write_bytes(buffer.getvalue())

    return instead


def tensors_in_another_file(path: Path) -> Callable[[], None]:
    model = onnx.load_from_string(export(network(), IMAGES, legacy=True))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return lambda: onnx.save(onnx.load(path), path)


def with_post_processing(path: Path) -> Callable[[], None]:
    """A branch on its answers, as exporters of detectors write them."""
    content = export(network(), IMAGES, legacy=True)
    model = onnx.load_from_string(content)
    scores = model.graph.output[0].name
    side = helper.make_tensor_value_info("side", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", [scores], ["side"])], "b", [], [side])
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", [scores], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["found"], to=TensorProto.BOOL),
            helper.make_node("If", ["found"], ["last"], then_branch=branch, else_branch=branch),
        ]
    )
    model.graph.output[0].name = "last"
    path.write_bytes(model.SerializeToString())
    return lambda: _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


WAYS: dict[str, tuple[Callable[[Path], Callable[[], None]], str]] = {
    "whole module": (whole_module, "save_file(model.state_dict()"),
    "before PyTorch 1.6": (before_pytorch_1_6, "torch.save(torch.load("),
    "TorchScript": (torchscript, "a TorchScript archive"),
    "torch.export": (exported_program, "torch.onnx.export"),
    "tensors in another file": (tensors_in_another_file, "onnx.save(onnx.load('model.onnx')"),
    "post-processing": (with_post_processing, "without pre- and post-processing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WAYS)
def test_what_is_refused_is_ready_once_the_advice_was_followed(case: str, tmp_path: Path) -> None:
    write, said = WAYS[case]
    path = tmp_path / "upload"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instead = write(path)
        with pytest.raises(ModelFileError) as caught:
            take_in(path)
        assert said in str(caught.value)
        instead()
    got = take_in(path)
    with torch.no_grad():
        assert torch.allclose(got, network()(IMAGES).flatten(), atol=1e-5)


def test_a_network_that_is_too_costly_is_taken_at_a_smaller_size(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    save_file(network().state_dict(), path)
    spec = InputSpec(channels=3, height=64, width=64, mean=[0.0] * 3, std=[1.0] * 3)
    cost = foresee(network(), spec, 1, CostLimits())
    limits = CostLimits(flops=cost.flops - 1)
    with pytest.raises(ModelFileError, match="ADAP_MAX_MODEL_FLOPS"):
        check_cost(network(), spec, limits)
    smaller = spec.model_copy(update={"height": 32, "width": 32})
    assert check_cost(network(), smaller, limits).flops < cost.flops / 3
    assert take_in(path, limits=limits).shape == (3,)
