"""What an attack costs beyond the passes through the network that it cannot do without.

    python -m benchmarks.attacks --architecture resnet18 --batch 64

PGD-10 with the best iterate needs 10 forward and backward passes to the input and 1 forward pass.
That bare cost, in eager mode with frozen parameters, is 1.00; everything is given as a multiple of
it, measured in the same run: one batch each in turn, again and again, and the median ratio.

torchattacks and foolbox are measured beside it where they are installed, on two logits (0, z),
since they cannot attack one: pip install --no-deps torchattacks foolbox eagerpy GitPython requests.
They return the last iterate and look at no loss after it, so their bare cost is one forward less.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.attacks.apgd import APGD
from core.attacks.base import attacking, loss_and_gradient
from core.attacks.pgd import PGD
from core.attacks.threat_model import ThreatModel
from models import architectures

STEPS, EPSILON = 10, 8 / 255
STEP_SIZE = 2.5 * EPSILON / STEPS
LINF = ThreatModel("linf", EPSILON)


class TwoLogits(nn.Module):
    """(0, z): the two-class model whose cross-entropy is that of the logit z."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.network(x)
        return torch.cat([torch.zeros_like(z), z], dim=1)


def ours(network: nn.Module, x: Tensor, targets: Tensor) -> dict[str, Callable[[], object]]:
    """The bare cost and our attacks; the first is the unit."""
    signs = 1.0 - 2 * targets

    def loss_fn(x: Tensor) -> Tensor:
        loss: Tensor = signs * network(x).flatten()
        return loss

    def bare() -> None:
        for _ in range(STEPS):
            loss_and_gradient(loss_fn, x)
        with torch.no_grad():
            loss_fn(x)

    def run(attack: PGD | APGD) -> Callable[[], Tensor]:
        generator = torch.Generator().manual_seed(0)
        return lambda: attack.perturb(loss_fn, x, threat_model=LINF, generator=generator)

    return {
        "bare passes": bare,
        "PGD-10": run(PGD(STEPS, STEP_SIZE)),
        "PGD-10, last iterate": run(PGD(STEPS, STEP_SIZE, iterate="last")),
        "APGD-10": run(APGD(STEPS)),
    }


def torchattacks_pgd(network: nn.Module, x: Tensor, targets: Tensor) -> Callable[[], object]:
    import torchattacks

    attack = torchattacks.PGD(TwoLogits(network).eval(), EPSILON, STEP_SIZE, STEPS)
    return lambda: attack(x, targets)


def foolbox_pgd(network: nn.Module, x: Tensor, targets: Tensor) -> Callable[[], object]:
    import foolbox

    model = foolbox.PyTorchModel(TwoLogits(network).eval(), bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)
    return lambda: attack(model, x, targets, epsilons=EPSILON)


PEERS = {"torchattacks PGD-10": torchattacks_pgd, "foolbox PGD-10": foolbox_pgd}


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="small_cnn", choices=architectures.BUILDERS)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, generator = torch.device(options.device), torch.Generator().manual_seed(0)
    network = architectures.build(options.architecture, channels=3, seed=0).to(device)
    x = torch.rand(options.batch, 3, options.size, options.size, generator=generator).to(device)
    targets = (torch.arange(options.batch) % 10 == 0).long().to(device)

    with attacking(network):
        runs = ours(network, x, targets)
        for name, peer in PEERS.items():
            try:
                runs[name] = peer(network, x, targets)
            except ImportError as error:
                print(f"{name} left out: {error}")
        for function in runs.values():
            function()  # warm-up
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, function in runs.items():
                taken[name].append(seconds(function, device))

    print(
        f"\n{options.architecture}, {options.batch} images of {options.size}x{options.size}, "
        f"{options.threads} threads, {device}, torch {torch.__version__}, {platform.machine()}\n"
    )
    print(f"{'':24}{'x bare':>10}{'images/s':>12}")
    unit = taken["bare passes"]
    for name, times in taken.items():
        ratio = statistics.median(t / bare for t, bare in zip(times, unit, strict=True))
        print(f"{name:24}{ratio:10.3f}{options.batch / statistics.median(times):12.0f}")


if __name__ == "__main__":
    main()
