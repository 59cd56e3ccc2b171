"""`adap.fit`: networks of every form are trained or refused; what was trained is kept."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adap

X = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(3))
Y = torch.arange(24) % 2
CALM: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "attack": adap.TrainingAttack(steps=1),
    "progress": False,
}


class Shaped(nn.Module):
    """A linear network whose answer takes the form that a test wants."""

    def __init__(self, outputs: int, form: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(0.1 * torch.randn(48, outputs, generator=generator))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x.flatten(1) @ self.weight)


@pytest.mark.parametrize(
    "form", [lambda z: z[:, 0], lambda z: z, lambda z: torch.cat([torch.zeros_like(z), z], 1)]
)
@pytest.mark.parametrize("loss", [adap.AdapLPN, "ce", adap.PGDTraining(examples=20)])
def test_a_score_is_trained_alike_in_every_form_that_it_comes_in(
    form: Callable[[Tensor], Tensor], loss: Any
) -> None:
    expected, model = Shaped(1), Shaped(1, form)
    before = expected.weight.detach().clone()
    adap.fit(expected, X, Y, loss, **CALM)
    assert not torch.equal(expected.weight, before)
    adap.fit(model, X, Y, loss, **CALM)
    assert torch.allclose(model.weight, expected.weight, atol=1e-4)


def test_the_part_that_chooses_the_epoch_holds_whole_clusters() -> None:
    """Each patient's images share a colour, by which the batches of the model are told apart."""
    clusters = [f"patient {i // 4}" for i in range(24)]
    colours = torch.tensor([i // 4 / 6 for i in range(24)])
    images = colours.view(-1, 1, 1, 1).expand(24, 3, 4, 4).clone()
    seen: dict[bool, set[float]] = {True: set(), False: set()}

    class Watching(Shaped):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > 1:
                seen[self.training] |= {round(6 * value.item()) for value in x[:, 0, 0, 0]}
            return super().forward(x)

    calm = {**CALM, "epochs": 1, "validation": 0.34}
    adap.fit(Watching(1), images, Y, "ce", clusters=clusters, **calm)
    trained = seen[True]
    assert len(trained) == 4  # two of six patients choose the epoch, and none does both
    assert seen[False] > trained or seen[False] == set(range(6)) - trained


def test_clusters_that_cannot_be_kept_whole_are_refused() -> None:
    with pytest.raises(adap.ConfigError, match=r"clusters= where a share .* is held out"):
        adap.fit(Shaped(1), X, Y, "ce", validation=(X, Y), clusters=["a"] * 24, **CALM)
    with pytest.raises(adap.DataError, match=r"in the validation part, got 0 positives among 0"):
        adap.fit(Shaped(1), X, Y, "ce", clusters=["a"] * 24, **CALM)


def test_each_epoch_tells_a_logger_its_figures_by_name() -> None:
    drawn: dict[str, list[tuple[int, float]]] = {}

    def draw(record: Any) -> None:  # as `writer.add_scalar(name, value, epoch)` of TensorBoard
        for name, value in record.scalars().items():
            drawn.setdefault(name, []).append((record.epoch, value))

    fitted = adap.fit(Shaped(1), X, Y, on_epoch=draw, **CALM)
    assert list(drawn) == ["lr", "loss", "surrogate_ap", "clean_ap", "robust_ap"]
    assert drawn["robust_ap"] == [(one.epoch, one.robust_ap) for one in fitted.history]
    assert drawn["surrogate_ap"][-1][1] == fitted.history[-1].metrics["surrogate_ap"]
    plain = adap.fit(Shaped(1), X, Y, "ce", **CALM)
    assert "robust_ap" not in plain.history[0].scalars()


def test_what_was_decided_about_the_outputs_is_told() -> None:
    fitted = adap.fit(Shaped(2), X, Y, "ce", **CALM)
    assert any("second is the positive class" in text for text in fitted.warnings)
    assert adap.certify(Shaped(2), X, Y, epsilon=1 / 255).warnings[0] == fitted.warnings[0]


def test_double_precision_is_trained_and_half_is_refused() -> None:
    double = Shaped(1).double()
    fitted = adap.fit(double, X, Y, **CALM)
    assert double.weight.dtype == torch.float64
    single = adap.fit(Shaped(1), X, Y, **CALM)
    assert fitted.history[-1].loss == pytest.approx(single.history[-1].loss, abs=1e-5)
    with pytest.raises(
        adap.ModelError, match=r"float64 to train, got torch.float16.*model.float\(\)"
    ):
        adap.fit(Shaped(1).half(), X, Y, **CALM)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (Shaped(1).requires_grad_(False), {}, "weights to train, got none that requires"),
        (Shaped(1, lambda z: z.detach()), {}, "autograd cannot follow to the weights"),
        (Shaped(3), {}, "expected positive=.* 3 outputs"),
        (lambda x: x, {}, "an nn.Module to train, got function"),
        (Shaped(1), {"loss": "adap"}, "a loss among ce, .* got 'adap'"),
        (Shaped(1), {"loss": nn.BCEWithLogitsLoss()}, "a loss such as .* got BCEWithLogitsLoss"),
        (Shaped(1), {"loss": adap.CE(examples=24)}, "examples=20, .* got examples=24"),
        (Shaped(1), {"seed": -3}, "seed as a whole number of at least 0, got -3"),
        (Shaped(1), {"on_epoch": 5}, "on_epoch= as a function, got int"),
        (Shaped(1), {"validation": 1}, "the share to hold out, got int"),
        (Shaped(1), {"optimizer": "adam"}, "optimizer: .*got 'adam'"),
        (Shaped(1), {"folder": "/proc/none"}, "folder= where files can be written"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    model: Any, options: dict[str, Any], said: str
) -> None:
    before = model.weight.detach().clone() if isinstance(model, Shaped) else None
    with pytest.raises(adap.AdapError, match=said):
        adap.fit(model, X, Y, **{**CALM, **options})
    assert before is None or torch.equal(model.weight, before)


@pytest.mark.parametrize("how", [KeyboardInterrupt, OSError])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    how: type[BaseException], tmp_path: Path
) -> None:
    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise how

    expected, stopped, resumed = Shaped(1), Shaped(1), Shaped(1)
    whole = adap.fit(expected, X, Y, **CALM)
    with pytest.raises(how):
        adap.fit(stopped, X, Y, folder=tmp_path, on_epoch=stop, **CALM)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    seen: list[int] = []
    fitted = adap.fit(
        resumed, X, Y, folder=tmp_path, on_epoch=lambda record: seen.append(record.epoch), **CALM
    )
    assert seen[-1] == 3
    assert len(seen) < 3
    assert [record.loss for record in fitted.history] == [record.loss for record in whole.history]
    assert torch.equal(resumed.weight, expected.weight)


TOGETHER = """
import sys
import torch, adap

torch.set_num_threads(1)
X = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(3))
Y = torch.arange(24) % 2
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1)).double()
fitted = adap.fit(
    model, X, Y, epochs=2, batch_size=8, devices=int(sys.argv[1]), folder=sys.argv[2],
    progress=False, attack=adap.TrainingAttack(steps=1), optimizer=adap.Optimizer(milestones=[]),
    on_epoch=lambda record: print("epoch", record.epoch),
)
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_train_as_one_and_one_goes_on(tmp_path: Path) -> None:
    script, kept = tmp_path / "script.py", tmp_path / "kept"
    script.write_text(TOGETHER)
    run = subprocess.run(
        [
            *(sys.executable, "-W", "error::FutureWarning", "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", "2", str(script), "2", str(kept)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines() == ["epoch 1", "epoch 2"]  # one of them tells

    def alone(**changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).double()
        options: dict[str, Any] = {**CALM, "optimizer": adap.Optimizer(milestones=[]), **changes}
        history = adap.fit(model, X, Y, **options).history
        assert len(history) == 3
        return model.state_dict()

    through, resumed = alone(), alone(folder=kept)
    for name, value in through.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-9)


def test_a_training_on_several_devices_says_how_it_is_started() -> None:
    with pytest.raises(adap.ConfigError, match="start it with torchrun --nproc-per-node 2"):
        adap.fit(Shaped(1), X, Y, "ce", devices=2, **CALM)
    with pytest.raises(adap.ConfigError, match="devices as a whole number of at least 1, got 0"):
        adap.fit(Shaped(1), X, Y, "ce", devices=0, **CALM)


def test_batches_of_an_objective_with_an_anchor_are_those_of_one_without() -> None:
    plain, anchored = (
        [index.tolist() for index in adap.batches(loss, Y, batch_size=8, seed=3)]
        for loss in (adap.AdapLPN(examples=24), adap.AdapLPN(examples=24, anchor="ema"))
    )
    assert anchored == plain
    assert all(int(Y[index].sum()) == 4 for index in plain)


def test_a_folder_of_another_training_is_refused_with_the_way_out(tmp_path: Path) -> None:
    adap.fit(Shaped(1), X, Y, folder=tmp_path, **CALM)
    for model, images, options, said in (
        (Shaped(1), X, {"epochs": 5}, "epochs 5 instead of 3"),
        (Shaped(1), X, {"loss": "ce"}, "method.name 'ce'"),
        (nn.Sequential(Shaped(1)), X, {}, "other network"),
        (Shaped(1), X.flip(0), {}, "other training images, "),
    ):
        with pytest.raises(adap.ConfigError, match=f"{said}.*: name another folder="):
            adap.fit(model, images, Y, folder=tmp_path, **{**CALM, **options})
    for content in (b"garbage", b""):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(adap.ConfigError, match="got a file that is none: name another folder="):
            adap.fit(Shaped(1), X, Y, folder=tmp_path, **CALM)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: adap.batches(adap.AP(examples=4), Y), r"4 labels, one an image, got \(24,\)"),
        (lambda: adap.batches(adap.AP(examples=24), Y * 0.5), r"\{0, 1\}, got \[0.0, 0.5\]"),
        (lambda: adap.batches("ap", Y), "a loss such as .* got str"),
        (lambda: adap.attack_generator(seed=-1, epoch=1), "seed as a whole number"),
        (lambda: adap.attack_generator(seed=0, epoch=0), "epoch as a whole number of at least 1"),
        (lambda: adap.attack_generator(seed=0, epoch=1, device="gpu"), "a device of this machine"),
        (lambda: adap.certify(Shaped(1), X, Y, batch_size=0), "batch_size as a whole number"),
        (lambda: adap.certify(Shaped(3), X, Y), "expected positive=.* 3 outputs"),
        (lambda: adap.certify(lambda x: x, X, Y), "whose operations are bounded, got function"),
        (lambda: adap.certify(nn.Sequential(Shaped(1), nn.Sigmoid()), X, Y), "aten.sigmoid"),
        (lambda: adap.average_precision([1, 2], [0, 1], ties="x"), "ties among pessimistic"),
        (lambda: adap.average_precision([[1], [2, 3]], [0, 1]), "rows of several lengths"),
        (lambda: adap.attack(Shaped(1), X, Y, generator=5), "a torch.Generator, .*got int"),
        (lambda: adap.attack(Shaped(1), X, Y, loss=5), "loss= as a function of images, got int"),
        (lambda: adap.attack(Shaped(1, lambda z: z.detach()), X, Y), "cannot follow to the images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Callable[[], object], said: str) -> None:
    with pytest.raises(adap.AdapError, match=said):
        call()
