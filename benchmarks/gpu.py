"""What one GPU does with AdAP: does it compute rightly, how fast, and Table 2 of the paper.

    make gpu-wheels                                # before, where the other machine has no network
    make gpu GPU_PYTHON=python3.12 DATA=../data    # there: Python with torch and torchvision
    python -m benchmarks.gpu --tiny                # the same steps in a minute, on a CPU as well

Images are CIFAR-10 in its publisher's layout below the data folder, or cifar10-train.zip and
cifar10-test.zip of class folders with JPEGs.

Three parts, each of which writes what it finds at once, a line of JSON to OUT/results.jsonl:

check   the gradient of every method on the GPU against the CPU in float64; the gradient of a folded
        attack against the network's own; which products are exact float32; that in bfloat16 an
        attack moves every image that it moves in float32; that captured steps end in the losses of
        steps that are not; that an audit whose passes are captured finds as much as one whose are
        not, and one in bfloat16 nearly so
speed   images a second of `fit` for CE, PGD, TRADES and AdAP_LPN in each precision, warm, and why
        steps were not captured, if they were not; of AdAP_LPN with a folded attack; then of 1, 2,
        4, 8 and 16 trainings by AdAP_LPN at once, each on a stream of its own, all of their images
        counted; and of PGD-10 of an audit in both formats, captured and kernel by kernel
train   the scale `paper-fixed` (CIFAR-10, automobile): CE, PGD, TRADES, AdAP_LN and AdAP_LPN at
        once, seed after seed, as many as the time lets; each with the AP of the test images, clean,
        under PGD-10 and under APGD-10

A training that the time cuts short keeps its checkpoint in OUT, and the same command goes on with
it. A figure stands in the results only with the device that made it. Trainings run one after the
other, each step captured as a CUDA graph.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.audit.measuring import attack_shard
from adap.core.capture import Recorder, Result, Work, graphs_of
from adap.core.config.attacks import PGDAttack
from adap.core.config.audits import SearchPrecision
from adap.core.config.threats import Threat
from adap.core.config.training import Precision, TrainingAttack, TrainingConfig
from adap.core.errors import TrainingError
from adap.core.objectives.registry import OBJECTIVES, build_objective
from adap.core.precision import float32_products, forward_in
from adap.core.training.attacking import attack_batch
from adap.core.training.folding import Folded
from adap.core.training.loop import EpochRecord, TrainingResult, fit, fitting
from adap.core.training.together import together
from adap.models import architectures
from benchmarks.paper import plan
from benchmarks.paper.compute import compute, compute_trainings
from benchmarks.paper.runs import Evaluation, Training

METHODS = ("ce", "pgd", "trades", "adap_ln", "adap_lpn")
TIMED = ("ce", "pgd", "trades", "adap_lpn")
FLEETS = (1, 2, 4, 8, 16)
EVALUATION_S = 20.0  # left for the test images of a training that ends in time


class OutOfTimeError(Exception):
    """The seconds that were given are over; checkpoints stay."""


@dataclass(frozen=True)
class Run:
    """What is measured where, and for how long."""

    device: torch.device
    root: Path
    out: Path
    ends: float
    tiny: bool

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def write(self, kind: str, **values: Any) -> None:
        """Append a line to the results, and show it."""
        line = json.dumps({"kind": kind, "device": self.name, **values})
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @property
    def name(self) -> str:
        """What computes."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return platform.processor() or platform.machine()


# --- does it compute rightly ----------------------------------------------------------------------


def _network(name: str) -> nn.Module:
    return nn.Sequential(architectures.build(name, channels=3, seed=0), nn.Flatten(0))


def _batch(count: int) -> tuple[Tensor, Tensor]:
    """(B, 3, 32, 32) in [0, 1] and (B,) targets, a quarter of them positive."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=generator), (torch.arange(count) % 4 == 0).float()


def _gradient(method: str, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(W,) the gradient of a first step's loss in all weights, on given attacked images."""
    config = TrainingConfig.model_validate({"method": method})
    objective = build_objective(config.method, examples=len(y)).to(x)
    generator = torch.Generator().manual_seed(1)
    x_adv = (x + 0.03 * torch.randn(x.shape, generator=generator).to(x)).clamp(0, 1)
    network.train()
    network.zero_grad()
    clean = network(x) if objective.needs_clean else None
    adv = network(x_adv) if objective.needs_adversarial else None
    objective(clean, adv, y, torch.arange(len(y), device=x.device)).backward()
    return torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])


def check(run: Run) -> None:
    """Lines of the kind `check`, each with `ok`."""
    name, count = ("small_cnn", 8) if run.tiny else ("resnet18", 64)
    x, y = _batch(count)
    for method in OBJECTIVES:
        here, there = _network(name).double(), _network(name).double().to(run.device)
        ours = _gradient(method, here, x.double(), y.double())
        theirs = _gradient(method, there, x.double().to(run.device), y.double().to(run.device))
        off = float((theirs.cpu() - ours).norm() / ours.norm())
        run.write("check", what=f"gradient of {method} in float64", off=off, ok=off < 1e-9)
    network = _network(name).double().to(run.device)
    points = x.double().to(run.device)
    copied = Folded(network, points, precision="float32", device=run.device).settle()
    with attacking(network):
        _, own = loss_and_gradient(network, points)
        _, folded = loss_and_gradient(copied, points)
    off = float((folded - own).norm() / own.norm())
    run.write("check", what="gradient of a folded attack in float64", off=off, ok=off < 1e-9)
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(2))
    exact = a.double() @ a.double()
    products: list[tuple[Precision, float]] = [("float32", 1e-5)]
    if run.device.type == "cuda":
        products.append(("tf32", 1e-2))
    for precision, most in products:
        with float32_products(precision):
            product = (a.to(run.device) @ a.to(run.device)).cpu()
        off = float((product - exact).norm() / exact.norm())
        run.write("check", what=f"products in {precision}", off=off, ok=off < most)
    moved = {}
    network = _network(name).to(run.device)
    for precision in ("float32", "bfloat16"):
        x_adv = attack_batch(
            network,
            build_objective(
                TrainingConfig.model_validate({"method": "trades"}).method, examples=count
            ).to(run.device),
            x.to(run.device),
            y.to(run.device),
            torch.arange(count, device=run.device),
            settings=TrainingAttack(),
            generator=torch.Generator().manual_seed(0),
            forward=forward_in(precision, network, device=run.device),
        )
        moved[precision] = (x_adv.cpu() - x).abs().amax(dim=(1, 2, 3)) > 0.005
    still = int((moved["float32"] & ~moved["bfloat16"]).sum())
    run.write(
        "check",
        what="images that bfloat16 alone leaves where they are",
        of=count,
        images=still,
        ok=still == 0,
    )
    for method in TIMED:
        captured, plain = (
            _fitted(run, method, "float32", name, 8 * count, count, recorder)
            for recorder in (None, OneByOne())
        )
        losses = [[record.loss for record in result.history] for result in (captured, plain)]
        off = max(abs(a - b) / max(abs(b), 0.01) for a, b in zip(*losses, strict=True))
        run.write(
            "check",
            what=f"losses of captured steps of {method}",
            off=off,
            uncaptured=captured.uncaptured,
            ok=off < 1e-2 and captured.uncaptured is None,
        )
    searched = {search: _searched(run, *search, name, 16 * count, 2 * count) for search in SEARCHES}
    most = max(found.fall for found in searched.values())
    for (precision, captured), found in searched.items():
        how = "captured" if captured else "kernel by kernel"
        run.write(
            "check",
            what=f"fall of logits under PGD-10 in {precision}, {how}",
            fall=found.fall,
            recordings=found.recordings,
            ok=found.fall > 0.9 * most > 0,
        )


SEARCHES: list[tuple[SearchPrecision, bool]] = [
    (precision, captured) for precision in ("float32", "bfloat16") for captured in (True, False)
]
"""In which format an audit searches, and whether its passes are captured."""


@dataclass(frozen=True)
class Searched:
    """An audit's shard under PGD-10."""

    images_per_s: float
    fall: float
    """Mean of how far logits moved the wrong way."""
    recordings: int


def _searched(
    run: Run, precision: SearchPrecision, captured: bool, name: str, count: int, batch: int
) -> Searched:
    x, y = _batch(count)
    x = x[..., :8, :8] if run.tiny else x
    network, targets = _network(name).to(run.device).eval(), y.long().numpy()
    recorder = Counting(graphs_of(run.device) if captured else None)
    began = 0.0

    def on_progress(done: int) -> None:
        nonlocal began
        if done == count:  # from when all clean images are scored
            began = time.perf_counter()

    with float32_products("float32"):
        scores = attack_shard(
            network,
            (x * 255).byte().numpy(),
            targets,
            [str(i) for i in range(count)],
            attacks=[PGDAttack(steps=10)],
            threat=Threat(),
            surrogate=None,
            seed=0,
            shard=0,
            batch_size=batch,
            device=run.device,
            on_progress=on_progress,
            precision=precision,
            recorder=recorder,
        )
    seconds = time.perf_counter() - began  # scores lie on the host: the device has ended
    fall = float(((1 - 2 * targets) * (scores.attacked["pgd"] - scores.clean)).mean())
    return Searched(count / seconds, fall, recorder.recordings)


class Counting:
    """A recorder that counts what another one has recorded, or refuses as if nothing could be."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder or OneByOne()
        self.recordings = 0

    def warm_up(self, work: Work[Result]) -> Result:
        """Do the work."""
        return self._recorder.warm_up(work)

    def record(self, work: Work[Result], generators: Sequence[torch.Generator]) -> Work[Result]:
        """See `Recorder`."""
        replay = self._recorder.record(work, generators)
        self.recordings += 1
        return replay


class OneByOne:
    """A recorder that records nothing, so that steps run kernel by kernel."""

    def warm_up(self, work: Work[Result]) -> Result:
        """Do the work."""
        return work()

    def record(
        self,
        work: Work[Result],  # noqa: ARG002
        generators: Sequence[torch.Generator],  # noqa: ARG002
    ) -> Work[Result]:
        """Refuse."""
        raise RuntimeError("expected to run kernel by kernel")


# --- how fast -------------------------------------------------------------------------------------


def speed(run: Run) -> None:
    """Lines of the kind `speed`: the median over warm epochs of `fit`, validation left out."""
    name, steps, batch = ("small_cnn", 1, 8) if run.tiny else ("resnet18", 40, 128)
    precisions: list[Precision] = ["float32", "bfloat16"]
    if run.device.type == "cuda":
        precisions.insert(1, "tf32")
    plain = [(method, precision, False) for method in TIMED for precision in precisions]
    for method, precision, folded in [*plain, ("adap_lpn", "bfloat16", True)]:
        if run.left() < EVALUATION_S:
            return
        training = _training(run, method, precision, name, steps * batch, batch, folded=folded)
        result = fit(**training)
        run.write(
            "speed",
            method=method,
            network=name,
            precision=precision,
            folded_attack=folded,
            batch=batch,
            images_per_s=statistics.median(r.images_per_s for r in result.history[1:]),
            uncaptured=result.uncaptured,
        )
    for count in (1, 2) if run.tiny else FLEETS:
        if run.left() < EVALUATION_S:
            return
        works = [
            fitting(**_training(run, "adap_lpn", "bfloat16", name, steps * batch, batch))
            for _ in range(count)
        ]
        found = _all_of(together(works, device=run.device))
        # the time of an epoch is that of all of them, as each has one step in turn
        rates = [statistics.median(r.images_per_s for r in one.history[1:]) for one in found]
        run.write(
            "speed",
            method="adap_lpn",
            network=name,
            precision="bfloat16",
            batch=batch,
            at_once=count,
            images_per_s=sum(rates),
            uncaptured=next((one.uncaptured for one in found if one.uncaptured), None),
        )

    for search in SEARCHES:
        if run.left() < EVALUATION_S:
            return
        audited = _searched(run, *search, name, max(steps, 16) * batch, batch)
        run.write(
            "speed",
            attack="pgd",
            network=name,
            precision=search[0],
            captured=audited.recordings > 0,
            batch=batch,
            images_per_s=audited.images_per_s,
        )


def _all_of(results: Sequence[TrainingResult | TrainingError]) -> list[TrainingResult]:
    """Raises the error of one that failed: the others had the card to themselves meanwhile."""
    found = []
    for result in results:
        if isinstance(result, TrainingError):
            raise result
        found.append(result)
    return found


def _fitted(
    run: Run,
    method: str,
    precision: Precision,
    name: str,
    count: int,
    batch: int,
    recorder: Recorder | None = None,
) -> TrainingResult:
    return fit(**_training(run, method, precision, name, count, batch), recorder=recorder)


def _training(
    run: Run,
    method: str,
    precision: Precision,
    name: str,
    count: int,
    batch: int,
    *,
    folded: bool = False,
) -> dict[str, Any]:
    x, y = _batch(count)
    config = TrainingConfig.model_validate(
        {
            "method": method,
            "epochs": 3,
            "batch_size": batch,
            "precision": precision,
            "folded_attack": folded,
            "augment": {"crop_padding": 4, "flip": True},
            "validation": {"select_by": "clean_ap"},
        }
    )
    return {
        "network": _network(name),
        "objective": build_objective(config.method, examples=count),
        "images": (x * 255).byte().to(run.device),
        "targets": y.long(),
        "validation": ((x[:batch] * 255).byte(), y[:batch].long()),
        "config": config,
        "device": run.device,
        "on_epoch": lambda _: None,
    }


# --- Table 2 --------------------------------------------------------------------------------------


def pieces(run: Run) -> Iterator[list[Training]]:
    """The trainings of each seed."""
    scale = plan.scale("paper-fixed").of_what_is_in(run.root)
    if run.tiny:
        size = plan.Size(seeds=[0], train=64, validation=32, test=32, epochs=2)
        changes = {"network": "strided_cnn", "full": size, "small": size}
        scale = scale.model_copy(update=changes)
    scale = scale.model_copy(update={"device": run.device.type})
    planner = plan.Planner(scale, lambda _: [])
    (task,) = scale.tasks
    for seed in scale.full.seeds:
        yield [
            planner.training(method, task, planner.tuned(method, task), seed=seed, size=scale.full)
            for method in (METHODS[-2:] if run.tiny else METHODS)
        ]


def train(run: Run) -> None:
    """Lines of the kind `result`, and `cut` for those that the time ends.

    Raises the TrainingError of one that fails, when the others of its seed have their lines.
    """
    paper = plan.experiments()["table2"]
    for trainings in pieces(run):

        def on_epoch(training: Training, record: EpochRecord) -> None:
            run.write("epoch", **_told(training), **record.as_json())
            if record.epoch < record.epochs and run.left() < EVALUATION_S * len(METHODS):
                raise OutOfTimeError

        try:
            if run.left() < EVALUATION_S:
                raise OutOfTimeError
            results = compute_trainings(trainings, root=run.root, out=run.out, on_epoch=on_epoch)
        except OutOfTimeError:
            for training in trainings:
                run.write("cut", **_told(training))
            return
        errors = []
        for training, trained in zip(trainings, results, strict=True):
            if isinstance(trained, TrainingError):
                errors.append(trained)
                continue
            evaluation = Evaluation(training=training, attacks=("pgd", "apgd"))
            found = compute(evaluation, root=run.root, out=run.out)
            value = paper.of_paper("cifar10/automobile", training.config.method.name, {})
            run.write(
                "result",
                **_told(training),
                network=training.network,
                epochs=training.config.epochs,
                examples=trained["examples"],
                seconds=sum(trained["examples"][0] / r["images_per_s"] for r in trained["history"]),
                at_once=len(trainings),
                best_epoch=trained["best"]["epoch"],
                ap=found["ap"],
                paper=None if run.tiny else {"robust": value.robust, "clean": value.clean},
            )
        if errors:
            raise errors[0]


def _told(training: Training) -> dict[str, Any]:
    config = training.config
    return {"method": config.method.name, "seed": config.seed, "source": training.data.source}


PARTS = {"check": check, "speed": speed, "train": train}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=520, help="after which it is over")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--tiny", action="store_true", help="small networks, few images, any device"
    )
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available() and not arguments.tiny:
        print(
            "expected a GPU, got a machine without: --tiny tries the same on a CPU", file=sys.stderr
        )
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        root=arguments.data,
        out=arguments.out,
        ends=time.monotonic() + arguments.seconds,
        tiny=arguments.tiny,
    )
    run.write("machine", torch=torch.__version__, python=platform.python_version(), tiny=run.tiny)
    failed = []
    for part in arguments.parts:
        try:
            PARTS[part](run)
        except Exception as error:  # noqa: BLE001  the other parts are to have their time
            failed.append(part)
            run.write("failed", part=part, error=repr(error))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
