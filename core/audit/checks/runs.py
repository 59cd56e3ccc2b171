"""The attacks and scorings behind the checks of an audit, run on a sample of its images."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.attacks.base import loss_and_gradient, perturbed
from adap.core.attacks.pgd import PGD
from adap.core.attacks.registry import build_attack
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.checks import parts
from adap.core.audit.checks.planned import HALVES, PATHS, Run
from adap.core.audit.drawing import drawing
from adap.core.audit.network import Pixels, as_input, generator_of, logits_of, loss_of
from adap.core.config.attacks import Attack
from adap.core.config.threats import LARGEST_LINF, Norm, Threat

Logits = NDArray[np.float64]


# Of `gradient_predicts`: random steps by a sign for each pixel, each taken forth and back: NEAR,
# where the deepest honest networks are straight, and COARSE, for pixels and scores that are
# rounded, which nearer steps hardly change. They begin FAR from the image, and paths of uniform
# noise go on twice as FAR, as a share of epsilon in its root mean square: on them lie the jumps
# that no near step meets.
NEAR = 1 / 8 / 255  # of a pixel; below it float32 rounds what happens away
COARSE = 1 / 255
FAR = 1 / 4
LONG = 3 / 255  # of a path, at least: shorter ones end where bytes are rounded to
TINY = 2**-20  # from one asking of the gradient to the next
PULLED = 1 / 2  # of the way to where the first step of a search would end, at least


def box_epsilon(threat: Threat, images: Pixels) -> float:
    _, height, width = images.shape[1:]
    covers: dict[Norm, float] = {
        "linf": LARGEST_LINF,
        "l2": float(np.sqrt(images[0].size)),
        "l1": float(images[0].size),
        "l0": float(height * width),
        "patch": float(min(height, width)),
    }
    return covers[threat.norm]


def sample_rows(targets: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """Rows of at most so many positives and so many negatives, spread evenly, rising."""
    rows = [np.flatnonzero(targets == y) for y in (0, 1)]
    spread = [
        of[np.linspace(0, len(of) - 1, min(images, len(of))).round().astype(int)] for of in rows
    ]
    return np.sort(np.concatenate(spread))


@runtime_checkable
class Rounds(Protocol):
    """A network that may round, with gradients straight through what does."""

    rounds: bool

    def without_rounding(self) -> AbstractContextManager[None]:
        """Inside it answers what it would if nothing in it rounded."""
        ...


@contextmanager
def without_rounding(network: nn.Module) -> Iterator[None]:
    """Inside every part that says how rounds nothing."""
    with ExitStack() as stack:
        for part in _rounding_in(network):
            stack.enter_context(part.without_rounding())
        yield


def _rounding_in(network: nn.Module) -> list[Rounds]:
    return [part for part in network.modules() if isinstance(part, Rounds) and part.rounds]


@dataclass(frozen=True)
class Slopes:
    """What the gradient of each of n images says, and what small steps and paths beside it do.

    zero, broken: (n,) whose gradient at the clean image is zero everywhere, and is not finite.
    predicted: (2, n) change of the logit by a NEAR and by a COARSE step, by the gradient.
    by_parts: (2, G, n) what of it each part of the image contributes.  places: these parts.
    coarser: how many times the NEAR step the COARSE one is.
    back, forth: (2, n) logits after that step against it and along it. Of a network that rounds and
    is followed straight through, they and all below are those of the network without its rounding:
    that is the function whose gradient the search follows.
    starts: (n,) logits where steps and paths begin.
    unseen: (n,) logits after the NEAR step of those pixels alone whose gradient is exactly zero
    here and on the paths, where another pixel is the largest of a maximum.
    promised: (P, n) change of the logit along a path, by gradients at random places of it, whose
    mean is the change itself of whatever has a gradient, however rough it is.
    ends: (P, n) logits at the ends of the paths.
    averaged: (n,) logits after one step of epsilon along the mean of the gradients on the paths.
    again: (n,) logits a TINY step beside the starts.  turned: (n,) how far the gradient there is
    from the one at the start, as a share of its length, 1 at most.
    rounded: (n,) its own logits where steps begin, of a network that rounds; None of others.
    """

    zero: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    predicted: NDArray[np.float64]
    by_parts: NDArray[np.float64]
    places: list[parts.Place]
    coarser: float
    back: NDArray[np.float64]
    forth: NDArray[np.float64]
    starts: Logits
    unseen: Logits
    promised: NDArray[np.float64]
    ends: NDArray[np.float64]
    averaged: Logits
    again: Logits
    turned: NDArray[np.float64]
    rounded: Logits | None = None


@dataclass
class Bench:
    """The sampled images on their way through a network, batch by batch."""

    images: Pixels
    targets: NDArray[np.int64]
    seed: int
    batch_size: int
    device: torch.device
    on_progress: Callable[[int], None]
    done: int = field(default=0, init=False)

    def score(
        self, network: nn.Module, images: Pixels | None = None, *, draws: str = "scores"
    ) -> Logits:
        """(n,) logits, in batches of the audit's size.

        draws: scorings of the same one meet the same random numbers, where the network draws any.
        """
        images = self.images if images is None else images
        logits = np.empty(len(images))
        for rows in self._batches():
            with self._drawing(rows, draws):
                logits[rows] = logits_of(network, self._input(images[rows]))
            self._tell(len(logits[rows]))
        return logits

    def score_shuffled(self, network: nn.Module) -> Logits:
        """(n,) logits, each image among others than in `score`, in batches of the same sizes."""
        order = np.random.default_rng(self.seed).permutation(len(self.images))
        logits = np.empty(len(order))
        logits[order] = self.score(network, self.images[order], draws="shuffled")
        return logits

    def score_alone(self, network: nn.Module, *, draws: str) -> Logits | None:
        """(n,) logits of batches of one; None for a network that refuses them."""
        logits = np.empty(len(self.images))
        for i in range(len(self.images)):
            try:
                with self._drawing(slice(i, i + 1), draws):
                    logits[i] = logits_of(network, self._input(self.images[i : i + 1]))[0]
            except (RuntimeError, ValueError):  # as BatchNorm in train mode does, over one value
                self._tell(len(self.images) - i)
                return None
            self._tell(1)
        return logits

    def gradients(self, network: nn.Module, attack: Attack, threat: Threat) -> Slopes:
        """The gradient at each clean image, and whether the one beside it foretells small steps."""
        ball = ThreatModel(threat.norm, threat.epsilon)
        far = FAR * ball.reach
        if threat.norm == "l2":
            far /= np.sqrt(self.images[0].size)
        if threat.norm == "l1":
            far /= self.images[0].size
        far = max(far, NEAR)
        by_sign = (NEAR, max(min(COARSE, far / FAR), NEAR))
        # of uniform noise
        widest, longest = np.sqrt(3) * max(far, COARSE), np.sqrt(3) * max(2 * far, LONG)
        n, paths = len(self.images), PATHS if threat.epsilon > 0 else 0
        zero, broken = np.empty((2, n), dtype=bool)
        predicted, back, forth = np.empty((3, len(by_sign) if paths else 0, n))
        places = parts.places(*self.images.shape[1:])
        by_parts = np.empty((len(predicted), len(places), n))
        promised, ends = np.zeros((2, paths, n))
        starts, unseen, after, again, turned = np.empty((5, n))
        rounded = np.empty(n) if _rounding_in(network) else None
        for rows in self._batches():
            clean = self._input(self.images[rows])
            _, ascended = loss_and_gradient(
                loss_of(attack, network, self.targets[rows], self.device), clean
            )
            flat = ascended.flatten(1)
            zero[rows] = (flat == 0).all(dim=1).cpu().numpy()
            broken[rows] = (~flat.isfinite()).any(dim=1).cpu().numpy()
            self._tell(len(clean))
            if not paths:
                continue
            generator = generator_of(self.seed, "checks", rows.start, "gradients")

            def uniform(
                shape: torch.Size = clean.shape, generator: torch.Generator = generator
            ) -> Tensor:
                return torch.rand(shape, generator=generator).to(self.device)

            def noise(uniform: Callable[[], Tensor] = uniform) -> Tensor:
                return 2 * uniform() - 1

            each = torch.Size([len(clean), 1, 1, 1])
            # Where a search goes, beside the image and on the way of its first step by turns: a
            # gradient may be whole on stored pixels, between them, or on smooth images alone.
            # Nothing leaves [0, 1]: what a network makes of such pixels is nobody's business.
            first = clean + (PULLED + (1 - PULLED) * uniform(each)) * (
                ball.furthest(clean, ascended) - clean
            )
            first = first + widest / 4 * noise()  # flat parts would be ties of a maximum
            by_turns = torch.arange(len(clean), device=self.device).view(-1, 1, 1, 1) % 2 == 0
            x = torch.where(by_turns, clean + widest * noise(), first)
            x = _inside(x, max(by_sign))
            with self._drawing(rows, "slopes"):
                logits, gradient = loss_and_gradient(network, x)
            starts[rows] = logits.double().cpu().numpy()
            signs = [noise().sign() for _ in by_sign]
            for step, d in enumerate(
                size * sign for size, sign in zip(by_sign, signs, strict=True)
            ):
                predicted[step, rows] = _inner(gradient, d)
                of_parts = parts.summed((gradient * d).double(), x, gradient)
                by_parts[step, :, rows] = of_parts.cpu().numpy()
                for found, moved in ((back, x - d), (forth, x + d)):
                    with self._drawing(rows, "slopes"), without_rounding(network):
                        found[step, rows] = logits_of(network, moved)
            if rounded is not None:  # what it would be without lies between two near steps
                rounded[rows] = starts[rows]
                starts[rows] = (back[0, rows] + forth[0, rows]) / 2
            total, blind = torch.zeros_like(x), gradient == 0
            for path in range(paths):
                d = _inside(x + longest * noise(), 0) - x
                for half in range(HALVES):
                    at = x + (half + uniform(each)) / HALVES * d
                    with self._drawing(rows, "slopes"), without_rounding(network):
                        _, there = loss_and_gradient(network, at)
                    promised[path, rows] += _inner(there, d) / HALVES
                    total += there.nan_to_num(0, 0, 0)
                    blind &= there == 0
                with self._drawing(rows, "slopes"), without_rounding(network):
                    ends[path, rows] = logits_of(network, x + d)
            with self._drawing(rows, "slopes"), without_rounding(network):
                unseen[rows] = logits_of(network, x + NEAR * signs[0] * blind)
            down = torch.tensor(1 - 2 * self.targets[rows]).to(x).view(-1, 1, 1, 1)
            with self._drawing(rows, "scores"):
                after[rows] = logits_of(network, ball.furthest(clean, down * total))
            with self._drawing(rows, "slopes again"):
                logits, other = loss_and_gradient(network, x + TINY * noise())
            again[rows], turned[rows] = logits.double().cpu().numpy(), _turned(gradient, other)
            self._tell((1 + 2 * len(by_sign) + 1 + (HALVES + 1) * paths + 2) * len(x))
        return Slopes(
            zero=zero,
            broken=broken,
            predicted=predicted,
            by_parts=by_parts,
            places=places,
            coarser=by_sign[1] / by_sign[0],
            back=back,
            forth=forth,
            starts=starts,
            unseen=unseen,
            promised=promised,
            ends=ends,
            averaged=after,
            again=again,
            turned=turned,
            rounded=rounded,
        )

    def helped(self, stored: NDArray[np.uint8], drops: Logits) -> Tensor:
        """(2, C, H, W): what changed in the negatives and in the positives, in the mean.

        stored: (n, C, H, W) attacked images as bytes.  drops: (n,) how far each margin fell, by
        which an image counts, so that one whose search saw nothing does not.
        """
        clean = self.images / (255 if self.images.dtype == np.uint8 else 1)
        changes = (stored / 255 - clean) * np.maximum(drops, 0)[:, None, None, None]
        means = np.stack([changes[self.targets == y].mean(axis=0) for y in (0, 1)])
        return torch.tensor(means, dtype=torch.float32, device=self.device)

    def attack(
        self, scorer: nn.Module, run: Run, *, network: nn.Module, helped: Tensor | None = None
    ) -> tuple[Logits, NDArray[np.uint8]]:
        """(n,) logits of the images that the run finds on `network`, and those images as bytes.

        helped: see there; of a run that borrows its start.
        """
        attack = build_attack(run.attack, run.threat)
        ball = ThreatModel(run.threat.norm, run.threat.epsilon)
        if run.uniform_start and isinstance(attack, PGD):
            attack = replace(attack, start="uniform")
        logits, stored = np.empty(len(self.images)), np.empty(self.images.shape, np.uint8)
        for rows in self._batches():
            clean = self._input(self.images[rows])
            if helped is not None and isinstance(attack, PGD):
                sides = torch.tensor(self.targets[rows], device=self.device)
                attack = replace(attack, start=ball.furthest(clean, helped[sides]))
            with self._drawing(rows, run.start):
                x_adv = perturbed(
                    attack,
                    loss_of(run.attack, network, self.targets[rows], self.device),
                    clean,
                    threat_model=ball,
                    generator=generator_of(self.seed, "checks", rows.start, run.start),
                )
            with self._drawing(rows, "scores"):
                logits[rows] = logits_of(scorer, x_adv)
            stored[rows] = (255 * x_adv.nan_to_num()).round().byte().cpu().numpy()
            self._tell(run.passes * len(x_adv))
        return logits, stored

    def _batches(self) -> list[slice]:
        starts = range(0, len(self.images), self.batch_size)
        return [slice(start, start + self.batch_size) for start in starts]

    def _drawing(self, rows: slice, draws: str) -> AbstractContextManager[None]:
        return drawing(self.device, self.seed, "checks", rows.start, draws)

    def _input(self, images: Pixels) -> Tensor:
        return as_input(images, self.device)

    def _tell(self, passes: int) -> None:
        self.done += passes
        self.on_progress(self.done)


def _inner(gradient: Tensor, d: Tensor) -> NDArray[np.float64]:
    """(B,) sums over each image."""
    product: NDArray[np.float64] = (gradient * d).double().flatten(1).sum(1).cpu().numpy()
    return product


def _turned(gradient: Tensor, other: Tensor) -> NDArray[np.float64]:
    """(B,) shares of its length by which another gradient is away from it, 1 at most."""
    length, apart = (of.double().flatten(1).norm(dim=1) for of in (gradient, other - gradient))
    share = (apart / length).nan_to_num(0, 1, 1).clamp(max=1)
    turned: NDArray[np.float64] = share.cpu().numpy()
    return turned


def _inside(x: Tensor, margin: float) -> Tensor:
    """Pixels within [margin, 1 - margin]; those beyond are mirrored, as clamping makes ties."""
    mirrored = (1 - 2 * margin - ((x - margin).abs() - (1 - 2 * margin)).abs()) + margin
    return mirrored.clamp(margin, 1 - margin)
