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


def test_progress_counts_to_the_end(data: tuple[Tensor, Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    options = {**COMMON, "checks": "quick"}
    adap.audit(
        Counted(), *data, attacks=ATTACKS, progress=lambda *told: seen.append(told), **options
    )
    done = [at for at, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
