"""Average precision left by our attacks and by the field's, at an equal price.

    python -m benchmarks.strength            # minutes to train, then the tables
    python -m benchmarks.strength --quick    # two networks, few steps: does it run?

Networks are trained by `adap.core.training.loop.fit`, clean and robust ones, on scikit-learn's
digits and, where its images are found, on CIFAR-10. Every attack then gets the same test images,
the same threat model and the same number of gradient evaluations an image, counted inside the
network, and the table shows the AP that it leaves. It is written to benchmarks/results/strength.md.

The peers cannot attack one logit, so each is shown the two logits (0, z), whose cross-entropy is
that of z. To be generous with them, an image on which a peer did harm to itself, or which it gave
back unchanged, counts with its clean margin, as in our own worst case.

The peers: pip install --no-deps torchattacks pyautoattack foolbox adversarial-robustness-toolbox,
and what those import (eagerpy, GitPython, gitdb, smmap, tqdm, pandas, requests, pytz, tzdata).
"""

import argparse
import copy
import datetime
import importlib.metadata
import io
import logging
import multiprocessing
import platform
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from adap.core.attacks.apgd import APGD
from adap.core.attacks.base import Attack
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.square import Square
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config.threats import Norm
from adap.core.config.training import TrainingAttack, TrainingConfig
from adap.core.figures.ranking import average_precision
from adap.core.figures.worst_case import worst_case
from adap.core.objectives.registry import build_objective
from adap.core.scores import Scores
from adap.core.training.loop import fit
from adap.models import architectures

RESULTS = Path(__file__).parent / "results" / "strength.md"
CACHE = Path(tempfile.gettempdir()) / "adap-strength"
METHODS = ("ce", "pgd", "trades", "adap_lpn")
NORMS: tuple[Norm, ...] = ("linf", "l2")
PEERS_NAME = {"linf": "Linf", "l2": "L2"}  # in torchattacks and AutoAttack
NORM_TITLE = {"linf": "L-inf", "l2": "L2"}
BATCH = 256
SEEDS = 5


# --- data and networks ----------------------------------------------------------------------------

Examples = tuple[Tensor, Tensor]  # (N, C, H, W) uint8 and (N,) in {0, 1}


@dataclass(frozen=True)
class Problem:
    """A data set with its threat models, and how a network is trained on it."""

    title: str
    train: Examples
    validation: Examples
    test: Examples
    epsilons: dict[Norm, float]
    epochs: int
    budgets: tuple[int, ...]  # gradient evaluations an image
    queries: int  # of the gradient-free attacks
    methods: Sequence[str]


def digits(*, quick: bool) -> Problem:
    """8x8 grey; an eight against the rest."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16 * 255).round().to(torch.uint8)
    targets = torch.from_numpy((labels == 8).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)))
    parts = [(pixels[rows], targets[rows]) for rows in order[:1497].split([900, 297, 300])]
    return Problem(
        "scikit-learn's digits (8x8 grey), 8 against the rest",
        *parts,
        epsilons={"linf": 0.1, "l2": 0.5},
        epochs=3 if quick else 20,
        budgets=(10,) if quick else (20, 100),
        queries=100 if quick else 500,
        methods=METHODS[:2] if quick else METHODS,
    )


def cifar10(folder: Path) -> Problem:
    """RGB, halved to 16x16 so that all this takes minutes; automobile against the rest."""
    train, test = folder / "cifar10-train.zip", folder / "cifar10-test.zip"
    return Problem(
        "CIFAR-10 (from JPEGs of quality 75, halved to 16x16), automobile against the rest",
        read_zip(train, positives=800, negatives=1600),
        read_zip(train, positives=60, negatives=240, skip=1600),
        read_zip(test, positives=50, negatives=150),
        epsilons={"linf": 8 / 255, "l2": 0.25},
        epochs=5,
        budgets=(20,),
        queries=200,
        methods=METHODS,
    )


def read_zip(
    path: Path, *, positives: int, negatives: int, skip: int = 0, reduced: int = 2
) -> Examples:
    """Images of a zip of class folders, the negatives evenly over the other classes.

    reduced: how many pixels become one, each way.
    """
    with zipfile.ZipFile(path) as archive:
        names: dict[str, list[str]] = {}
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                names.setdefault(name.split("/")[0], []).append(name)
        chosen = names.pop("automobile")[skip : skip + positives]
        in_turn = [name for group in zip(*names.values(), strict=False) for name in group]
        chosen += in_turn[skip * len(names) :][:negatives]
        pixels = [
            np.asarray(Image.open(io.BytesIO(archive.read(name))).reduce(reduced))
            for name in chosen
        ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return images, (torch.arange(len(images)) < positives).long()


def trained(problem: Problem, method: str) -> nn.Module:
    """(B, C, H, W) images to (B,) logits; from the cache where it was trained before."""
    config = TrainingConfig(
        method={"name": method},  # type: ignore[arg-type]
        epochs=problem.epochs,
        attack=TrainingAttack(
            epsilon=problem.epsilons["linf"], step_size=problem.epsilons["linf"] / 3
        ),
    )
    images, targets = problem.train
    network = nn.Sequential(
        architectures.build(config.architecture, channels=images.shape[1], seed=0), nn.Flatten(0)
    )
    cached = CACHE / f"{config.sha256()[:16]}-{len(images)}x{images[0].numel()}.safetensors"
    if cached.exists():
        network.load_state_dict(load_file(cached))
        return network.eval()
    fit(
        network,
        build_objective(config.method, examples=len(images)),
        images=images,
        targets=targets,
        validation=problem.validation,
        config=config,
        device=torch.device("cpu"),
        on_epoch=lambda record: print(f"  {method} {record.epoch}/{record.epochs}", flush=True),
    )
    CACHE.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, cached)
    return network.eval()


class HidesGradients(nn.Module):
    """The network behind rounded pixels, through which no gradient passes."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x * self.levels).round() / self.levels)
        return logits


class TwoLogits(nn.Module):
    """(0, z), as the peers need it; counts the images whose gradient was taken."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.network(x)
        if z.requires_grad:
            z.register_hook(self._count)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


# --- attacks: (network, images, targets) to attacked images, one or several of each ---------------

Run = Callable[[TwoLogits, Tensor, Tensor], Sequence[Tensor]]


def ours(threat_model: ThreatModel, *attacks: Attack, seed: int = 0) -> Run:
    """Our attacks side by side; the worst of them counts, image by image."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        signs = 1 - 2 * targets
        generator = torch.Generator().manual_seed(seed)
        return [
            attack.perturb(
                lambda x_adv: signs * network(x_adv)[:, 1],
                x,
                threat_model=threat_model,
                generator=generator,
            )
            for attack in attacks
        ]

    return run


def our_attacks(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    def pgd(steps: int) -> PGD:
        return PGD(steps, 2.5 * threat_model.epsilon / steps)

    half = budget // 2
    return {
        "ours PGD": ours(threat_model, pgd(budget)),
        "ours APGD": ours(threat_model, APGD(budget)),
        "ours PGD + APGD": ours(threat_model, pgd(half), APGD(half)),
    }


def torchattacks_runs(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    import torchattacks

    epsilon, norm = threat_model.epsilon, PEERS_NAME[threat_model.norm]

    def pgd(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        attack = torchattacks.PGD if threat_model.norm == "linf" else torchattacks.PGDL2
        return [attack(network, epsilon, 2.5 * epsilon / budget, budget)(x, targets)]

    def apgd(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        # It evaluates one gradient more than it has steps.
        return [torchattacks.APGD(network, norm, epsilon, budget - 1)(x, targets)]

    def apgd_best(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        attack = torchattacks.APGD(network, norm, epsilon, budget - 1)
        return [attack.perturb(x, targets, best_loss=True)[1]]

    return {
        "torchattacks PGD": pgd,
        "torchattacks APGD": apgd,
        "torchattacks APGD, best loss": apgd_best,
    }


def art_runs(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    epsilon, norm = threat_model.epsilon, {"linf": np.inf, "l2": 2}[threat_model.norm]

    def run(attack: type, **options: object) -> Run:
        def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
            classifier = PyTorchClassifier(
                network,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=2,
                clip_values=(0.0, 1.0),
                device_type="cpu",
            )
            common = {"norm": norm, "eps": epsilon, "max_iter": budget, "batch_size": BATCH}
            generate = attack(classifier, verbose=False, **common, **options).generate
            found = generate(x.numpy(), np.eye(2, dtype=np.float32)[targets])
            return [torch.from_numpy(found)]

        return run

    return {
        "ART PGD": run(ProjectedGradientDescent, eps_step=2.5 * epsilon / budget),
        "ART Auto-PGD": run(
            AutoProjectedGradientDescent,
            eps_step=2 * epsilon,
            nb_random_init=1,
            loss_type="cross_entropy",
        ),
    }


def foolbox_runs(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    import foolbox

    epsilon = threat_model.epsilon
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat_model.norm]

    def pgd(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = kind(abs_stepsize=2.5 * epsilon / budget, steps=budget)
        return [attack(model, x, targets, epsilons=epsilon)[1]]

    return {"foolbox PGD": pgd}


def autoattack_runs(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    def apgd(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        suite = autoattack(network, threat_model, ["apgd-ce"], steps=budget - 1)
        return [suite.run_standard_evaluation(x, targets, batch_size=BATCH)[0]]

    def suite(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        # Half of the gradients each; a step of FAB takes one for each of the two logits.
        half = budget // 2
        suite = autoattack(network, threat_model, ["apgd-ce", "fab"], steps=half - 1)
        suite.fab.n_restarts, suite.fab.n_iter = 1, half // 2
        return [suite.run_standard_evaluation(x, targets, batch_size=BATCH)[0]]

    return {
        "AutoAttack APGD-CE": apgd,
        "AutoAttack APGD-CE, best loss": autoattack_best(threat_model, budget),
        "AutoAttack APGD-CE + FAB": suite,
    }


def autoattack_best(threat_model: ThreatModel, budget: int, *, seed: int = 0) -> Run:
    """Its APGD called past its public interface."""

    def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        suite = autoattack(network, threat_model, ["apgd-ce"], steps=budget - 1)
        torch.manual_seed(seed)  # called like this, it sets none itself
        return [suite.apgd.perturb(x, targets, best_loss=True)]

    return run


def autoattack(network: nn.Module, threat_model: ThreatModel, attacks: list[str], *, steps: int):  # type: ignore[no-untyped-def]
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack

    norm, epsilon = PEERS_NAME[threat_model.norm], threat_model.epsilon
    suite = AutoAttack(
        network, attacks=attacks, version="custom", norm=norm, eps=epsilon, seed=0, device="cpu"
    )
    suite.verbose = False
    # Anew, not changed: its checkpoints are set where it is made, for 100 steps.
    suite.apgd = APGDAttack(
        network, n_iter=steps, norm=norm, eps=epsilon, seed=0, device="cpu", logger=suite.logger
    )
    return suite


def attacks_of(threat_model: ThreatModel, budget: int) -> dict[str, Run]:
    """All rows of a table."""
    return {
        **our_attacks(threat_model, budget),
        **torchattacks_runs(threat_model, budget),
        **art_runs(threat_model, budget),
        **foolbox_runs(threat_model, budget),
        **autoattack_runs(threat_model, budget),
    }


def square_runs(threat_model: ThreatModel, queries: int) -> dict[str, Run]:
    """The gradient-free ones, each with so many queries an image."""
    import torchattacks
    from pyautoattack.square import SquareAttack

    epsilon, norm = threat_model.epsilon, PEERS_NAME[threat_model.norm]

    def torchattacks_square(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        return [torchattacks.Square(network, norm, epsilon, queries)(x, targets)]

    def autoattack_square(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
        options = {"norm": norm, "eps": epsilon, "n_queries": queries, "device": "cpu"}
        return [SquareAttack(network, **options).perturb(x, targets)]

    return {
        "ours APGD (100 gradients)": ours(threat_model, APGD(100)),
        "ours Square": ours(threat_model, Square(queries)),
        "torchattacks Square": torchattacks_square,
        "AutoAttack Square": autoattack_square,
    }


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one network."""

    ap: float
    margin: float  # mean over the images
    gradients: float  # evaluated, mean over the images


def outcome(run: Run, network: nn.Module, x: Tensor, targets: Tensor) -> Outcome:
    """Each image has its lowest margin over the clean image and what came back."""
    # A copy: torchattacks and ART switch modes, and would leave a network in train mode behind.
    counting = TwoLogits(copy.deepcopy(network)).eval()
    torch.manual_seed(0)  # torchattacks, foolbox
    np.random.seed(0)  # ART
    with attacking(counting):
        parts = [run(counting, x[rows], targets[rows]) for rows in batches(x)]
    returned = [torch.cat(images) for images in zip(*parts, strict=True)]
    marks = targets.numpy()
    attacked = {str(i): logits_of(network, images) for i, images in enumerate(returned)}
    worst, _ = worst_case(Scores([], marks, logits_of(network, x), attacked))
    ap = average_precision(worst, marks)
    if len(np.unique(worst)) == len(worst):  # no ties: scikit-learn means the same
        assert abs(ap - average_precision_score(marks, worst)) < 1e-9
    margin = float(((2 * marks - 1) * worst).mean())
    return Outcome(ap, margin, counting.gradients / len(x))


def unattacked(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:  # noqa: ARG001
    return [x]


def batches(x: Tensor) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, len(x), BATCH)]


@torch.no_grad()
def logits_of(network: nn.Module, x: Tensor) -> NDArray[np.float64]:
    logits = torch.cat([network(x[rows]) for rows in batches(x)])
    return logits.double().numpy()


# --- the report -----------------------------------------------------------------------------------


def table(corner: str, columns: Sequence[str], rows: dict[str, Sequence[str]]) -> str:
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items()]
    return "\n".join(lines)


def compare_gradients(problem: Problem, norm: Norm, budget: int) -> str:
    """AP and margin under every attack with so many gradients, and how far above ours."""
    x, targets = problem.test[0].float() / 255, problem.test[1]
    networks = [trained(problem, method) for method in problem.methods]
    threat_model = ThreatModel(norm, problem.epsilons[norm])
    runs = {"clean": unattacked, **attacks_of(threat_model, budget)}
    outcomes = {
        name: [outcome(run, network, x, targets) for network in networks]
        for name, run in runs.items()
    }
    aps = {name: np.array([one.ap for one in found]) for name, found in outcomes.items()}
    rows = {}
    for name, found in outcomes.items():
        margin = np.mean([one.margin for one in found])
        above = [(aps[name] - aps[our]).min() for our in ("ours APGD", "ours PGD + APGD")]
        rows[name] = [
            *(f"{ap:.3f}" for ap in aps[name]),
            f"{aps[name].mean():.4f}",
            f"{margin:.4f}",
            *(f"{least:+.3f}" for least in above),
            f"{np.mean([one.gradients for one in found]):.1f}",
        ]
    columns = [*problem.methods, "mean AP", "mean margin"]
    columns += ["least above our APGD", "above our PGD + APGD", "gradients an image"]
    title = f"### {NORM_TITLE[norm]}, epsilon {threat_model.epsilon:.4g}, {budget} gradients\n\n"
    return title + table("AP under", columns, rows) + "\n"


def compare_seeds(problem: Problem, norm: Norm) -> str:
    """Our APGD and AutoAttack's at its best, at the smallest budget, over several random starts."""
    x, targets = problem.test[0].float() / 255, problem.test[1]
    networks = [trained(problem, method) for method in problem.methods]
    threat_model, budget = ThreatModel(norm, problem.epsilons[norm]), problem.budgets[0]
    seeds = range(1, 1 + SEEDS)
    runs = {
        "ours APGD": [ours(threat_model, APGD(budget), seed=seed) for seed in seeds],
        "AutoAttack APGD-CE, best loss": [
            autoattack_best(threat_model, budget, seed=seed) for seed in seeds
        ],
    }
    rows = {}
    for name, repeated in runs.items():
        found = [[outcome(run, network, x, targets) for network in networks] for run in repeated]
        aps = np.array([[one.ap for one in of_seed] for of_seed in found])  # (seeds, networks)
        rows[name] = [
            *(f"{ap:.4f}" for ap in aps.mean(axis=0)),
            f"{aps.mean():.4f}",
            f"{aps.mean(axis=1).std(ddof=1) / len(aps) ** 0.5:.4f}",
            f"{np.mean([one.margin for of_seed in found for one in of_seed]):.4f}",
        ]
    columns = [*problem.methods, "mean AP", "its standard error", "mean margin"]
    title = f"### The two APGDs, {NORM_TITLE[norm]}, {budget} gradients, {SEEDS} random starts\n\n"
    return title + table("AP under", columns, rows) + "\n"


def compare_squares(problem: Problem, norm: Norm) -> str:
    """AP under attacks without gradients, on networks that are honest and one that hides them."""
    x, targets = problem.test[0].float() / 255, problem.test[1]
    ce, robust = trained(problem, "ce"), trained(problem, problem.methods[-1])
    networks = {"ce": ce, problem.methods[-1]: robust, "ce, rounded pixels": HidesGradients(ce, 16)}
    threat_model = ThreatModel(norm, problem.epsilons[norm])
    runs = {"clean": unattacked, **square_runs(threat_model, problem.queries)}
    rows = {
        name: [f"{outcome(run, network, x, targets).ap:.3f}" for network in networks.values()]
        for name, run in runs.items()
    }
    title = f"### {NORM_TITLE[norm]}, epsilon {threat_model.epsilon:.4g}, "
    return title + f"{problem.queries} queries\n\n" + table("AP under", list(networks), rows) + "\n"


def without_three_logits() -> str:
    """What AutoAttack's standard suite says to two logits."""
    problem = digits(quick=True)
    network = TwoLogits(trained(problem, "ce")).eval()
    suite = autoattack(network, ThreatModel("linf", 0.1), ["apgd-ce"], steps=5)
    suite.attacks_to_run = ["apgd-t", "fab-t"]
    x, targets = problem.test[0][:20].float() / 255, problem.test[1][:20]
    try:
        with attacking(network):
            suite.run_standard_evaluation(x, targets)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return f"`{type(error).__name__}: {error}`"
    return "no error"


HOW = """\
Rows are attacks, columns are networks (small_cnn, by the method they were trained with). A figure
is the AP that is left; lower means a stronger attack. Every attack had the same test images, threat
model and number of gradient evaluations an image, which were counted inside the network (last
column; fewer where an attack left images alone). PGD's steps are 2.5 epsilon over their number, in
every library; other settings are the library's own. "Best loss" calls APGD past its public
interface, where it goes on after the label has flipped and returns its best iterate. Each image
counts with its lowest margin over the clean image and what the attack returned, the peers' too;
ties rank negatives first, and where there are none scikit-learn gives the same AP. "PGD + APGD" is
our worst case over both, with half of the gradients each. "Least above": the smallest difference,
over the networks, of this AP to ours; below zero, the attack found a lower AP somewhere. The mean
margin has less chance in it than AP, which a single image can move by 0.001.

"Best loss" is the same algorithm as our APGD, so in L-inf only random numbers and the rounding of
its checkpoints set them apart; the tables over several random starts show by how much. In L2 ours
projects onto the ball and [0, 1] at once, which leaves more of epsilon to use.
"""


def section(problem: Problem, pool: Executor) -> str:
    """All tables of a data set, computed side by side."""
    gradients = [
        pool.submit(compare_gradients, problem, norm, budget)
        for budget in problem.budgets
        for norm in NORMS
    ]
    seeds = [pool.submit(compare_seeds, problem, norm) for norm in NORMS]
    squares = [pool.submit(compare_squares, problem, norm) for norm in NORMS]
    count, positives = len(problem.test[1]), int(problem.test[1].sum())
    parts = [f"## {problem.title}", f"{count} test images, {positives} positive.\n"]
    parts += [table.result() for table in [*gradients, *seeds]]
    parts += ["### Without gradients\n", WITHOUT_GRADIENTS, *(table.result() for table in squares)]
    return "\n".join(parts)


WITHOUT_GRADIENTS = """\
The last network is the first behind pixels rounded to 17 grey levels, which pass no gradient.
torchattacks and AutoAttack leave an image alone as soon as its label has flipped.
"""


def quiet() -> None:
    """The peers warn of two logits, of training mode and of old interfaces."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="CIFAR-10 as zips"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="digits only, small; writes nothing")
    options = parser.parse_args()
    quiet()
    started = time.perf_counter()
    problems = [digits(quick=options.quick)]
    if not options.quick and (options.data / "cifar10-train.zip").exists():
        problems.append(cifar10(options.data))
    for problem in problems:
        for method in problem.methods:
            trained(problem, method)

    peers = ("torchattacks", "adversarial-robustness-toolbox", "foolbox", "pyautoattack")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", *peers)]
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.processes, mp_context=spawn, initializer=quiet) as pool:
        sections = [section(problem, pool) for problem in problems]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    report = "\n".join(
        [
            "# How low AP falls, at an equal number of gradients\n",
            f"{today}, Python {platform.python_version()}, {', '.join(versions)};",
            "`python -m benchmarks.strength`.\n",
            HOW,
            f"AutoAttack's standard suite needs more than two classes ({without_three_logits()});",
            "the parts of it that two can be shown to are here.\n",
            *sections,
        ]
    )
    print(report, f"\n{time.perf_counter() - started:.0f} s")
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(report)


if __name__ == "__main__":
    main()
