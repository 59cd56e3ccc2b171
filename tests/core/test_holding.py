"""Threads that hold a network at once each find it still, and leave it as the first found it."""

import threading
from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

import adap
from adap.core.attacks.holding import attacking, in_eval_mode, mode_outside


def network() -> nn.Module:
    """Some layers in train mode, some not; some weights frozen, some not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[1].eval()
    model[3].requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[list[bool], list[bool]]:
    modes = [module.training for module in model.modules()]
    return modes, [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize("first_out", [0, 1])
def test_who_lets_go_last_puts_back_what_the_first_found(first_out: int) -> None:
    model = network()
    before = state(model)
    whole = nn.Sequential(model)  # another module around the same layers
    holds = [attacking(model), attacking(whole)]
    for hold in holds:
        hold.__enter__()
    holds[first_out].__exit__(None, None, None)
    assert state(model) == ([False] * 5, [False] * 4)
    assert [mode_outside(module) for module in model.modules()] == before[0]
    holds[1 - first_out].__exit__(None, None, None)
    assert state(model) == before


def test_eval_mode_alone_freezes_nothing_and_an_error_puts_all_back() -> None:
    model = network()
    before = state(model)
    with pytest.raises(KeyboardInterrupt), attacking(model), in_eval_mode(model):
        raise KeyboardInterrupt
    assert state(model) == before
    with in_eval_mode(model):
        assert state(model) == ([False] * 5, before[1])


def test_a_layer_that_stays_in_train_mode_by_its_own_method_stays_so() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> Self:
            return super().train(True)

    layer = Stubborn()
    with attacking(nn.Sequential(layer)):
        assert layer.training


def attack_of(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return adap.attack(model, x, y, adap.PGD(steps=3))


def training_attack_of(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    generator = adap.attack_generator(seed=0, epoch=1)
    loss, index = adap.AdapLPN(examples=len(x)), torch.arange(len(x))
    return adap.training_attack(model, loss, x, y, index, generator=generator)


def audit_of(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    options: dict[str, Any] = {"attacks": ["fgsm"], "certify": "off", "checks": "off"}
    return adap.audit(model, x, y, progress=False, **options).worst_case.ap


@pytest.mark.parametrize("call", [attack_of, training_attack_of, audit_of])
def test_calls_from_several_threads_leave_a_model_as_it_was_and_agree(
    call: Callable[[nn.Module, Tensor, Tensor], Any],
) -> None:
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 2
    torch.manual_seed(1)
    model = network()
    if call is audit_of:
        model[2].p = 0.0  # an audit refuses a model whose mode matters
    before, weights = state(model), [value.clone() for value in model.state_dict().values()]
    expected = call(model, x, y)
    meet = threading.Barrier(4)
    found: list[Any] = []

    def run() -> None:
        meet.wait()
        found.extend(call(model, x, y) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(torch.as_tensor(one), torch.as_tensor(expected)) for one in found)
    assert state(model) == before
    assert all(map(torch.equal, model.state_dict().values(), weights))
