"""The scripts in `examples/` run, and do what they say."""

import runpy

import numpy as np
import pytest
import torch
from torch import nn

import adap
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SHOWN = {
    "black_box": "whoever has its weights may do more",
    "own_network": "passed",
    "own_training_loop": "surrogate AP",
    "resume": "goes on there",
}


def test_every_example_is_run() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(SHOWN)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_an_example_runs_and_shows_what_it_is_about(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out


def test_the_loop_of_ones_own_trains_to_the_weights_of_fit() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    targets = (images.float().mean(dim=(1, 2, 3)) > 127).long()

    def network() -> nn.Module:
        torch.manual_seed(2)
        layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(4 * 36, 1))

    fitted_model = network()
    fitted = adap.fit(
        fitted_model,
        images,
        targets,
        adap.AdapLPN,
        validation=(images, targets),
        epochs=3,
        batch_size=16,
        optimizer=adap.Optimizer(milestones=[]),
    )
    train = runpy.run_path(str(EXAMPLES / "own_training_loop.py"))["train"]
    own_model = network().to(memory_format=torch.channels_last)  # as fit does, for equal bits
    loss = train(
        own_model,
        (images.float() / 255).contiguous(memory_format=torch.channels_last),
        targets,
        epochs=fitted.best.epoch,
        batch_size=16,
    )
    theirs, ours = fitted_model.state_dict(), own_model.state_dict()
    start = network().state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert not torch.equal(start["0.weight"], ours["0.weight"])
    assert np.isfinite(loss.metrics()["surrogate_ap"])
