"""A surrogate distilled on a black box's answers: `adap.distil`, for the transfer attack.

Papernot, McDaniel, Goodfellow, Jha, Celik & Swami, "Practical black-box attacks against machine
learning", Asia CCS 2017: a network learns the answers to an attacker's own images, then those to
images beside them, moved along its own gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.config.threats import EPSILON_PAPER
from adap.core.errors import DataError, ModelError
from adap.core.library.attacks import columns_of
from adap.core.library.examples import Layout, as_float, pixels_of
from adap.core.library.rankers import TRIED, Outputs, ready
from adap.core.library.refusals import refuse_unless_whole, threat_of

FEWEST = 64  # queries, and half as many images: nothing is learnt and held out of fewer
HELD_OUT = 10  # one in so many of the answers to the attacker's own images
BATCH = 64
ASKED_AT_ONCE = 256
LEARNING_RATE = 1e-3


class Distilled(nn.Module):
    """A network that learnt a black box's scores: (B, C, H, W) floats in [0, 1] to (B,) scores.

    queries: images that the black box was shown, all told.  correlation: of the scores with its
    answers to `held_out` images that nothing was learnt from.

    `adap.audit(..., surrogate=...)` attacks by it. Raises what its network does.
    Source: `adap.distil`, which makes it.

    >>> found = adap.distil(lambda x: x.mean((1, 2, 3)), torch.rand(64, 1, 8, 8), queries=80)
    >>> found(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, network: nn.Module, *, centre: float, scale: float) -> None:
        super().__init__()
        self.network = network
        self.centre, self.scale = centre, scale
        self.queries = 0
        self.held_out = 0
        self.correlation = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """(B,) scores in the black box's own unit."""
        scores: Tensor = self.network(images).reshape(len(images))
        return self.centre + self.scale * scores

    def decided(self) -> list[str]:
        """What a reader of a report must know."""
        return [
            f"The surrogate was distilled from a black box by {self.queries:,} queries; on "
            f"{self.held_out:,} further images of the attacker's its scores correlate "
            f"{self.correlation:.3f} with the answers: the transfer attack sees no more than that."
        ]


def distil(
    model: Callable[[Any], Any],
    images: Any,
    *,
    queries: int,
    network: nn.Module | None = None,
    positive: Any = None,
    outputs: Outputs = "auto",
    layout: Layout | None = None,
    epsilon: float | str = EPSILON_PAPER,
    epochs: int = 30,
    seed: int = 0,
) -> Distilled:
    """A surrogate of a black box, learnt from its answers within a budget of queries.

    model: a function of images as of `adap.audit`, or an `adap.HTTPRanker`, which keeps its pace,
    and what it was told: called again with the same seed, nothing is asked twice.
    images: (N, C, H, W) or (N, H, W, C), the attacker's own, at least 32: without labels, and
    better none that are audited afterwards.
    queries: how many images the model may be shown, at least 64, the few included on which it is
    found out what it answers. Beyond the images the rest are asked for beside them, in rounds: each
    moved by `epsilon` up or down the gradient of what was learnt so far.
    network: what learns, (B, C, H, W) to (B,) or (B, 1), trained in place and on the CPU; by
    default a small convolutional one.  epochs: over all answers, after each round.
    positive, outputs, layout: as of `adap.audit`.

    Raises ConfigError for options that cannot be, DataError for images, ModelError for a network in
    place of a function, and for answers that cannot be ranked or are all alike.
    Source: Papernot et al. 2017; learnt are scores instead of labels, by their squared error, so a
    coin says whether a step goes up or down.

    >>> found = adap.distil(lambda x: x.mean((1, 2, 3)), torch.rand(64, 1, 8, 8), queries=80)
    >>> found.queries
    80
    """
    refuse_unless_whole("queries", queries, least=FEWEST)
    refuse_unless_whole("epochs", epochs, least=1)
    step = threat_of(epsilon, "linf").epsilon
    if isinstance(model, nn.Module):
        raise ModelError(
            f"expected a function that answers scores, got {type(model).__name__}, an nn.Module: "
            "audits follow its own gradients, and a lambda around it hides them"
        )
    pixels = torch.from_numpy(as_float(pixels_of(images, layout)))
    if len(pixels) < FEWEST // 2:
        raise DataError(f"expected at least {FEWEST // 2} images to ask about, got {len(pixels)}")
    if network is not None:
        _refuse_unfit(network, pixels[:2])
    generator = torch.Generator().manual_seed(seed)
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    box = _Counting(model)
    columns = columns_of(positive)
    with ready(box, pixels[:TRIED].numpy(), outputs=outputs, positive=columns) as made:
        x = pixels[: queries - box.count]
        answers = _asked(made.scorer, x)
        own, kept = x[::HELD_OUT], answers[::HELD_OUT]
        learnt = torch.arange(len(x)) % HELD_OUT != 0
        x, answers = x[learnt], answers[learnt]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made_of = _small(pixels.shape[1]) if network is None else network
            scale = float(answers.std())
            if not scale > 0:
                raise ModelError(f"expected answers that differ, got {answers[0]:g} for each image")
            found = Distilled(made_of, centre=float(answers.mean()), scale=scale)
            _learn(found, x, answers, epochs=epochs)
            while (left := queries - box.count) > 0:
                beside = _beside(found, x, most=left, step=step, generator=generator)
                answers = torch.cat([answers, _asked(made.scorer, beside)])
                x = torch.cat([x, beside])
                _learn(found, x, answers, epochs=epochs)
    found.queries, found.held_out = box.count, len(own)
    with torch.no_grad():
        scores = torch.stack([_asked(found, own), kept])
    found.correlation = float(torch.corrcoef(scores)[0, 1].nan_to_num(nan=0.0))
    return found.eval()


def _refuse_unfit(network: nn.Module, tried: Tensor) -> None:
    """Raise ModelError for what cannot learn scores of such images, before anything is asked."""
    if not isinstance(network, nn.Module):
        raise ModelError(f"expected network= as an nn.Module, got {type(network).__name__}")
    elsewhere = {str(w.device) for w in network.parameters() if w.device.type != "cpu"}
    if elsewhere:
        raise ModelError(f"expected network= on the CPU, got weights on {', '.join(elsewhere)}")
    try:
        with attacking(network), torch.no_grad():
            shape = tuple(network(tried).shape)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"expected network= that takes images of {tuple(tried.shape[1:])}, got {error}"
        ) from error
    if shape not in ((len(tried),), (len(tried), 1)):
        raise ModelError(
            f"expected network= with one score an image, (B,) or (B, 1), got {shape} of "
            f"{len(tried)} images"
        )


class _Counting:
    """The function, and how many images it was shown."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.count = 0

    def __call__(self, images: Any) -> Any:
        self.count += len(images)
        return self.function(images)


@torch.no_grad()
def _asked(scorer: nn.Module, x: Tensor) -> Tensor:
    """(B,) scores as float32. Raises ModelError for those that are no numbers."""
    found = torch.cat([scorer(part) for part in torch.split(x, ASKED_AT_ONCE)]).float()
    broken = int((~found.isfinite()).sum())
    if broken:
        raise ModelError(f"expected a number for each image, got {broken} that are not finite")
    return found


def _learn(found: Distilled, x: Tensor, answers: Tensor, *, epochs: int) -> None:
    found.train()
    optimiser = torch.optim.Adam(found.parameters(), lr=LEARNING_RATE)
    goals = (answers - found.centre) / found.scale
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimiser.zero_grad()
            scores = (found(x[rows]) - found.centre) / found.scale
            F.mse_loss(scores, goals[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    found.eval()


def _beside(
    found: Distilled, x: Tensor, *, most: int, step: float, generator: torch.Generator
) -> Tensor:
    """At most so many of these images, each moved along the gradient or against it."""
    chosen = x[torch.randperm(len(x), generator=generator)[:most]]
    coins = torch.randint(0, 2, (len(chosen), 1, 1, 1), generator=generator) * 2 - 1
    with attacking(found):
        _, gradient = loss_and_gradient(found, chosen)
    return (chosen + step * coins * gradient.sign()).clamp(0, 1)


def _small(channels: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(8)),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(64 * 16, 1),
    )
