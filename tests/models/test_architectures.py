"""Every architecture goes through the same contract; torchvision judges its own."""

import subprocess
import sys

import pytest
import torch
from torchvision.models import resnet18

from adap.models.architectures import BUILDERS, build, build_empty, start_from
from adap.models.catalogue import ARCHITECTURES, check
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, Manifest


def manifest(architecture: str, *, size: int) -> Manifest:
    spec = InputSpec(channels=1, height=size, width=size, mean=[0.5], std=[0.5])
    return Manifest(architecture=architecture, input=spec)


def test_every_architecture_is_described_and_can_be_built() -> None:
    assert list(ARCHITECTURES) == list(BUILDERS)
    assert all(info.name == name for name, info in ARCHITECTURES.items())


def test_the_catalogue_and_the_header_load_no_torch() -> None:
    code = "import sys, models.catalogue, models.header; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", BUILDERS)
class TestEveryArchitecture:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_gives_one_logit_an_image_from_its_smallest_size_on(
        self, name: str, channels: int
    ) -> None:
        network = build(name, channels=channels, seed=0).eval()
        size = ARCHITECTURES[name].minimum_size
        for height, width in ((size, size), (size + 3, size + 1)):
            assert network(torch.rand(2, channels, height, width)).shape == (2, 1)

    def test_gives_as_many_logits_as_are_asked_for(self, name: str) -> None:
        network = build(name, channels=1, seed=0, outputs=5).eval()
        size = ARCHITECTURES[name].minimum_size
        assert network(torch.rand(2, 1, size, size)).shape == (2, 5)
        empty = build_empty(name, channels=1, outputs=5).state_dict()
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in empty.items()
        }
        last = {k: v.shape[0] for k, v in empty.items() if k.startswith("fc.")}
        assert last == {"fc.weight": 5, "fc.bias": 5}

    def test_starts_from_another_network_with_or_without_its_last_layer(self, name: str) -> None:
        known = build(name, channels=1, seed=1).state_dict()
        for fresh_head, outputs in ((False, 1), (True, 1), (True, 3)):
            network = build(name, channels=1, seed=2, outputs=outputs)
            own = {key: value.clone() for key, value in network.state_dict().items()}
            start_from(network, known, fresh_head=fresh_head)
            for key, value in network.state_dict().items():
                kept = fresh_head and key in ("fc.weight", "fc.bias")
                assert torch.equal(value, own[key] if kept else known[key]), key
        with pytest.raises(RuntimeError, match="size mismatch for fc"):
            start_from(network, known, fresh_head=False)

    def test_has_the_number_of_parameters_that_is_published(self, name: str) -> None:
        network = build(name, channels=3, seed=0)
        assert sum(p.numel() for p in network.parameters()) == ARCHITECTURES[name].parameters

    def test_starts_from_the_weights_that_the_seed_gives(self, name: str) -> None:
        first, again, other = (
            build(name, channels=1, seed=seed).state_dict() for seed in (0, 0, 1)
        )
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)

    def test_does_not_move_the_random_state_of_the_process(self, name: str) -> None:
        before = torch.random.get_rng_state()
        build(name, channels=3, seed=0)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_has_the_same_tensors_when_built_empty(self, name: str) -> None:
        full = build(name, channels=1, seed=0).state_dict()
        empty = build_empty(name, channels=1).state_dict()
        assert {k: (v.shape, v.dtype) for k, v in full.items()} == {
            k: (v.shape, v.dtype) for k, v in empty.items()
        }
        assert all(value.is_meta for value in empty.values())

    def test_refuses_smaller_images(self, name: str) -> None:
        size = ARCHITECTURES[name].minimum_size
        info = check(manifest(name, size=size))
        assert info is not None
        assert info.name == name
        with pytest.raises(ModelFileError, match=f"at least {size}x{size} pixels for {name}"):
            check(manifest(name, size=size - 1))


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ModelFileError,
        match=r"small_cnn, resnet18, resnet18_3x3, thin_cnn, onnx.*, got 'os.system'",
    ):
        check(manifest("os.system", size=8))


def test_the_small_network_takes_photographs_too() -> None:
    network = build("small_cnn", channels=3, seed=0).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 224, 224)).shape == (1, 1)
    assert ARCHITECTURES["small_cnn"].parameters <= 200_000


def test_resnet18_is_torchvisions_in_every_tensor() -> None:
    ours = build("resnet18", channels=3, seed=0).eval()
    theirs = resnet18(weights=None, num_classes=1).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_the_3x3_stem_keeps_the_size_of_the_image() -> None:
    network = build("resnet18_3x3", channels=3, seed=0)
    seen = []
    stem_end = network.get_submodule("layer1")
    stem_end.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32)]


@pytest.mark.parametrize("name", ["resnet18", "resnet18_3x3"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_starts_as_torchvision_starts_its_convolutions(
    name: str, channels: int
) -> None:
    weight = build(name, channels=channels, seed=0).state_dict()["conv1.weight"]
    fan_out = 64 * weight.shape[2] * weight.shape[3]
    # He et al. (2015), eq. 14: standard deviation sqrt(2 / fan_out); 4 standard errors of slack
    expected = (2 / fan_out) ** 0.5
    assert abs(weight.std() - expected) < 4 * expected / (2 * weight.numel()) ** 0.5
