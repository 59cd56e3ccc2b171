"""torchvision's and timm's architectures: the lists are theirs, and so are the scores."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as torchvision
from safetensors.torch import save_file
from torch import nn

from adap.models import catalogue, loading
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, Manifest, OutputSpec


def manifest(name: str, *, size: int = 32, channels: int = 3, outputs: int = 1) -> Manifest:
    spec = InputSpec(
        channels=channels, height=size, width=size, mean=[0.5] * channels, std=[0.5] * channels
    )
    classes = [f"c{i}" for i in range(outputs)]
    output = OutputSpec(kind="multiclass", classes=classes) if outputs > 1 else OutputSpec()
    return Manifest(architecture=name, input=spec, output=output)


def test_the_lists_are_those_of_the_libraries() -> None:
    # of another version of a library, write its names into models/*.txt
    assert catalogue.foreign_names("torchvision") == set(torchvision.list_models(torchvision))
    assert catalogue.foreign_names("timm") == set(timm.list_models())
    longest = max(catalogue.foreign_names("timm"), key=len)
    assert manifest(f"timm/{longest}").architecture.endswith(longest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "size"),
    [
        ("torchvision/resnet34", lambda: torchvision.resnet34(num_classes=2), 32),
        (
            "torchvision/shufflenet_v2_x0_5",
            lambda: torchvision.shufflenet_v2_x0_5(num_classes=2),
            32,
        ),
        ("torchvision/mnasnet0_5", lambda: torchvision.mnasnet0_5(num_classes=2), 32),
        ("timm/resnet10t", lambda: timm.create_model("resnet10t", num_classes=2), 32),
        (
            "timm/vit_tiny_patch16_224",
            lambda: timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32),
            32,
        ),
        (
            "timm/swin_tiny_patch4_window7_224",
            lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=2, img_size=56),
            56,
        ),
    ],
)
def test_weights_come_in_and_score_as_in_their_library(
    name: str, make: object, size: int, tmp_path: Path
) -> None:
    assert callable(make)
    network: nn.Module = make().eval()
    path = tmp_path / "m.safetensors"
    save_file(network.state_dict(), path)
    scorer, _ = loading.load(path, manifest(name, size=size, outputs=2), device="cpu")
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(scorer.outputs(images), network((images - 0.5) / 0.5))


def test_timm_takes_grey_images_too(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=1, in_chans=1)
    path = tmp_path / "m.safetensors"
    save_file(network.state_dict(), path)
    scorer, _ = loading.load(path, manifest("timm/resnet10t", channels=1), device="cpu")
    assert scorer(torch.rand(2, 1, 32, 32)).shape == (2,)


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (
            manifest("torchvision/resnet18", channels=1),
            "3 channels for torchvision/resnet18, got 1",
        ),
        (manifest("torchvision/vit_b_16", size=30), "that torchvision/vit_b_16 can be built for"),
        (manifest("torchvision/resnet18"), "exactly the tensors of torchvision/resnet18"),
        (manifest("torchvision/list_models"), "an architecture among"),
        (manifest("timm/hf-hub:evil/model"), "an architecture among"),
        (manifest("os/system"), "an architecture among"),
        (manifest("torchvision/../timm/resnet18"), "an architecture among"),
    ],
)
def test_what_does_not_fit_is_refused(declared: Manifest, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match=sentence):
        loading.load(path, declared, device="cpu")
