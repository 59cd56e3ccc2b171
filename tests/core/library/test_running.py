"""An audit that is stopped goes on; what is measured once is not measured again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adap

COMMON: dict[str, Any] = {"checks": "off", "shard_size": 10, "epsilon": 0.02}


class Counted(nn.Module):
    """A linear model that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(48, 1)
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (30, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return images, torch.arange(30) % 2


ATTACKS = [adap.PGD(steps=3), adap.Square(queries=10)]


@pytest.mark.slow
def test_what_was_done_before_ctrl_c_is_kept_where_the_exception_says(
    data: tuple[Tensor, Tensor],
) -> None:
    whole = Counted()
    expected = adap.audit(whole, *data, attacks=ATTACKS, progress=False, **COMMON)

    def stop(done: int, total: int) -> None:
        if done >= 0.6 * total:
            raise KeyboardInterrupt

    model = Counted()
    with pytest.raises(KeyboardInterrupt) as stopped:
        adap.audit(model, *data, attacks=ATTACKS, progress=stop, **COMMON)
    (note,) = stopped.value.__notes__
    folder = Path(note.split("'")[1])
    assert list(folder.glob("*.safetensors"))
    assert not list(folder.glob("*.part"))
    model.images = 0
    resumed = adap.audit(model, *data, attacks=ATTACKS, progress=False, folder=folder, **COMMON)
    assert model.images < 0.7 * whole.images
    assert resumed.task == expected.task
    assert np.array_equal(resumed.scores[0].clean, expected.scores[0].clean)


def test_what_was_done_before_a_function_failed_is_kept_where_the_exception_says(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model, asked, limit = Counted(), [0], [25]

    def remote(images: Any) -> Any:
        asked[0] += 1
        if asked[0] > limit[0]:
            raise ConnectionError("the service is away")
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    options = {**COMMON, "attacks": [adap.Square(queries=10)], "progress": False}
    with pytest.raises(ConnectionError, match="away") as stopped:
        adap.audit(remote, *data, **options)
    (note,) = stopped.value.__notes__
    folder = Path(note.split("'")[1])
    assert list(folder.glob("*.safetensors"))
    limit[0] = 10**9
    resumed = adap.audit(remote, *data, folder=folder, **options)
    assert resumed.task == adap.audit(remote, *data, folder=tmp_path, **options).task


def test_an_attack_more_costs_that_attack_alone_and_another_model_all(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model = Counted()
    common = {**COMMON, "certify": "off", "progress": False, "folder": tmp_path}
    adap.audit(model, *data, attacks=ATTACKS, **common)
    first, model.images = model.images, 0
    again = adap.audit(model, *data, attacks=[*ATTACKS, "fgsm"], **common)
    assert list(again.attacks) == ["pgd", "square", "fgsm"]
    assert model.images < first / 2
    other = Counted()
    with torch.no_grad():
        other.linear.weight.neg_()
    report = adap.audit(other, *data, attacks=ATTACKS, **common)
    assert other.images >= first
    assert report.clean.ap != again.clean.ap


class Scaled(nn.Module):
    """What it answers hangs on an attribute, which is no weight."""

    def __init__(self, scale: float, shift: float = 0.0, outputs: int = 1) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift
        generator = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(torch.randn(48, outputs, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.weight - self.shift)


FOLDED: dict[str, Any] = {**COMMON, "attacks": ["fgsm"], "certify": "off", "progress": False}


def test_scores_that_are_kept_come_back_for_the_model_that_gave_them_alone(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    options = {**FOLDED, "folder": tmp_path}
    first = adap.audit(Scaled(1.0), *data, **options)
    model = Scaled(-1.0)
    with pytest.raises(adap.ModelError, match=r"scores 10 of 10 images otherwise.*another folder="):
        adap.audit(model, *data, **options)
    with torch.no_grad():
        model.weight.mul_(1 + 1e-7)  # other weights: another column
    assert adap.audit(model, *data, **options).clean.ap != first.clean.ap
    assert adap.audit(Scaled(1.0), *data, **options).task == first.task


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"positive": 0}, {"positive": 0, "outputs": "multilabel"}),
        ({"positive": 0}, {"positive": 0, "mean": [0.4] * 3, "std": [0.3, 0.01, 0.3]}),
        (
            {"positive": 0, "classes": ["0", "b", "c"]},
            {"positive": 0, "classes": ["b", "0", "c"]},
        ),
    ],
)
def test_what_a_folder_holds_is_kept_for_each_reading_of_the_outputs_and_pixels(
    one: dict[str, Any], other: dict[str, Any], data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, marks = data
    model, labels = Scaled(1.0, outputs=3), 1 - marks
    if "classes" in one:
        named = np.array(["b", "0"])[labels.numpy()]
        one, other = ({**given, "positive": "0"} for given in (one, other))
        given: Any = named
    else:
        given = labels
    both = [adap.audit(model, images, given, **FOLDED, **options) for options in (one, other)]
    kept = [
        adap.audit(model, images, given, **FOLDED, **options, folder=tmp_path)
        for options in (one, other, one)
    ]
    assert kept[0].task == kept[2].task == both[0].task
    assert kept[1].task == both[1].task
    assert both[0].task != both[1].task


def test_another_surrogate_of_the_same_weights_attacks_anew(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    options = {**FOLDED, "attacks": ["transfer"], "folder": tmp_path}
    first = adap.audit(Scaled(1.0), *data, surrogate=Scaled(1.0), **options)
    other = adap.audit(Scaled(1.0), *data, surrogate=Scaled(-1.0), **options)
    assert other.worst_case.ap > first.worst_case.ap


def test_progress_counts_to_the_end(data: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    options = {**COMMON, "checks": "quick"}
    adap.audit(
        Counted(), *data, attacks=ATTACKS, progress=lambda *told: seen.append(told), **options
    )
    done = [at for at, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
