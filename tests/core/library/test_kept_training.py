"""A folder gives back the training that it holds, and for anything else a refusal that names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adap

X = torch.randint(
    0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
Y = (X.float().mean(dim=(1, 2, 3)) > 127).long()
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "progress": False}


def network(*, seed: int = 1, hidden: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(16, hidden), nn.Dropout(0.3), nn.Linear(hidden, 1)
        )


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


def frozen(model: nn.Module) -> nn.Module:
    """The same with its first layer left as it is."""
    list(model.children())[1].requires_grad_(False)
    return model


def interrupted(model: nn.Module, folder: Path, *, after: int, loss: Any = "ce") -> None:
    """A training that Ctrl-C ends in the epoch after this one."""

    class Interrupting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.passes = 0

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.passes += 1
                if self.passes > after * 4 + 2:  # 32 images are 4 batches of 8
                    raise KeyboardInterrupt
            return x

    assert isinstance(model, nn.Sequential)
    stop = Interrupting()
    model[2].register_forward_hook(lambda _, __, out: stop(out))
    stop.train()
    with pytest.raises(KeyboardInterrupt):
        adap.fit(model, X, Y, loss, folder=folder, **OPTIONS)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("again", ["the model", "one built anew"])
def test_what_ctrl_c_ended_goes_on_to_the_same_bits(
    epochs: int, again: str, tmp_path: Path
) -> None:
    whole = network()
    expected = adap.fit(whole, X, Y, "ce", **OPTIONS)
    model = network()
    interrupted(model, tmp_path, after=epochs)
    if epochs == 0:  # nothing is kept of half an epoch, in the model neither
        assert equal(model, network())
    model = model if again == "the model" else network()
    assert isinstance(model, nn.Sequential)
    model[2]._forward_hooks.clear()
    found = adap.fit(model, X, Y, "ce", folder=tmp_path, **OPTIONS)
    assert equal(model, whole)
    assert [epoch.loss for epoch in found.history] == [epoch.loss for epoch in expected.history]


def test_a_training_that_is_done_is_given_back_and_lengthened(tmp_path: Path) -> None:
    options = {**OPTIONS, "optimizer": adap.Optimizer(milestones=[]), "folder": tmp_path}
    model = network()
    first = adap.fit(model, X, Y, "ce", **options)
    again = adap.fit(model, X, Y, "ce", **options)
    assert again.history == first.history
    longer = adap.fit(model, X, Y, "ce", **{**options, "epochs": 3})
    through = network()
    expected = adap.fit(through, X, Y, "ce", **{**options, "epochs": 3, "folder": None})
    assert equal(model, through)
    assert longer.history[2].loss == expected.history[2].loss


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": 1 - Y}, "training labels"),
        ({"images": 255 - X}, "other training images, validation images:"),
        ({"images": X[:38], "labels": Y[:38]}, "training images"),
        ({"mean": [0.5], "std": [0.25]}, "other mean and std:"),
        ({"outputs": "probabilities"}, "reading of the outputs|probabilities"),
        ({"model": lambda: network(seed=2)}, "other initial weights:"),
        ({"model": lambda: network(hidden=5)}, "other network, initial weights:"),
        ({"model": lambda: frozen(network())}, "other layers to train:"),
        ({"validation": (X[:8], Y[:8])}, "other training images, training labels, val"),
        ({"seed": 1}, "seed 1 instead of 0"),
        ({"validation": 0.3}, "validation.fraction 0.3 instead of 0.2"),
        ({"loss": "ap"}, "method.name 'ap' instead of 'ce'"),
        ({"epochs": 3}, "epochs 3 instead of 2"),
    ],
)
def test_a_folder_of_another_training_is_refused_with_what_differs(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"images": X, "labels": Y, "loss": "ce", **OPTIONS, "folder": tmp_path}
    adap.fit(network(), **given)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    build: Callable[[], nn.Module] = changes.pop("model", network)
    model = build()
    with pytest.raises(adap.AdapError, match=said):
        adap.fit(model, **{**given, **changes})
    assert equal(model, build())
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_loss_of_ones_own_goes_on_with_its_training_and_no_other(
    epochs: int, tmp_path: Path
) -> None:
    whole, loss, model = adap.AP(examples=32), adap.AP(examples=32), network()
    expected = adap.fit(network(), X, Y, whole, **OPTIONS)
    interrupted(model, tmp_path, after=epochs, loss=loss)
    assert isinstance(model, nn.Sequential)
    model[2]._forward_hooks.clear()
    found = adap.fit(model, X, Y, loss, folder=tmp_path, **OPTIONS)
    assert [epoch.loss for epoch in found.history] == [epoch.loss for epoch in expected.history]
    assert all(map(torch.equal, loss.state_dict().values(), whole.state_dict().values()))
    adap.fit(network(), X, Y, adap.AP(examples=32), folder=tmp_path, **OPTIONS)
    with torch.no_grad():
        loss.get_buffer("objective.ap.u_all").mul_(0.5)
    with pytest.raises(adap.ConfigError, match="other initial estimators:"):
        adap.fit(model, X, Y, loss, folder=tmp_path, **OPTIONS)


def test_a_network_whose_code_is_another_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.scale * self.layers(x)
            return logits

    first = adap.fit(Scaled(1.0), X, Y, "ce", folder=tmp_path, **OPTIONS)
    other = Scaled(-1.0)
    with pytest.raises(adap.ConfigError, match=r"scores images otherwise.*another folder="):
        adap.fit(other, X, Y, "ce", folder=tmp_path, **OPTIONS)
    assert equal(other, Scaled(1.0))
    assert adap.fit(Scaled(1.0), X, Y, "ce", folder=tmp_path, **OPTIONS).history == first.history


@pytest.mark.parametrize("content", [b"", b"no checkpoint", {"epoch": 1}])
def test_a_file_that_is_no_checkpoint_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(adap.ConfigError, match="expected a checkpoint of"):
        adap.fit(network(), X, Y, "ce", folder=tmp_path, **OPTIONS)


def test_a_training_runs_whatever_mode_of_gradients_surrounds_it() -> None:
    plain = network()
    adap.fit(plain, X, Y, "adap_lpn", **OPTIONS)
    for mode in (torch.no_grad(), torch.inference_mode()):
        model = network()
        with mode:
            adap.fit(model, X, Y, "adap_lpn", **OPTIONS)
        assert equal(model, plain)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: model.requires_grad_(False), "none that requires gradients"),
        (lambda model: model.half(), "got torch.float16, .*model.float"),
        (lambda model: model.bfloat16(), "got torch.bfloat16, .*model.float"),
    ],
)
def test_a_model_that_no_step_could_train_is_refused(
    spoil: Callable[[nn.Module], object], said: str
) -> None:
    model = network()
    spoil(model)
    with pytest.raises(adap.ModelError, match=said):
        adap.fit(model, X, Y, "ce", **OPTIONS)
