"""The attacks of an audit, and those of each preset."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from adap import faults
from adap.core.config.base import Config, name_only, or_name
from adap.core.config.threats import StepSize
from adap.core.rankings import OWN_NAMES


class _Attack(Config):
    """What every attack has: a name of its own in the report."""

    name: str
    label: str | None = Field(
        None,
        pattern=faults.LABEL,
        max_length=40,
        description="what the report calls it, by default its name; needed where one occurs twice",
    )

    @field_validator("label")
    @classmethod
    def _no_name_of_ours(cls, value: str | None) -> str | None:
        if value in OWN_NAMES:
            raise ValueError(
                f"expected a label other than {', '.join(OWN_NAMES)}, under which the report "
                f"keeps figures of its own; got {value}"
            )
        return value

    @property
    def key(self) -> str:
        """What the report and the scores call it."""
        return self.label or self.name


Patience = Annotated[
    int | None,
    Field(
        ge=1,
        le=10_000,
        description="an image whose loss has not risen for this many steps (queries for square) "
        "is dropped from the batch; by default none is",
    ),
]


class FGSMAttack(_Attack):
    """One step of epsilon along the gradient at the clean image (Goodfellow et al. 2015)."""

    name: Literal["fgsm"] = "fgsm"


class PGDAttack(_Attack):
    """Projected gradient ascent with a fixed step size (Madry et al. 2018)."""

    name: Literal["pgd"] = "pgd"
    steps: int = Field(10, ge=1, le=1000)
    step_size: StepSize | None = Field(None, description="by default 2.5 * epsilon / steps")
    restarts: int = Field(1, ge=1, le=20)
    iterate: Literal["best", "last"] = Field(
        "best", description="keep each image's best iterate, or the last one as the paper does"
    )
    patience: Patience = None


class APGDAttack(_Attack):
    """Auto-PGD: momentum, and a step size halved when progress stalls (Croce & Hein 2020)."""

    name: Literal["apgd"] = "apgd"
    steps: int = Field(20, ge=2, le=1000)
    restarts: int = Field(1, ge=1, le=20)
    loss: Literal["logit", "bce"] = Field(
        "logit",
        description="what is ascended: the negative margin, which never saturates, or "
        "binary cross-entropy",
    )
    averaged: int = Field(
        1,
        ge=1,
        le=1000,
        description="points within epsilon, drawn anew at each step, over which a gradient is "
        "averaged, so that terms too fast to follow cancel; 1: the gradient at the image itself",
    )
    patience: Patience = None


class SquareAttack(_Attack):
    """Random search without gradients: one square at a time (Andriushchenko et al. 2020), and in
    l1, l0 and patch a few places at a time (Sparse-RS, Croce et al. 2022)."""

    name: Literal["square"] = "square"
    queries: int = Field(
        500, ge=1, le=10_000, description="forward passes; each is a candidate for every image"
    )
    patience: Patience = None


class NoiseAttack(_Attack):
    """A control, no attack: one draw of uniform noise of the same size."""

    name: Literal["noise"] = "noise"


class TransferAttack(_Attack):
    """Black box: PGD on a surrogate model, its images shown to the audited model."""

    name: Literal["transfer"] = "transfer"
    steps: int = Field(20, ge=1, le=1000)
    step_size: StepSize | None = Field(None, description="by default 2.5 * epsilon / steps")
    iterate: Literal["best", "last"] = Field(
        "best", description="the iterate that is worst for the surrogate, or the last one"
    )


_AnyAttack = FGSMAttack | PGDAttack | APGDAttack | SquareAttack | NoiseAttack | TransferAttack
Attack = Annotated[
    _AnyAttack,
    Field(discriminator="name"),
    BeforeValidator(name_only, json_schema_input_type=or_name(_AnyAttack)),
]
Preset = Literal["quick", "standard", "paper"]
PRESETS: dict[Preset, list[Attack]] = {
    "quick": [PGDAttack(), APGDAttack(steps=10)],
    "standard": [
        PGDAttack(steps=20),
        APGDAttack(steps=50, restarts=2),
        SquareAttack(),
        TransferAttack(),
    ],
    # Tables 2-4 of the paper: last iterate, one restart, fixed step sizes at epsilon 8/255.
    "paper": [
        PGDAttack(steps=10, step_size=0.007, iterate="last"),
        APGDAttack(steps=10),
        TransferAttack(steps=20, step_size=0.003, iterate="last"),
    ],
}
RECOVERING: frozenset[Preset] = frozenset({"standard"})
"""Whose audits search on where the gradient hides something, by `recovery_attacks`."""


def recovery_attacks(height: int, width: int) -> list[Attack]:
    """What still searches where the gradient tells half the truth; Square grows with the image."""
    queries = min(max(2 * height * width, 1000), 10_000)
    return [
        APGDAttack(label="apgd_averaged", averaged=16),
        SquareAttack(label="square_long", queries=queries),
    ]
