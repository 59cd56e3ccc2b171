"""Weights as trainers save them: what is taken is the network's, and what was decided is said."""

import argparse
import io
import re
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from adap.models import conversion, loading
from adap.models.architectures import build
from adap.models.conversion import Converted
from adap.models.errors import ModelFileError
from adap.models.header import ONE_LOGIT, Declaration, InputSpec, OutputSpec

TWO = OutputSpec(kind="multiclass", classes=["cat", "dog"])


def network(seed: int = 0, outputs: int = 2, name: str = "small_cnn") -> nn.Module:
    return build(name, channels=3, seed=seed, outputs=outputs).eval()


def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(network(seed).state_dict())


def behind(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def take_in(
    content: bytes,
    folder: Path,
    *,
    architecture: str | None = "small_cnn",
    output: OutputSpec = TWO,
    channels: int = 3,
    size: int = 32,
    weights: str | None = None,
) -> Converted:
    path = folder / "upload"
    path.write_bytes(content)
    spec = InputSpec(
        channels=channels, height=size, width=size, mean=[0.4] * channels, std=[0.3] * channels
    )
    declared = Declaration(architecture=architecture, input=spec, output=output, weights=weights)
    return conversion.to_safetensors(path, declared, folder=folder)


def scores(converted: Converted, images: Tensor) -> Tensor:
    scorer, _ = loading.load(converted.path, converted.manifest, device="cpu")
    with torch.no_grad():
        return scorer.outputs(images)


def cautions(converted: Converted) -> list[str]:
    assert converted.manifest is not None
    return [fact.code for fact in converted.reading(converted.manifest).cautions]


def refused(content: bytes, folder: Path, **declared: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        take_in(content, folder, **declared)
    assert "num_batches_tracked" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    return str(caught.value)


def torch_ema() -> dict[str, Any]:
    """Averages as torch_ema keeps them: the parameters alone, in their order, without names."""
    shadow = [value.detach() + 0.01 for value in network().parameters()]
    kept = {"decay": 0.99, "num_updates": 5, "shadow_params": shadow, "collected_params": None}
    return {"model": state(), "ema": kept}


def framework() -> dict[str, Any]:
    """What Lightning writes: the network under `net.`, the loss's weight, settings."""
    loss = {"criterion.pos_weight": torch.tensor([3.0])}
    return {
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(depth=18)},
        "best": np.float64(0.25),
        "counts": defaultdict(int, a=1),
        "kinds": [str, range(3), {1, 2}, 1j, slice(2)],
        "state_dict": OrderedDict({**behind("net.", state()), **loss}),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    }


def averaged() -> dict[str, Tensor]:
    return dict(AveragedModel(network()).state_dict())


TAKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "torch.compile": (lambda: behind("_orig_mod.", state()), "prefix `_orig_mod.` removed"),
    "DataParallel": (lambda: nn.DataParallel(network()).state_dict(), "prefix `module.` removed"),
    "both": (lambda: behind("module._orig_mod.", state()), "prefix `module._orig_mod.` removed"),
    "a wrapper of one's own": (lambda: behind("timm_model.", state()), "prefix `timm_model.`"),
    "Lightning": (
        framework,
        "taken from `state_dict`; prefix `net.` removed; left out, as no part",
    ),
    "params_ema": (lambda: {"params_ema": state()}, "taken from `params_ema`"),
    "weights": (lambda: {"epoch": 3, "weights": state()}, "taken from `weights`"),
    "beside numbers": (lambda: {**state(), "epoch": 3}, "not read: `epoch`"),
    "AveragedModel": (
        averaged,
        "prefix `module.` removed; left out, as no part of the network: `n_a",
    ),
    "a loss, an activation and an optimizer as settings": (
        lambda: {
            "state_dict": state(),
            "hyper_parameters": {"loss": nn.BCEWithLogitsLoss(), "act": nn.GELU},
            "optimizer": torch.optim.SGD(network().parameters(), lr=0.1),
        },
        "not read: `hyper_parameters.loss`, `hyper_parameters.act`, `optimizer`",
    ),
    "slashes": (
        lambda: {f"model/{name.replace('.', '/')}": value for name, value in state().items()},
        "names written with dots between their parts; prefix `model.` removed",
    ),
    "names of outputs": (
        lambda: {f"{name.replace('.', '/')}:0": value for name, value in state().items()},
        "names written with dots between their parts",
    ),
    "underscores": (
        lambda: {name.replace(".", "__"): value for name, value in state().items()},
        "names written with dots between their parts",
    ),
    "a list": (lambda: [state(), {"state": {}, "param_groups": []}], "taken from `0`"),
    "a tuple": (lambda: (12, state()), "taken from `1`"),
    "numbered": (lambda: {3: state()}, "taken from `3`"),
    "float16": (lambda: network().half().state_dict(), "float16 made float32 (17 tensors)"),
    "bfloat16": (lambda: network().bfloat16().state_dict(), "bfloat16 made float32 (17 tensors)"),
    "float64": (lambda: network().double().state_dict(), "float64 made float32 (17 tensors)"),
    "counts too": (
        lambda: {name: value.double() for name, value in state().items()},
        "float64 made float32 (17 tensors)",
    ),
}


def test_halves_that_a_framework_names_are_joined_and_said(tmp_path: Path) -> None:
    halves = {
        f"{'head.' if name.startswith('fc') else 'backbone.'}{name}": value
        for name, value in torchvision.models.resnet18(num_classes=2).state_dict().items()
    }
    content = saved({"meta": {"mmcv_version": "1.7"}, "state_dict": halves})
    for declared in (None, "resnet18"):
        converted = take_in(content, tmp_path, architecture=declared)
        assert converted.manifest is not None
        assert converted.manifest.architecture == "resnet18"
        assert "names of parts removed: `backbone`, `head`" in converted.steps
    more = {**halves, "head.fc2.weight": torch.zeros(2, 2)}
    with pytest.raises(ModelFileError):  # a layer more is another network
        take_in(saved({"state_dict": more}), tmp_path, architecture="resnet18")


@pytest.mark.parametrize("case", TAKEN)
def test_weights_are_taken_as_trainers_save_them_and_it_is_said_how(
    case: str, tmp_path: Path
) -> None:
    make, said = TAKEN[case]
    content = make()
    images = torch.rand(3, 3, 32, 32)
    half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    with torch.no_grad():
        expected = network().to(half).float()((images - 0.4) / 0.3)
    files = [saved(content)]
    if isinstance(content, Mapping) and all(isinstance(v, Tensor) for v in content.values()):
        files.append(as_safetensors({name: value.clone() for name, value in content.items()}))
    for file in files:
        converted = take_in(file, tmp_path)
        assert torch.equal(scores(converted, images), expected)
        assert converted.manifest is not None
        assert said in converted.reading(converted.manifest).summary


def raw_and_averaged() -> bytes:
    ema = {"n_averaged": torch.tensor(7), **behind("module.", state(1))}
    return saved({"model": state(), "model_ema": ema})


@pytest.mark.parametrize(("weights", "seed"), [(None, 1), ("model_ema", 1), ("model", 0)])
def test_averaged_weights_are_taken_aloud_or_as_named(
    weights: str | None, seed: int, tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 32, 32)
    converted = take_in(raw_and_averaged(), tmp_path, weights=weights)
    with torch.no_grad():
        assert torch.equal(scores(converted, images), network(seed)((images - 0.4) / 0.3))
    assert cautions(converted) == ["averaged_weights"] * (weights is None)


def test_of_two_networks_neither_is_taken_in_silence(tmp_path: Path) -> None:
    both = saved({**behind("student.", state()), **behind("teacher.", state(1))})
    assert "got 2 that fit and differ: `student`, `teacher`; choose" in refused(both, tmp_path)
    assert take_in(both, tmp_path, weights="teacher").steps[0] == "prefix `teacher.` removed"
    assert "`weights` to name one of" in refused(both, tmp_path, weights="critic")
    # in one mapping, as MoCo saves them
    inside = {**behind("encoder_q.", state()), **behind("encoder_k.", state(1))}
    moco = saved({"state_dict": inside})
    assert "`state_dict.encoder_k`, `state_dict.encoder_q`" in refused(moco, tmp_path)
    chosen = take_in(moco, tmp_path, weights="state_dict.encoder_q")
    assert chosen.steps == ["taken from `state_dict`", "prefix `encoder_q.` removed"]
    # the same numbers twice are one network
    twice = saved({**behind("model.", state()), **behind("attacker.model.", state())})
    assert cautions(take_in(twice, tmp_path)) == []


def test_a_normalisation_inside_the_file_is_held_against_the_declared_one(tmp_path: Path) -> None:
    for mean, level in ((0.4, "info"), (0.5, "caution")):
        inside = {"normalize.mean": torch.full((1, 3, 1, 1), mean)}
        converted = take_in(saved({**inside, **behind("model.", state())}), tmp_path)
        assert [(fact.code, fact.level) for fact in converted.facts] == [
            ("own_normalisation", level)
        ]


def test_large_tensors_beside_the_network_are_a_caution(tmp_path: Path) -> None:
    more = {"projector.weight": torch.zeros(400, 400)}
    converted = take_in(saved({**behind("encoder.", state()), **more}), tmp_path)
    assert cautions(converted) == ["tensors_left_out"]
    assert converted.facts[0].figures == {"tensors": 1, "numbers": 160_000}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"norm1.scale": torch.zeros(3)}, "more layers (`norm1.scale`), which would be left out"),
        ({"attention.weight": torch.zeros(3, 3)}, "more layers (`attention.weight`)"),
    ],
)
def test_a_network_with_more_layers_is_not_taken_without_them(
    more: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    assert said in refused(saved({**state(), **more}), tmp_path)


def resnet(head: nn.Module | None = None, stem: nn.Module | None = None) -> dict[str, Tensor]:
    made = torchvision.models.resnet18(num_classes=2)
    made.fc = head or made.fc
    made.conv1 = stem or made.conv1
    return dict(made.state_dict())


@pytest.mark.slow
def test_the_architecture_is_told_from_the_tensors(tmp_path: Path) -> None:
    for tensors, name in (
        (state(), "small_cnn"),
        (resnet(), "resnet18"),
        (resnet(stem=nn.Conv2d(3, 64, 3, bias=False)), "resnet18_3x3"),
        (torchvision.models.squeezenet1_1(num_classes=2).state_dict(), "torchvision/squeezenet1_1"),
    ):
        converted = take_in(saved({"net": dict(tensors)}), tmp_path, architecture=None, size=64)
        assert converted.manifest is not None
        assert converted.manifest.architecture == name
        assert converted.steps[0] == f"architecture told from the tensors: {name}"


def transformers_names() -> dict[str, Tensor]:
    return {
        "vit.embeddings.cls_token": torch.zeros(1, 1, 8),
        "vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(8, 8),
        "classifier.weight": torch.zeros(2, 8),
    }


HEAD = nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 2))
NARROW = nn.Conv2d(1, 64, 7, bias=False)
SMALL = nn.Conv2d(3, 64, 3, bias=False)

DIAGNOSES: dict[str, tuple[Callable[[], Mapping[str, Tensor]], dict[str, Any], str]] = {
    "integers behind a prefix": (
        lambda: behind("model.", {name: value.to(torch.int8) for name, value in state().items()}),
        {"architecture": None},
        "send it with --architecture small_cnn to be told which",
    ),
    "a head of its own": (
        lambda: resnet(head=HEAD),
        {"architecture": "torchvision/resnet18"},
        "whose last layer `fc` is another one (`fc.1.weight`, `fc.1.bias`, `fc.3.weight`, "
        "`fc.3.bias`): send the whole network as ONNX: torch.onnx.export(",
    ),
    "a thousand classes": (
        lambda: torchvision.models.resnet18().state_dict(),
        {"architecture": "torchvision/resnet18"},
        "answers with 1000 logits where 2 classes are declared: name its 1000 classes",
    ),
    "a logit for each of two classes": (
        state,
        {"output": ONE_LOGIT},
        "answers with 2 logits where one logit is declared: name its 2 classes",
    ),
    "a stem for small images": (
        lambda: resnet(stem=SMALL),
        {"architecture": "torchvision/resnet18"},
        "got those of resnet18_3x3: send it with --architecture resnet18_3x3",
    ),
    "grey images": (
        lambda: resnet(stem=NARROW),
        {"architecture": "torchvision/resnet18"},
        "for images of 1 channel where 3 are declared: declare `channels` 1 (--channels 1) with "
        "--architecture resnet18",
    ),
    "weights that are whole numbers": (
        lambda: {name: value.long() for name, value in state().items()},
        {},
        "got int64 where floating-point numbers were expected, in 17 tensors",
    ),
    "another architecture": (
        lambda: resnet(),
        {"architecture": "resnet18_3x3"},
        "got those of resnet18: send it with --architecture resnet18",
    ),
    "transformers": (
        transformers_names,
        {"architecture": "timm/vit_tiny_patch16_224", "size": 224},
        "as the library transformers names them",
    ),
    "LoRA": (
        lambda: {"base_model.model.vit.q.lora_A.weight": torch.zeros(4, 8)},
        {"architecture": None},
        "LoRA adapters, which are no network without the one that they change",
    ),
    "diffusers": (
        lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4, 4, 3, 3)},
        {"architecture": None},
        "an image generator (diffusers)",
    ),
    "pruned": (
        lambda: {"conv.weight_orig": torch.zeros(1), "conv.weight_mask": torch.zeros(1)},
        {"architecture": None},
        "prune.remove(layer, 'weight')",
    ),
    "one of several shards": (
        lambda: {name: state()[name] for name in list(state())[:6]},
        {},
        "as in one of several shards (model-00001-of-00002.safetensors): join them first",
    ),
    "without its auxiliary heads": (  # as torchvision gives pretrained weights
        lambda: torchvision.models.googlenet(
            num_classes=2, aux_logits=False, init_weights=False
        ).state_dict(),
        {"architecture": "torchvision/googlenet"},
        "a network without its auxiliary heads, aux1, aux2, which serve its training alone: send",
    ),
    "a last layer behind dropout": (
        lambda: resnet(head=nn.Sequential(nn.Dropout(), nn.Linear(512, 2))),
        {"architecture": "torchvision/resnet18"},
        "save its weights with that layer renamed, state['fc.weight'] = state.pop('fc.1.weight'); "
        "state['fc.bias'] = state.pop('fc.1.bias'); else send the whole network as ONNX",
    ),
    "a last layer beside the rest": (
        lambda: {
            name.replace("fc.", "classifier.") if name.startswith("fc.") else f"body.{name}": value
            for name, value in resnet().items()
        },
        {"architecture": "torchvision/resnet18"},
        "state['body.fc.weight'] = state.pop('classifier.weight')",
    ),
    "Keras": (
        lambda: {"conv1/kernel:0": torch.zeros(3, 3, 3, 8), "conv1/bias:0": torch.zeros(8)},
        {"architecture": None},
        "as TensorFlow, Keras and Flax name them, whose axes are in another order",
    ),
    "unknown": (
        lambda: {"a.weight": torch.zeros(1)},
        {"architecture": None},
        "got 1 tensors of another network (`a.weight`): send the network as ONNX",
    ),
}


def test_published_weights_of_densenet_have_names_of_their_own(tmp_path: Path) -> None:
    made = torchvision.models.densenet121(num_classes=2)
    older = {  # the pattern by which torchvision itself reads them, turned round
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in made.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    converted = take_in(saved(older), tmp_path, architecture="torchvision/densenet121")
    assert converted.steps == ["names of torchvision's older DenseNets made today's"]
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - 0.4) / 0.3
    with torch.no_grad():
        wanted = made.eval()(normalised)
    assert torch.allclose(scores(converted, images), wanted, atol=1e-5)


def test_what_lies_beside_a_network_is_named_for_what_it_is(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(network().parameters())
    assert "the state of an optimizer" in refused(saved(optimizer.state_dict()), tmp_path)
    assert "settings without tensors" in refused(saved(argparse.Namespace(lr=1)), tmp_path)
    arrays = {name: value.numpy() for name, value in state().items()}
    assert "torch.from_numpy makes them tensors" in refused(saved(arrays), tmp_path)
    eighths = {name: value.to(torch.float8_e4m3fn) for name, value in state().items()}
    assert "got F8_E4M3 in" in refused(as_safetensors(eighths), tmp_path)


def test_averages_without_names_are_a_caution_and_the_raw_weights_are_taken(tmp_path: Path) -> None:
    converted = take_in(saved(torch_ema()), tmp_path)
    assert cautions(converted) == ["averaged_weights"]
    (fact,) = converted.facts
    assert "`ema.shadow_params`" in fact.message
    assert "ema.copy_to(model.parameters())" in fact.message
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(scores(converted, images), network()((images - 0.4) / 0.3), atol=1e-5)


WRAPPED: dict[str, tuple[str, str]] = {
    "torch.compile of a part": ("conv2.", "conv2._orig_mod."),
    "FSDP": ("norm2.", "norm2._fsdp_wrapped_module."),
    "a checkpointed part": ("conv2.", "conv2._checkpoint_wrapped_module."),
    "DataParallel of a part": ("conv2.", "conv2.module."),
    "two of them": ("conv2.", "conv2.module._orig_mod."),
}


@pytest.mark.parametrize("architecture", ["small_cnn", None])
@pytest.mark.parametrize("case", WRAPPED)
def test_names_of_wrappers_inside_of_names_are_dropped_and_said(
    case: str, architecture: str | None, tmp_path: Path
) -> None:
    plain, wrapped = WRAPPED[case]
    tensors = {name.replace(plain, wrapped): value for name, value in state().items()}
    assert tensors.keys() != state().keys()
    converted = take_in(
        saved({"state_dict": behind("net.", tensors)}), tmp_path, architecture=architecture
    )
    assert any("names of wrappers removed" in step for step in converted.steps), converted.steps
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(scores(converted, images), network()((images - 0.4) / 0.3), atol=1e-5)


def test_names_of_wrappers_that_hide_two_tensors_of_one_name_are_not_dropped(
    tmp_path: Path,
) -> None:
    twice = {"conv2._orig_mod.weight": torch.zeros(1), "conv2.module.weight": torch.zeros(1)}
    kept = {name: value for name, value in state().items() if name != "conv2.weight"}
    assert "expected the tensors of small_cnn" in refused(saved({**kept, **twice}), tmp_path)


@pytest.mark.parametrize(("mean", "said"), [(0.485, ["transform_input"]), (0.5, [])])
def test_what_googlenet_does_with_images_is_a_caution(
    mean: float, said: list[str], tmp_path: Path
) -> None:
    made = torchvision.models.googlenet(num_classes=2, init_weights=False, transform_input=True)
    path = tmp_path / "upload"
    path.write_bytes(saved(made.state_dict()))
    spec = InputSpec(channels=3, height=32, width=32, mean=[mean] * 3, std=[0.5] * 3)
    declared = Declaration(architecture="torchvision/googlenet", input=spec, output=TWO)
    assert cautions(conversion.to_safetensors(path, declared, folder=tmp_path)) == said


def test_advice_for_reparametrised_weights_is_what_takes_them_off(tmp_path: Path) -> None:
    norm, utils = "conv2", torch.nn.utils
    forms: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
        "old weight norm": (utils.weight_norm, "torch.nn.utils.remove_weight_norm(layer)"),
        "old spectral norm": (utils.spectral_norm, "torch.nn.utils.remove_spectral_norm(layer)"),
        "weight norm": (utils.parametrizations.weight_norm, "remove_parametrizations(layer"),
    }
    for make, advice in forms.values():
        made = network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(getattr(made, norm))
        assert advice in refused(saved(made.state_dict()), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", DIAGNOSES)
def test_what_does_not_fit_gets_a_diagnosis_and_one_thing_to_do(case: str, tmp_path: Path) -> None:
    make, declared, said = DIAGNOSES[case]
    assert said in refused(saved(dict(make())), tmp_path, **declared)


def test_a_file_without_tensors_and_one_that_pytorch_quantised_say_what_to_send(
    tmp_path: Path,
) -> None:
    assert "got a file without any: safetensors.torch.save_file(" in refused(
        as_safetensors({}), tmp_path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is going to be removed
        quantised = {"fc.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    assert "before torch.quantize, in float32" in refused(saved(quantised), tmp_path)


def test_architectures_that_tensors_cannot_tell_apart_are_named(tmp_path: Path) -> None:
    import timm

    tensors = timm.create_model("efficientnet_b0", num_classes=2).state_dict()
    said = refused(saved(tensors), tmp_path, architecture=None)
    assert "timm/efficientnet_b0" in said
    assert "timm/efficientnet_blur_b0" in said  # blurs where the other strides
    assert "choose with --architecture" in said
