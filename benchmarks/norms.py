"""AP left in L1, and the smallest changes, by ours and by foolbox at an equal number of gradients.

    python -m benchmarks.norms        # a minute or two; writes benchmarks/results/norms.md

Networks of scikit-learn's digits as in `benchmarks.strength`, and its counting of gradients.
foolbox (pip install --no-deps foolbox eagerpy, and GitPython, gitdb, smmap, requests, which it
imports) has no attack by so many pixels or by a patch at a fixed size; those are held to brute
force in tests/core/test_geometry.py.
"""

import argparse
import importlib.metadata
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from adap.core.attacks.apgd import APGD
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD
from adap.core.attacks.smallest import distance, smallest_change
from adap.core.attacks.threat_model import ThreatModel
from benchmarks.strength import (
    Run,
    TwoLogits,
    digits,
    ours,
    outcome,
    quiet,
    table,
    trained,
    unattacked,
)

RESULTS = Path(__file__).parent / "results" / "norms.md"
METHODS = ("ce", "pgd")
EPSILON = 2.0  # L1
BUDGET = 20
STEPS = 40


def l1_runs(threat_model: ThreatModel) -> dict[str, Run]:
    import foolbox

    epsilon = threat_model.epsilon

    def peer(attack: object) -> Run:
        def run(network: TwoLogits, x: Tensor, targets: Tensor) -> list[Tensor]:
            model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
            return [attack(model, x, targets, epsilons=epsilon)[1]]  # type: ignore[operator]

        return run

    found = foolbox.attacks
    step = 2.5 * epsilon / BUDGET
    return {
        "clean": unattacked,
        "ours PGD": ours(threat_model, PGD(BUDGET, step)),
        "ours APGD": ours(threat_model, APGD(BUDGET)),
        "foolbox L1 PGD": peer(
            found.L1ProjectedGradientDescentAttack(abs_stepsize=step, steps=BUDGET)
        ),
        "foolbox sparse L1 descent": peer(
            found.SparseL1DescentAttack(abs_stepsize=step, steps=BUDGET)
        ),
    }


def smallest(network: TwoLogits, x: Tensor, targets: Tensor, norm: str) -> dict[str, Tensor]:
    """(n,) sizes for the positives above logit 0: what takes them below it."""
    import foolbox

    with torch.no_grad():
        rows = (targets == 1) & (network(x)[:, 1] > 0)
    x = x[rows]
    with attacking(network):
        _, sizes = smallest_change(lambda x: network(x)[:, 1], x, norm=norm, steps=STEPS)
        kind = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[norm]
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, kind)(steps=STEPS)
        labels = torch.ones(len(x), dtype=torch.long)
        x_adv = attack(model, x, labels, epsilons=None)[0]
        across = network(x_adv)[:, 1] < 0
    far = distance(x_adv, x, norm)
    return {"ours": sizes, "foolbox": torch.where(across, far, torch.inf)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    quiet()
    started = time.perf_counter()
    problem = digits(quick=False)
    networks = {method: trained(problem, method) for method in METHODS}
    x, targets = problem.test[0].float() / 255, problem.test[1]
    threat_model = ThreatModel("l1", EPSILON)
    rows: dict[str, list[str]] = {}
    for name, run in l1_runs(threat_model).items():
        found = [outcome(run, network, x, targets) for network in networks.values()]
        rows[name] = [*(f"{it.ap:.3f}" for it in found), f"{found[0].gradients:.0f}"]
    changes: dict[str, list[str]] = {}
    for norm in ("linf", "l2", "l1"):
        both = [smallest(TwoLogits(it).eval(), x, targets, norm) for it in networks.values()]
        for name in ("ours", "foolbox"):
            changes[f"{norm}, {name} FMN"] = [
                f"{float(it[name].median()):.4f}, {int(it[name].isinf().sum())} of "
                f"{len(it[name])} not found"
                for it in both
            ]
    report = "\n".join(
        [
            "# L1 and smallest changes beside foolbox\n",
            f"Python {platform.python_version()}, torch {torch.__version__}, foolbox "
            f"{importlib.metadata.version('foolbox')}; `python -m benchmarks.norms`. Networks of "
            f"scikit-learn's digits, {len(x)} test images.\n",
            f"## AP left, L1 epsilon {EPSILON:g}, {BUDGET} gradients\n",
            table("AP under", [*METHODS, "gradients an image"], rows),
            f"\n## Median of the smallest changes of positives, {STEPS} gradients\n",
            table("smallest change", list(METHODS), changes),
        ]
    )
    print(report, f"\n{time.perf_counter() - started:.0f} s")
    RESULTS.write_text(report + "\n")


if __name__ == "__main__":
    main()
