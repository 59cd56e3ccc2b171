"""Attacks on a batch of images, as the audit runs them: `adap.attack(model, x, y, adap.APGD())`."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from adap.core.attacks.base import LossFn, perturbed
from adap.core.attacks.holding import attacking
from adap.core.attacks.registry import build_attack
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.drawing import drawing, mean_of
from adap.core.audit.network import as_input, generator_of, loss_of
from adap.core.config import attacks as config
from adap.core.config.attacks import TransferAttack
from adap.core.config.deployment import DRAWS
from adap.core.config.threats import EPSILON_PAPER, Norm, refuse_beyond_pixels
from adap.core.errors import ConfigError, ModelError
from adap.core.library.draws import refuse_other_draws, wandering
from adap.core.library.examples import as_float, columns_in, listed, pixels_of, targets_of
from adap.core.library.rankers import Model, Outputs, Ready, ready
from adap.core.library.refusals import sentence, threat_of

FOLLOW_GRADIENTS = ("fgsm", "pgd", "apgd")

_ATTACK: TypeAdapter[config.Attack] = TypeAdapter(config.Attack)


class Refusing:
    """A value of the configuration whose refusals are ConfigErrors."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {sentence(error)}") from error


class FGSM(Refusing, config.FGSMAttack):
    """One step of epsilon along the gradient (Goodfellow et al. 2015). Field: label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.FGSM().key
    'fgsm'
    """


class PGD(Refusing, config.PGDAttack):
    """Projected gradient ascent (Madry et al. 2018).

    Fields: steps (10), step_size (pixels; 2.5 * epsilon / steps), restarts (1), iterate ('best' or
    'last'), patience (steps without progress after which an image is left), label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.PGD(steps=40, restarts=2).steps
    40
    """


class APGD(Refusing, config.APGDAttack):
    """Auto-PGD, whose step size adapts (Croce & Hein 2020).

    Fields: steps (20), restarts (1), loss ('logit' or 'bce'), averaged (1; points beside the image
    over which a gradient is averaged), patience, label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.APGD(steps=50).restarts
    1
    >>> adap.APGD(steps=1)
    Traceback (most recent call last):
    adap.core.errors.ConfigError: APGD: steps: expected greater than or equal to 2, got 1
    """


class Square(Refusing, config.SquareAttack):
    """Random search that needs scores only (Andriushchenko et al. 2020).

    Fields: queries (500, forward passes of each image), patience, label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.Square(queries=100).queries
    100
    """


class Noise(Refusing, config.NoiseAttack):
    """A control, no attack: one draw of uniform noise of the same size. Field: label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.Noise().name
    'noise'
    """


class Transfer(Refusing, config.TransferAttack):
    """PGD on a surrogate model, whose images are shown to the attacked one.

    Fields: steps (20), step_size (pixels; 2.5 * epsilon / steps), iterate, label.

    Raises ConfigError for a field that is unknown or out of bounds. Source: `docs/attacks.md`.

    >>> adap.Transfer(steps=30).steps
    30
    """


def attack(
    model: Model,
    x: Any,
    y: Any,
    attack: Any = "apgd",
    *,
    epsilon: float | str = EPSILON_PAPER,
    norm: Norm = "linf",
    surrogate: nn.Module | None = None,
    positive: Any = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    loss: LossFn | None = None,
    generator: torch.Generator | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Any:
    """(B, C, H, W) images within epsilon of `x`, in [0, 1], that rank as badly as could be found.

    model: an `nn.Module`, run in eval mode and left in the mode it had; or a function from images
    to scores, for Square, Transfer and Noise only.  x: (B, C, H, W) floats in [0, 1], or uint8, as
    a tensor on any device (a tensor beside it comes back) or a NumPy array (an array comes back).
    y: (B,) in {0, 1}, or labels of which `positive` names those to rank first (for K outputs the
    columns).  attack: one of FGSM, PGD, APGD, Square, Noise, Transfer, or its bare name.
    epsilon: in pixels of [0, 1], a number or '8/255', in `norm` 'linf', 'l2' or
    'l1'; of 'l0' the number of pixels that may change, of 'patch' the side of a square of them.
    loss: what is ascended in place of the negative margin: (B, C, H, W) tensor to (B,) losses.
    generator: of every random choice; by default one made of `seed`, which gives equal bits.
    draws: of a model that draws random numbers as it scores: the search follows the mean over so
    many, as the audit's does, and costs so many passes, which a warning says. Others need one; of a
    `loss` of your own the averaging is yours.

    Raises ConfigError for options that cannot run (a gradient attack on a function, for one),
    DataError for images or labels that do not fit, ModelError for a model that does not.
    Source: `docs/attacks.md` names the paper of each.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 1))
    >>> x, y = torch.rand(8, 3, 4, 4), torch.tensor([0, 1] * 4)
    >>> x_adv = adap.attack(model, x, y, adap.APGD(steps=5), epsilon=8/255)
    >>> bool((x_adv - x).abs().max() <= 8/255 + 1e-6), tuple(x_adv.shape)
    (True, (8, 3, 4, 4))
    """
    if loss is not None and not callable(loss):
        raise ConfigError(f"expected loss= as a function of images, got {type(loss).__name__}")
    refuse_no_generator(generator, optional=True)
    refuse_other_draws(draws)
    settings, threat = attack_of(attack), threat_of(epsilon, norm)
    refuse_wide_step(settings, norm)
    pixels = as_float(pixels_of(x, "NCHW"))
    threat.refuse_beyond_images(*pixels.shape[2:])
    targets = targets_of(y, len(pixels), positive, both_sides=False)
    columns = columns_of(positive)
    if isinstance(settings, TransferAttack) and not isinstance(surrogate, nn.Module):
        raise ConfigError(
            "expected surrogate=, an nn.Module whose gradients the transfer attack follows, "
            f"got {type(surrogate).__name__}"
        )
    attacked: Model = model
    if isinstance(settings, TransferAttack) and surrogate is not None:
        attacked = surrogate  # the model itself is never asked
    with (
        ready(attacked, pixels, outputs=outputs, positive=columns, mean=mean, std=std) as made,
        attacking(made.scorer),
    ):
        refuse_blind(settings, gradients=made.gradients or loss is not None)
        if settings.name in FOLLOW_GRADIENTS and loss is None:
            refuse_no_gradients(made, pixels)
        if generator is None:
            generator = generator_of(seed, settings.name)
        scorer: nn.Module = made.scorer
        drawn: AbstractContextManager[None] = nullcontext()
        if loss is None and (said := wandering(made, pixels)) is not None:
            if draws > 1:
                said = (
                    f"{said} Each loss and each gradient of the search is the mean over {draws} "
                    f"draws, which costs {draws} times the passes."
                )
            warnings.warn(said, stacklevel=2)
            scorer = mean_of(made.scorer, draws)
            seeds = torch.randint(2**62, (1,), generator=generator, device=generator.device)
            drawn = drawing(made.device, "attack", int(seeds))
        with drawn:
            found = perturbed(
                build_attack(settings, threat),
                loss if loss is not None else loss_of(settings, scorer, targets, made.device),
                as_input(pixels, made.device),
                threat_model=ThreatModel(threat.norm, threat.epsilon),
                generator=generator,
            )
    return found.to(x.device) if isinstance(x, Tensor) else found.cpu().numpy()


def attack_of(attack: Any) -> config.Attack:
    """An attack by its settings or its bare name. Raises ConfigError."""
    if isinstance(attack, type):
        raise ConfigError(f"expected an attack such as {attack.__name__}(), got the class itself")
    try:
        return _ATTACK.validate_python(attack)
    except ValidationError as error:
        raise ConfigError(
            f"expected an attack such as adap.APGD(steps=50), or a bare name, got {attack!r:.80} "
            f"({sentence(error)})"
        ) from error


def refuse_blind(attack: config.Attack, *, gradients: bool) -> None:
    """Raise ConfigError for an attack that follows gradients on a function that gives none."""
    if not gradients and attack.name in FOLLOW_GRADIENTS:
        raise ConfigError(
            "expected an attack that needs no gradients for a function (adap.Square, adap.Noise, "
            f"adap.Transfer with a surrogate); got {attack.name}, which needs the nn.Module itself"
        )


def refuse_no_gradients(made: Ready, pixels: NDArray[np.float32]) -> None:
    """Raise ModelError for a network whose scores do not depend on its images for autograd."""
    x = as_input(pixels[:1], made.device).requires_grad_()
    with torch.enable_grad():  # as an attack does, whatever surrounds it
        followed = made.scorer(x).requires_grad
    if not followed:
        raise ModelError(
            "expected scores with gradients, got some that autograd cannot follow to the images: "
            "no torch.no_grad, detach, rounding or NumPy inside the model; adap.Square needs none"
        )


def refuse_no_generator(generator: Any, *, optional: bool = False) -> None:
    """Raise ConfigError for what is no source of random numbers."""
    if not isinstance(generator, torch.Generator) and not (optional and generator is None):
        raise ConfigError(
            "expected generator= as a torch.Generator, such as adap.attack_generator(seed=0, "
            f"epoch=1), got {type(generator).__name__}"
        )


def refuse_wide_step(attack: config.Attack, norm: Norm) -> None:
    """Raise ConfigError for a step beyond the pixels, as an audit's configuration does."""
    if isinstance(attack, config.PGDAttack | TransferAttack):
        try:
            refuse_beyond_pixels("step_size", attack.step_size, norm)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def columns_of(positive: Any) -> list[Any] | None:
    """The columns that labels of the positive side number; names stay names."""
    if positive is None:
        return None
    values = listed(positive)
    return columns_in(values) or values
