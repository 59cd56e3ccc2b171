"""Computing pieces in a process: JSON and weights, each in a folder named by its hash.

Several trainings are made a step of each in turn, so that they fill a card. A training writes a
checkpoint after every epoch and goes on from it. A result is complete when its `result.json`
exists, which is written last and renamed into place.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adap.core.attacks.base import LossFn
from adap.core.attacks.registry import build_attack
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.attacks import PRESETS
from adap.core.config.threats import Threat
from adap.core.errors import TrainingError
from adap.core.figures.ranking import average_precision
from adap.core.objectives.registry import build_objective
from adap.core.objectives.surrogates import negative_margin
from adap.core.training.loop import EpochRecord, fitting
from adap.core.training.together import Turns, to_the_end, together
from benchmarks.paper import data, networks
from benchmarks.paper.runs import Evaluation, Piece, Training, digest

BATCH = 250
# The attacks of Tables 2, 3 and 4 are those of the audit's preset of the same name.
PAPER_ATTACKS = dict(zip(("pgd", "apgd", "black_box"), PRESETS["paper"], strict=True))


def _nobody(record: EpochRecord) -> None:
    """Told of an epoch; the history is kept in the result."""


OnEpoch = Callable[[EpochRecord], None]


def compute_trainings(
    trainings: Sequence[Training],
    *,
    root: Path,
    out: Path,
    on_epoch: Callable[[Training, EpochRecord], None] | None = None,
) -> list[dict[str, Any] | TrainingError]:
    """`compute` for trainings on one device, all at once: each with the weights that it has alone.

    A training that fails has its error in its place.
    """
    works = [
        _computing(
            training,
            root=root,
            out=out,
            on_epoch=_nobody if on_epoch is None else partial(on_epoch, training),
        )
        for training in trainings
    ]
    (device,) = {training.device for training in trainings}
    return together(works, device=torch.device(device))


def _computing(
    piece: Piece, *, root: Path, out: Path, on_epoch: OnEpoch = _nobody
) -> Turns[dict[str, Any]]:
    """The result of a piece, from `out` where it is known; what it depends on must be there.

    on_epoch: told of each epoch of a training; what it raises ends it, its checkpoint kept.
    """
    folder = out / digest(piece)
    known = folder / "result.json"
    if known.exists():
        found: dict[str, Any] = json.loads(known.read_text())
        return found
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    measured = (
        (yield from _training(piece, folder, root=root, out=out, on_epoch=on_epoch))
        if isinstance(piece, Training)
        else _evaluate(piece, root=root, out=out)
    )
    result = {
        "hash": digest(piece),
        "kind": type(piece).__name__.lower(),
        "piece": piece.as_json(),
        **measured,
        "cpu_s": round(time.process_time() - started, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    written = folder / "result.json.new"
    written.write_text(json.dumps(result, indent=1))
    written.rename(known)
    return result


compute = to_the_end(_computing, name="compute")


def _training(
    training: Training, folder: Path, *, root: Path, out: Path, on_epoch: OnEpoch
) -> Turns[dict[str, Any]]:
    split = data.load(training.data, root, out / "data")
    network = networks.build(training.network, seed=training.config.seed)
    if training.start is not None:
        _load(network, out / digest(training.start) / "best.safetensors")
        networks.with_fresh_last_layer(network)
    objective = build_objective(training.config.method, examples=len(split.train[1]))
    checkpoint = folder / "checkpoint.pt"

    def save(content: dict[str, Any]) -> None:
        written = folder / "checkpoint.new"
        torch.save(content, written)
        written.rename(checkpoint)

    device = torch.device(training.device)
    result = yield from fitting(
        network,
        objective,
        images=split.train[0].to(device),
        targets=split.train[1],
        validation=split.validation,
        config=training.config,
        device=device,
        on_epoch=on_epoch,
        checkpoint=torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None,
        save=save,
    )
    _save(network.state_dict(), folder / "best.safetensors")
    last = torch.load(checkpoint, weights_only=True, map_location="cpu")["network"]
    _save(last, folder / "last.safetensors")
    checkpoint.unlink()
    return {
        "best": result.best.as_json(),
        "select_by": result.select_by,
        "history": [record.as_json() for record in result.history],
        "examples": [len(split.train[1]), len(split.validation[1])],
    }


def _evaluate(evaluation: Evaluation, *, root: Path, out: Path) -> dict[str, Any]:
    training = evaluation.training
    images, targets = data.load(training.data, root, out / "data").test
    device = torch.device(training.device)
    network = _trained(training, evaluation.epoch, out).to(device)
    attacked = dict.fromkeys(evaluation.attacks, network)
    if evaluation.surrogate is not None:
        attacked["black_box"] = _trained(evaluation.surrogate, "best", out).to(device)
    threat = Threat(epsilon=evaluation.epsilon)
    generator = torch.Generator(device).manual_seed(0)
    logits: dict[str, list[Tensor]] = {name: [] for name in ("clean", *attacked)}
    with torch.no_grad():
        for start in range(0, len(targets), BATCH):
            rows = slice(start, start + BATCH)
            x = (images[rows].to(device).float() / 255).contiguous(
                memory_format=torch.channels_last
            )
            logits["clean"].append(network(x))
            for name, target in attacked.items():
                found = build_attack(PAPER_ATTACKS[name], threat).perturb(
                    _margin_loss(target, targets[rows].to(device, torch.float32)),
                    x,
                    threat_model=ThreatModel(threat.norm, threat.epsilon),
                    generator=generator,
                )
                logits[name].append(network(found))
    truth = targets.numpy()
    return {
        "examples": len(truth),
        "positives": int(truth.sum()),
        "ap": {
            name: average_precision(torch.cat(parts).double().cpu().numpy(), truth)
            for name, parts in logits.items()
        },
    }


def _margin_loss(network: nn.Module, targets: Tensor) -> LossFn:
    return lambda x: negative_margin(network(x), targets)


def _trained(training: Training, epoch: str, out: Path) -> nn.Module:
    network = networks.build(training.network, seed=training.config.seed)
    _load(network, out / digest(training) / f"{epoch}.safetensors")
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _load(network: nn.Module, path: Path) -> None:
    network.load_state_dict(load_file(path))


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, path)
