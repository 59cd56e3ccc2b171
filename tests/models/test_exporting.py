"""Models out: PyTorch alone, and onnxruntime alone, give the scores that the service gave."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torchvision.models import resnet18

from adap.models import architectures, conversion, loading
from adap.models.exporting import to_onnx
from adap.models.header import ONE_LOGIT, InputSpec, Manifest, OutputSpec
from adap.models.wrappers import Scorer
from tests.models.exports import declaration, export, small_network


def trained(
    architecture: str = "small_cnn", *, size: int = 8, output: OutputSpec = ONE_LOGIT
) -> tuple[Scorer, Manifest]:
    spec = InputSpec(
        channels=3, height=size, width=size, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]
    )
    network = architectures.build(architecture, channels=3, seed=0, outputs=output.count)
    manifest = Manifest(architecture=architecture, input=spec, output=output, positive=["cat"])
    return Scorer(network, spec, output=output).eval(), manifest


MANY = OutputSpec(kind="multiclass", classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("architecture", "size", "output"),
    [("small_cnn", 8, ONE_LOGIT), ("small_cnn", 9, MANY), ("resnet18", 32, ONE_LOGIT)],
)
def test_onnxruntime_alone_gives_the_same_scores(
    architecture: str, size: int, output: OutputSpec, tmp_path: Path
) -> None:
    scorer, manifest = trained(architecture, size=size, output=output)
    path = tmp_path / "m.onnx"
    assert to_onnx(scorer, manifest, path) < 1e-5
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        images = torch.rand(count, 3, size, size)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            assert np.allclose(got, scorer.outputs(images).numpy(), atol=1e-5)


def test_an_export_can_be_uploaded_by_the_manifest_inside(tmp_path: Path) -> None:
    scorer, manifest = trained(output=MANY)
    path = tmp_path / "m.onnx"
    to_onnx(scorer, manifest, path)
    (entry,) = onnx.load_model(path).metadata_props
    converted = conversion.to_safetensors(path, None, folder=tmp_path)
    told = Manifest.model_validate_json(entry.value)
    assert converted.manifest is not None
    assert (converted.manifest.input, converted.manifest.output) == (told.input, told.output)
    assert "declared by the manifest in its metadata `adap`" in converted.steps
    again, _ = loading.load(converted.path, None, device="cpu", positive=["b"])
    images = torch.rand(4, 3, 8, 8)
    expected = Scorer(scorer.network, manifest.input, output=MANY, positive=["b"]).eval()
    with torch.no_grad():
        assert torch.allclose(again(images), expected(images), atol=1e-5)


def test_what_came_as_onnx_goes_as_onnx(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(export(small_network(), torch.rand(2, 3, 8, 8), legacy=True))
    manifest = trained()[1].model_copy(update={"architecture": "onnx"})
    converted = conversion.to_safetensors(path, declaration(manifest), folder=tmp_path)
    scorer, _ = loading.load(converted.path, None, device="cpu")
    assert to_onnx(scorer, manifest, tmp_path / "out.onnx") < 1e-5


def test_pytorch_alone_reads_the_safetensors_and_its_manifest(tmp_path: Path) -> None:
    scorer, manifest = trained("resnet18", size=32)
    path = tmp_path / "m.safetensors"
    loading.save(scorer, path, manifest)
    # from here on nothing of ours
    with safe_open(path, "pt") as file:
        spec = json.loads(file.metadata()["adap"])["input"]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = resnet18(num_classes=1)
    network.load_state_dict(state, strict=True)
    images = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(spec[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        alone = network.eval()((images - mean) / std).flatten()
        assert torch.equal(alone, scorer(images))


def test_an_export_still_says_what_its_single_logit_ranks_first(tmp_path: Path) -> None:
    scorer, manifest = trained()
    path = tmp_path / "m.onnx"
    to_onnx(scorer, manifest, path)
    silent = declaration(manifest.model_copy(update={"architecture": "onnx"}))
    for said, kept in ((None, ["cat"]), (["dog"], ["dog"])):
        declared = silent.model_copy(update={"positive": said})
        converted = conversion.to_safetensors(path, declared, folder=tmp_path)
        assert converted.manifest is not None
        assert converted.manifest.positive == kept
