"""Models to files and back. The judge is PyTorch with safetensors and torchvision, without us."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from adap.models.architectures import build
from adap.models.errors import ModelFileError, TaskError
from adap.models.header import InputSpec, Manifest, OutputSpec, embedded_manifest, read_header
from adap.models.loading import load, probe, save
from adap.models.wrappers import Scorer

GREY = InputSpec(channels=1, height=8, width=8, mean=[0.3], std=[0.4])
COLOUR = InputSpec(channels=3, height=32, width=32, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])


def trained_scorer(architecture: str, spec: InputSpec) -> Scorer:
    """A network whose BatchNorm statistics are no longer those it was born with."""
    generator = torch.Generator().manual_seed(1)
    scorer = Scorer(build(architecture, channels=spec.channels, seed=1), spec).train()
    with torch.no_grad():
        for _ in range(3):
            scorer(torch.rand(4, spec.channels, spec.height, spec.width, generator=generator))
    return scorer.eval()


def images(spec: InputSpec, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, spec.channels, spec.height, spec.width, generator=generator)


def manifest(architecture: str, spec: InputSpec) -> Manifest:
    return Manifest(architecture=architecture, input=spec, positive=["8"], training={"epochs": 2})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("architecture", "spec"),
    [("small_cnn", GREY), ("small_cnn", COLOUR), ("resnet18", COLOUR), ("resnet18_3x3", GREY)],
)
def test_a_model_scores_bit_for_bit_the_same_after_a_round_trip(
    architecture: str, spec: InputSpec, path: Path
) -> None:
    scorer = trained_scorer(architecture, spec)
    save(scorer, path, manifest(architecture, spec))
    loaded, loaded_manifest = load(path, device="cpu")
    assert loaded_manifest == manifest(architecture, spec)
    assert not loaded.training
    assert loaded.input_spec == spec
    with torch.no_grad():
        assert torch.equal(loaded(images(spec)), scorer(images(spec)))
    assert embedded_manifest(read_header(path)) == manifest(architecture, spec)


def test_an_exported_resnet_gives_the_same_scores_without_this_project(path: Path) -> None:
    scorer = trained_scorer("resnet18", COLOUR)
    save(scorer, path, manifest("resnet18", COLOUR))

    network = resnet18(num_classes=1)
    network.load_state_dict(load_file(path))
    network.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (COLOUR.mean, COLOUR.std))
    with torch.no_grad():
        theirs = network((images(COLOUR) - mean) / std).squeeze(1)
        assert torch.equal(scorer(images(COLOUR)), theirs)


def test_an_exported_small_network_gives_the_same_scores_without_this_project(path: Path) -> None:
    scorer = trained_scorer("small_cnn", GREY)
    save(scorer, path, manifest("small_cnn", GREY))

    layers: list[tuple[str, nn.Module]] = []
    for number, (before, after, stride) in enumerate([(1, 32, 1), (32, 64, 2), (64, 128, 2)], 1):
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers.append((f"conv{number}", convolution))
        layers.append((f"norm{number}", nn.BatchNorm2d(after)))
        layers.append((f"relu{number}", nn.ReLU()))
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(128, 1))]
    network = nn.Sequential(OrderedDict(layers))
    network.load_state_dict(load_file(path))
    network.eval()
    with torch.no_grad():
        theirs = network((images(GREY) - 0.3) / 0.4).squeeze(1)
        torch.testing.assert_close(scorer(images(GREY)), theirs, rtol=0, atol=0)


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        scorer = trained_scorer("small_cnn", GREY).to(memory_format=torch.channels_last)
        save(scorer, tmp_path / name, manifest("small_cnn", GREY))
    plain = trained_scorer("small_cnn", GREY)
    save(plain.network, tmp_path / "network", manifest("small_cnn", GREY))
    contents = {(tmp_path / name).read_bytes() for name in ("first", "second", "network")}
    assert len(contents) == 1


def test_a_manifest_that_is_passed_goes_before_the_one_inside(path: Path) -> None:
    save(trained_scorer("small_cnn", GREY), path, manifest("small_cnn", GREY))
    other = GREY.model_copy(update={"mean": [0.9]})
    scorer, used = load(path, manifest("small_cnn", other), device="cpu")
    assert scorer.input_spec == used.input == other


def test_a_file_that_says_nothing_needs_a_manifest(path: Path) -> None:
    save_file(trained_scorer("small_cnn", GREY).network.state_dict(), path)
    with pytest.raises(ModelFileError, match="expected an architecture and an input declaration"):
        load(path, device="cpu")
    scorer, _ = load(path, manifest("small_cnn", GREY), device="cpu")
    assert scorer.input_spec == GREY


def test_the_batch_counts_may_be_left_out(path: Path) -> None:
    scorer = trained_scorer("small_cnn", GREY)
    tensors = scorer.network.state_dict()
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, path)
    loaded, _ = load(path, manifest("small_cnn", GREY), device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(images(GREY)), scorer(images(GREY)))


def test_a_loaded_model_can_be_trained_on(path: Path) -> None:
    save(trained_scorer("small_cnn", GREY), path, manifest("small_cnn", GREY))
    scorer, _ = load(path, device="cpu")
    scorer.train()
    scorer(images(GREY)).sum().backward()
    assert all(p.grad is not None for p in scorer.parameters())
    torch.optim.SGD(scorer.parameters(), lr=0.1).step()


Change = Callable[[dict[str, Tensor]], object]
MISFITS: dict[str, tuple[Change, str]] = {
    "a missing tensor": (lambda t: t.pop("fc.bias"), r"1 missing: fc\.bias"),
    "an unexpected tensor": (
        lambda t: t.update({"evil\n": torch.zeros(1)}),
        "damaged",
    ),
    "an unexpected name": (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: 'extra'"),
    "ten classes": (
        lambda t: t.update({"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}),
        r"one logit \(no other `output` is declared\).*"
        r"fc\.weight \(expected F32 \[1, 128\], got F32 \[10, 128\]\)",
    ),
    "half precision": (
        lambda t: t.update({"fc.bias": t["fc.bias"].half()}),
        r"fc\.bias \(expected F32 \[1\], got F16 \[1\]\)",
    ),
    "colour in place of grey": (
        lambda t: t.update({"conv1.weight": torch.zeros(32, 3, 3, 3)}),
        r"conv1\.weight \(expected F32 \[32, 1, 3, 3\], got F32 \[32, 3, 3, 3\]\)",
    ),
    "a count of another type": (
        lambda t: t.update({"norm1.num_batches_tracked": torch.zeros(())}),
        "num_batches_tracked",
    ),
    "a NaN": (lambda t: t["fc.weight"].fill_(float("nan")), r"finite weights.*fc\.weight"),
    "an infinity": (lambda t: t["norm1.running_var"].fill_(float("inf")), r"norm1\.running_var"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_are_not_the_architectures_are_refused(case: str, path: Path) -> None:
    change, reason = MISFITS[case]
    tensors = {
        k: v.clone() for k, v in trained_scorer("small_cnn", GREY).network.state_dict().items()
    }
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=reason):
        load(path, manifest("small_cnn", GREY), device="cpu")


def test_a_refusal_names_the_first_five_and_counts_the_rest(path: Path) -> None:
    tensors = trained_scorer("small_cnn", GREY).network.state_dict()
    save_file({f"module.{name}": value for name, value in tensors.items()}, path)
    with pytest.raises(ModelFileError) as caught:
        load(path, manifest("small_cnn", GREY), device="cpu")
    message = str(caught.value)
    # 3 convolutions, 3 norms of 4 tensors and the last layer's 2; counts may be missing
    assert "17 missing: conv1.weight, norm1.weight, norm1.bias" in message
    assert "and 12 more" in message
    assert "20 unexpected: 'module." in message
    assert message.count("'module.") == 5
    assert "and 15 more" in message


def test_what_could_not_be_loaded_is_not_saved(path: Path) -> None:
    scorer = trained_scorer("small_cnn", GREY)
    with pytest.raises(ModelFileError, match="expected exactly the tensors of resnet18_3x3"):
        save(scorer, path, manifest("resnet18_3x3", GREY))
    with pytest.raises(ModelFileError, match="scorer's input"):
        save(scorer, path, manifest("small_cnn", GREY.model_copy(update={"mean": [0.9]})))
    nn.init.constant_(scorer.network.get_parameter("fc.bias"), float("nan"))
    with pytest.raises(ModelFileError, match="finite weights"):
        save(scorer, path, manifest("small_cnn", GREY))
    assert not path.exists()


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18_3x3"])
def test_the_probe_finds_nothing_wrong_with_a_sound_model(architecture: str) -> None:
    result = probe(trained_scorer(architecture, GREY))
    assert result.problems == []
    assert result.warnings == []
    assert result.blind_images == 0
    assert result.lowest is not None
    assert result.highest is not None
    assert result.lowest < result.highest


class Network(nn.Module):
    """A function of the images as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: mean(x) * 0 + 3, "got 3 for each"),
        (lambda x: mean(x - x.mean(dim=0)), "rest of the batch"),
        (lambda x: mean(x) / 0, "got 4 of 4 that are NaN or infinite"),
        (lambda x: torch.where(mean(x) > mean(x).median(), mean(x), torch.nan), "finite logits"),
        (lambda x: torch.stack([mean(x), mean(x)], dim=1), "one logit an image"),
        (lambda x: x @ torch.zeros(5, 5), "does not run on images of the declared size"),
    ],
)
def test_the_probe_refuses(function: Callable[[Tensor], Tensor], problem: str) -> None:
    result = probe(Scorer(Network(function), GREY))
    assert len(result.problems) == 1
    assert problem in result.problems[0]


@pytest.mark.parametrize(
    ("function", "blind"),
    [
        (lambda x: mean(x.detach()), 4),
        (lambda x: mean((x * 4).round()), 4),
        # the logit saturates for the white image alone: (1 - 0.3) / 0.4 = 1.75
        (lambda x: mean(x).clamp(max=1.7), 1),
    ],
)
def test_the_probe_warns_where_gradients_see_nothing(
    function: Callable[[Tensor], Tensor], blind: int
) -> None:
    result = probe(Scorer(Network(function), GREY))
    assert result.problems == []
    assert result.blind_images == blind
    assert f"{blind} of 4 probe images" in result.warnings[0]


def test_the_probe_leaves_no_gradients_behind() -> None:
    scorer = trained_scorer("small_cnn", GREY)
    probe(scorer)
    assert all(p.grad is None for p in scorer.parameters())


# --- a logit a class ------------------------------------------------------------------------------

PETS = OutputSpec(kind="multiclass", classes=["cat", "dog", "other"])
TAGS = OutputSpec(kind="multilabel", classes=["cat", "dog", "other"])


def classifier(architecture: str, spec: InputSpec, output: OutputSpec) -> tuple[Scorer, Manifest]:
    """A scorer without a task, and its manifest."""
    network = build(architecture, channels=spec.channels, seed=1, outputs=output.count)
    declared = Manifest(architecture=architecture, input=spec, output=output)
    return Scorer(network, spec, output=output).eval(), declared


@pytest.mark.parametrize("positive", [["cat"], ["other", "dog"]])
def test_pytorch_alone_computes_the_same_log_odds(positive: list[str], path: Path) -> None:
    scorer, written = classifier("resnet18", COLOUR, PETS)
    save(scorer, path, written)
    loaded, declared = load(path, device="cpu", positive=positive)
    assert declared.output == PETS

    network = resnet18(num_classes=3).double()
    network.load_state_dict(load_file(path))
    network.eval()
    x = images(COLOUR).double()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (COLOUR.mean, COLOUR.std))
    with torch.no_grad():
        probability = network((x - mean) / std).softmax(dim=1)
        p = probability[:, [["cat", "dog", "other"].index(name) for name in positive]].sum(dim=1)
        # float32 against float64 through 18 layers
        torch.testing.assert_close(loaded(x.float()).double(), torch.logit(p), rtol=0, atol=1e-4)


@pytest.mark.parametrize("output", [PETS, TAGS])
def test_a_network_with_a_logit_a_class_survives_a_round_trip(
    output: OutputSpec, path: Path
) -> None:
    scorer, declared = classifier("small_cnn", GREY, output)
    save(scorer, path, declared)
    for positive in (None, ["dog"]):
        loaded, read_back = load(path, device="cpu", positive=positive)
        assert read_back == declared
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded.outputs(images(GREY)), scorer.outputs(images(GREY)))
    save(loaded, path.with_name("again"), read_back)  # the task is not the file's
    assert path.with_name("again").read_bytes() == path.read_bytes()


def test_a_task_that_a_file_cannot_score_is_refused(path: Path) -> None:
    scorer, declared = classifier("small_cnn", GREY, PETS)
    save(scorer, path, declared)
    with pytest.raises(TaskError, match=r"a logit for \(cat, dog, other\), got 'emu'"):
        load(path, device="cpu", positive=["emu"])
    loaded, _ = load(path, device="cpu")
    with pytest.raises(TaskError, match="got none"):
        loaded(images(GREY))


@pytest.mark.parametrize("output", [None, OutputSpec(kind="multiclass", classes=["a", "b"])])
def test_another_number_of_logits_than_declared_is_refused(
    output: OutputSpec | None, path: Path
) -> None:
    scorer, declared = classifier("small_cnn", GREY, PETS)
    save(scorer, path, declared)
    other = manifest("small_cnn", GREY)
    if output is not None:
        other = other.model_copy(update={"output": output})
    with pytest.raises(ModelFileError, match=rf"expected F32 \[{other.output.count}, 128\]"):
        load(path, other, device="cpu")
    with pytest.raises(ModelFileError, match=rf"expected F32 \[{other.output.count}, 128\]"):
        save(scorer.network, path, other)


def test_a_scorer_is_saved_with_its_own_output_only(path: Path) -> None:
    scorer, declared = classifier("small_cnn", GREY, PETS)
    with pytest.raises(ModelFileError, match="expected a manifest with the scorer's output"):
        save(scorer, path, declared.model_copy(update={"output": TAGS}))


def test_a_manifest_too_long_for_a_header_is_not_saved(path: Path) -> None:
    cats = "\N{CAT FACE}" * 197  # each is 14 bytes of JSON in JSON
    names = [f"{i:03d}{cats}" for i in range(1000)]
    output = OutputSpec(kind="multiclass", classes=names)
    scorer, declared = classifier("small_cnn", GREY, output)
    with pytest.raises(ModelFileError, match="a header of 1048576 bytes"):
        save(scorer, path, declared)
    assert not path.exists()


@pytest.mark.parametrize("output", [PETS, TAGS])
def test_the_probe_looks_at_every_logit_and_needs_no_task(output: OutputSpec) -> None:
    scorer, _ = classifier("small_cnn", GREY, output)
    result = probe(scorer)
    assert (result.problems, result.warnings, result.blind_images) == ([], [], 0)
    assert result.lowest is not None
    assert result.highest is not None
    assert result.lowest < result.highest


def test_the_probe_tells_the_range_of_all_logits() -> None:
    # of a white image, normalised: 0.7 / 0.4
    result = probe(three(mean, lambda x: mean(x) * 100, lambda x: mean(x) * -100))
    assert (result.lowest, result.highest) == pytest.approx((-175, 175), rel=1e-5)


def three(*functions: Callable[[Tensor], Tensor]) -> Scorer:
    """A network whose three logits are these functions of the images."""
    network = Network(lambda x: torch.stack([f(x) for f in functions], dim=1))
    return Scorer(network, GREY, output=PETS)


def constant(x: Tensor) -> Tensor:
    return mean(x) * 0 + 3


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (lambda x: mean(x) / 0, "got 4 of 12 that are NaN or infinite"),
        (lambda x: mean(x - x.mean(dim=0)), "rest of the batch"),
        (lambda x: torch.zeros(7), "does not run on images of the declared size"),
    ],
)
def test_one_bad_logit_is_enough_to_refuse(last: Callable[[Tensor], Tensor], problem: str) -> None:
    result = probe(three(mean, mean, last))
    assert len(result.problems) == 1
    assert problem in result.problems[0]


def test_logits_that_never_move_are_named_and_refused_if_none_moves() -> None:
    assert probe(three(constant, constant, constant)).problems == [
        "expected logits that depend on the image, got 3, 3, 3 for each"
    ]
    result = probe(three(constant, mean, constant))
    assert result.problems == []
    assert result.warnings == ["2 of 3 logits are the same for every probe image: cat, other"]


def test_logits_that_add_up_to_a_constant_have_gradients_all_the_same() -> None:
    result = probe(three(mean, lambda x: -mean(x) / 2, lambda x: -mean(x) / 2))
    assert (result.blind_images, result.warnings) == (0, [])
    blind = probe(three(*(lambda x: mean(x.detach()),) * 3))
    assert blind.blind_images == 4
