"""What requests refuse and understand: sizes of pixels beyond them, fractions, shared batches."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.audits import AuditConfig
from adap.core.config.threats import Threat
from adap.core.config.training import TrainingConfig, TrainingRequest
from adap.core.errors import ConfigError

BEYOND: dict[str, Callable[[], Any]] = {
    "threat": lambda: Threat(epsilon=8.0),
    "audit": lambda: AuditConfig.model_validate({"threat": {"epsilon": 8}}),
    "curve": lambda: AuditConfig.model_validate({"attacks": ["pgd"], "epsilons": [0.1, 8.0]}),
    "step of an attack": lambda: AuditConfig.model_validate(
        {"attacks": [{"name": "pgd", "step_size": 2.0}]}
    ),
    "training": lambda: TrainingConfig.model_validate({"attack": {"epsilon": 8.0}}),
    "step of a training": lambda: TrainingConfig.model_validate({"attack": {"step_size": 2.0}}),
    "fraction": lambda: Threat.model_validate({"epsilon": "800/255"}),
}


@pytest.mark.parametrize("make", BEYOND.values(), ids=BEYOND)
def test_a_linf_size_that_no_pixel_can_use_is_refused_with_what_was_meant(
    make: Callable[[], Any],
) -> None:
    with pytest.raises(ValidationError, match=r"at most 1, as pixels are in \[0, 1\].*\d/255"):
        make()


def test_an_attack_of_the_library_refuses_it_too() -> None:
    with pytest.raises(ConfigError, match=r"got 8; for 8 of 255 levels write 8/255"):
        ThreatModel("linf", 8.0)


def test_an_l2_size_may_be_larger_than_a_pixel() -> None:
    request = {
        "threat": {"norm": "l2", "epsilon": 2.0},
        "attacks": [{"name": "pgd", "step_size": 1.5}],
        "epsilons": [1.0, 3.0],
    }
    assert AuditConfig.model_validate(request).threat.epsilon == 2
    attack = {"norm": "l2", "epsilon": 2.0, "step_size": 1.5}
    assert TrainingConfig.model_validate({"attack": attack}).attack.step_size == 1.5


def test_a_fraction_is_understood_wherever_pixels_stand() -> None:
    audit = AuditConfig.model_validate(
        {
            "threat": {"epsilon": "8/255"},
            "attacks": [{"name": "pgd", "step_size": " 2 / 255 "}],
            "epsilons": ["2/255", 0.02, "12.75/255"],
        }
    )
    assert audit.threat.epsilon == 8 / 255
    assert audit.as_json()["attacks"][0]["step_size"] == 2 / 255
    assert audit.epsilons == [2 / 255, 0.02, 0.05]
    training = TrainingConfig.model_validate({"attack": {"epsilon": "4/255", "step_size": "1/255"}})
    assert (training.attack.epsilon, training.attack.step_size) == (4 / 255, 1 / 255)


@pytest.mark.parametrize("text", ["8", "0.03", "8/0", "-8/255", "eight/255", "8/255/2", ""])
def test_other_text_is_no_number(text: str) -> None:
    with pytest.raises(ValidationError):
        Threat.model_validate({"epsilon": text})


def test_the_curve_of_a_preset_ends_where_pixels_do() -> None:
    epsilons = AuditConfig(threat=Threat(epsilon=0.8)).resolved_epsilons()
    assert epsilons == pytest.approx([0.2, 0.4, 0.8])


def test_devices_that_do_not_divide_a_batch_are_refused_before_there_is_a_job() -> None:
    request = {"dataset_id": f"ds_{'0' * 26}", "batch_size": 128}
    assert TrainingRequest.model_validate({**request, "devices": 4}).devices == 4
    with pytest.raises(ValidationError, match="batch_size that 3 devices divide evenly, got 128"):
        TrainingRequest.model_validate({**request, "devices": 3})
