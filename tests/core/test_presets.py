"""Presets: the paper's values are written out here, from its section 5 and released settings."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from adap.core.config.training import Optimizer, TrainingConfig, TrainingRequest
from adap.core.presets import DESCRIPTIONS, TRAINING_PRESETS, TrainingPreset
from adap.models.architectures import BUILDERS

PAPER: dict[str, Any] = {
    "architecture": "resnet18",
    "batch_size": 128,
    "optimizer": {
        "name": "adam",
        "lr": 0.001,
        "weight_decay": 1e-5,
        "milestones": [0.5, 0.75],
        "decay": 0.1,
    },
    "attack": {"norm": "linf", "epsilon": 8 / 255, "steps": 6, "step_size": 0.01},
    "augment": {"crop_padding": 4, "flip": True},
}
EPOCHS = {"paper-cifar": 60, "paper-celeba": 32, "paper-bdd": 32}


@pytest.mark.parametrize("preset", EPOCHS)
def test_the_presets_of_the_paper_are_its_settings(preset: str) -> None:
    config = TrainingConfig.model_validate({"preset": preset}).as_json()
    assert config["epochs"] == EPOCHS[preset]
    assert config["preset"] == preset
    expected: dict[str, Any] = {**PAPER, "optimizer": dict(PAPER["optimizer"])}
    if preset == "paper-cifar":
        expected["optimizer"]["weight_decay"] = 2e-4
    for name, value in expected.items():
        got = config[name]
        if isinstance(value, dict):
            got = {key: got[key] for key in value}
        assert got == value, name
    assert config["validation"]["fraction"] == 0.2


def test_what_is_given_wins_at_any_depth() -> None:
    given = {"preset": "paper-bdd", "epochs": 3, "optimizer": {"lr": 0.5}, "method": "ce"}
    config = TrainingConfig.model_validate(given)
    assert (config.epochs, config.optimizer.lr) == (3, 0.5)
    assert config.optimizer.weight_decay == 1e-5, "the preset's, beside what is given"
    assert config.method.name == "ce"
    assert config.architecture == "resnet18"
    made = TrainingConfig(preset="paper-bdd", optimizer=Optimizer(lr=0.5))
    assert made.optimizer == config.optimizer


def test_a_default_that_is_given_wins_too() -> None:
    config = TrainingConfig.model_validate({"preset": "quick", "epochs": 30})
    assert config.epochs == TrainingConfig().epochs == 30


@pytest.mark.parametrize("preset", TRAINING_PRESETS)
def test_a_stored_training_is_read_as_it_was(preset: str) -> None:
    config = TrainingConfig.model_validate({"preset": preset, "seed": 7})
    again = TrainingConfig.model_validate(config.as_json())
    assert again == config
    assert again.sha256() == config.sha256()


def test_every_preset_is_a_training_and_has_a_description() -> None:
    assert set(get_args(TrainingPreset)) == TRAINING_PRESETS.keys() == DESCRIPTIONS.keys()
    for preset, values in TRAINING_PRESETS.items():
        assert TrainingConfig.model_validate({"preset": preset}).architecture in BUILDERS
        TrainingConfig.model_validate(values)


def test_filling_in_changes_no_preset_for_the_next() -> None:
    before = TrainingConfig.model_validate({"preset": "paper-cifar"})
    TrainingConfig.model_validate({"preset": "paper-cifar", "optimizer": {"lr": 0.5}})
    assert TrainingConfig.model_validate({"preset": "paper-cifar"}) == before


@pytest.mark.parametrize("preset", ["paper", 3, ["quick"], {"name": "quick"}])
def test_another_preset_is_refused(preset: object) -> None:
    with pytest.raises(ValidationError, match="preset"):
        TrainingRequest.model_validate({"dataset_id": f"ds_{'0' * 26}", "preset": preset})


def test_what_a_preset_fills_in_is_checked_with_the_rest() -> None:
    with pytest.raises(ValidationError, match="positives_per_batch below batch_size 128"):
        TrainingConfig.model_validate({"preset": "paper-cifar", "positives_per_batch": 128})
    with pytest.raises(ValidationError, match="optimizer"):
        TrainingConfig.model_validate({"preset": "quick", "optimizer": None})
