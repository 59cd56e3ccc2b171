"""The judge: each training alone. No GPU is needed to see that trainings in turn stay apart."""

import gc
import inspect
import pydoc
import weakref

import pytest
import torch

from adap.core.capture import WARM_UPS
from adap.core.config.training import Optimizer, Validation
from adap.core.errors import ConfigError, TrainingError
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.precision import float32_products
from adap.core.training.loop import TrainingResult, fit, fitting
from adap.core.training.together import MOST_AT_ONCE, together
from tests.core.test_capture import Plain, Tape, same
from tests.core.test_training import (
    CPU,
    RECIPE,
    Breaking,
    KilledError,
    config_for,
    dropping,
    pictures,
    through_a_file,
    train,
    without_speed,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def begun(config, *, network=None, on_epoch=lambda record: None, **changes):
    """A training that waits for its turns, on the data of `train`: network, objective, turns."""
    images, targets = pictures(30, seed=1)
    network = Plain() if network is None else network
    objective = build_objective(config.method, examples=len(targets))
    arguments = {"images": images, "targets": targets, "validation": pictures(20, seed=2)}
    turns = fitting(
        network,
        objective,
        config=config,
        device=CPU,
        on_epoch=on_epoch,
        **{**arguments, **changes},
    )
    return network, objective, turns


def test_trainings_of_all_methods_in_turn_end_in_the_bits_that_each_ends_in_alone():
    # of several lengths, sizes of batch, rates and seeds, and with a network that draws itself
    changes = [{"epochs": 1 + number % 3, "seed": number} for number in range(len(OBJECTIVES))]
    changes[1].update(batch_size=6, optimizer=Optimizer(lr=0.02))
    changes[2].update(RECIPE, validation=Validation(every=2))
    changes[3].update(precision="bfloat16")
    configs = [config_for(name, **c) for name, c in zip(OBJECTIVES, changes, strict=True)]
    networks = [Plain for _ in configs]
    networks[4] = networks[5] = dropping
    works = [begun(c, network=make()) for c, make in zip(configs, networks, strict=True)]
    before = torch.get_rng_state()
    results = together([turns for _, _, turns in works], device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    for (network, objective, _), result, config, make in zip(
        works, results, configs, networks, strict=True
    ):
        same((network, objective, result), train(config, network=make()))


def test_those_that_are_captured_do_as_well_and_each_is_captured_by_itself():
    config, tapes = config_for(optimizer=Optimizer(name="sgd", lr=0.01), epochs=3), [Tape(), Tape()]
    works = [begun(config, recorder=tape) for tape in tapes]
    results = together([turns for _, _, turns in works], device=CPU)
    expected = train(config, network=Plain())
    for (network, objective, _), result in zip(works, results, strict=True):
        same((network, objective, result), expected)
    assert tapes[0].replays == tapes[1].replays > 3 * 3 - WARM_UPS - 1


def test_they_take_turns_step_by_step():
    told = []
    works = [
        begun(
            config_for("ce", epochs=2, seed=seed),
            on_epoch=lambda r, s=seed: told.append((r.epoch, s)),
        )
        for seed in range(3)
    ]
    together([turns for _, _, turns in works], device=CPU)
    assert told == [(epoch, seed) for epoch in (1, 2) for seed in range(3)]


def test_one_that_fails_leaves_the_others_alone():
    config = config_for("ce", epochs=2)
    works = [begun(config), begun(config, network=Breaking(after=5, training=True)), begun(config)]
    first, broken, last = together([turns for _, _, turns in works], device=CPU)
    assert isinstance(broken, TrainingError)
    assert "expected a finite loss, got nan in epoch 2 of 2" in str(broken)
    _, _, expected = train(config, network=Plain())
    assert without_speed(first) == without_speed(last) == without_speed(expected)


def test_one_that_fails_is_let_go_while_the_others_go_on():
    broken = Breaking(after=5, training=True)
    there, alive = weakref.ref(broken), []

    def look(record):
        gc.collect()
        alive.append(there() is not None)

    config = config_for("ce", epochs=4)
    works = [
        begun(config, network=broken)[2],
        begun(config, on_epoch=look)[2],
    ]
    del broken
    error, _ = together(works, device=CPU)
    assert alive == [True, False, False, False], "it fails in the second epoch"
    assert isinstance(error, TrainingError)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None


def test_what_is_done_at_once_says_what_it_takes_and_gives():
    shown = inspect.signature(fit)
    assert shown.parameters == inspect.signature(fitting).parameters
    assert shown.return_annotation is fit.__annotations__["return"] is TrainingResult
    title, *_ = pydoc.plain(pydoc.render_doc(fit)).split("\n\n", 1)
    assert title == "Python Library Documentation: function fit in module adap.core.training.loop"
    assert "`fit` does it at once" in fit.__doc__


def test_what_a_listener_raises_ends_all_and_each_goes_on_from_its_checkpoint():
    config, saved = config_for(epochs=3), [[], []]

    def ended(record):
        if record.epoch == 2:
            raise KilledError

    works = [
        begun(config, save=lambda state, to=to: to.append(through_a_file(state)), on_epoch=told)
        for to, told in zip(saved, (lambda record: None, ended), strict=True)
    ]
    with pytest.raises(KilledError):
        together([turns for _, _, turns in works], device=CPU)
    assert [[state["epoch"] for state in states] for states in saved] == [[1, 2], [1, 2]]
    assert all(module.training for module in works[0][0].modules()), "nothing holds it any more"
    works = [begun(config, checkpoint=states[-1]) for states in saved]
    results = together([turns for _, _, turns in works], device=CPU)
    expected = train(config, network=Plain())
    for (network, objective, _), result in zip(works, results, strict=True):
        same((network, objective, result), expected)


def test_each_multiplies_in_its_own_format_and_draws_its_own_numbers():
    seen = []

    def work(precision, seed):
        with float32_products(precision), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(3):
                seen.append((torch.backends.cuda.matmul.fp32_precision, float(torch.rand(()))))
                yield
        return seed

    before = torch.backends.cuda.matmul.fp32_precision
    assert together([work("tf32", 0), work("float32", 1)], device=CPU) == [0, 1]
    assert torch.backends.cuda.matmul.fp32_precision == before
    torch.manual_seed(0)
    assert seen[::2] == [("tf32", float(torch.rand(()))) for _ in range(3)]
    torch.manual_seed(1)
    assert seen[1::2] == [("ieee", float(torch.rand(()))) for _ in range(3)]


def test_more_than_have_room_are_refused_before_any_step():
    def never():
        raise AssertionError("a step was made")
        yield

    said = f"at most {MOST_AT_ONCE} trainings at once, got {MOST_AT_ONCE + 1}"
    with pytest.raises(ConfigError, match=said):
        together([never() for _ in range(MOST_AT_ONCE + 1)], device=CPU)
