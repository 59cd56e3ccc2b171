"""An audit: its threat, attacks, checks, thresholds and what it is of."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from adap.core import thresholds
from adap.core.config.attacks import (
    PRESETS,
    RECOVERING,
    APGDAttack,
    Attack,
    PGDAttack,
    Preset,
    TransferAttack,
    recovery_attacks,
)
from adap.core.config.base import Config, Identifier, Name, Split
from adap.core.config.corruptions import Corruptions
from adap.core.config.data import AnyTask
from adap.core.config.deployment import ImageSize, PipelineStep, pipeline_draws
from adap.core.config.threats import (
    BALL_NORMS,
    BOUNDED_NORMS,
    LARGEST_LINF,
    Norm,
    PixelSize,
    Threat,
    refuse_beyond_pixels,
)
from adap.core.errors import ConfigError
from adap.core.statement import Statement

Checks = Literal["off", "quick", "full"]
SearchPrecision = Literal["float32", "bfloat16"]
# Multiples of the threat's epsilon at which the epsilon curve is measured.
PRESET_MULTIPLES: dict[Preset, list[float]] = {
    "quick": [],
    "standard": [0.25, 0.5, 1.0, 1.5, 2.0],
    "paper": [],
}
PRESET_CHECKS: dict[Preset, Checks] = {"quick": "quick", "standard": "full", "paper": "quick"}
CURVE_ATTACK = APGDAttack(steps=10)
"""The attack behind every point of the epsilon curve."""
SMALLEST_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")  # in which smallest changes are searched


class SmallestChanges(Config):
    """How little moves a positive out of the first k of the clean ranking, all others as they are.

    Searched by FMN (Pintor et al. 2021), in the norm of the threat and whatever its epsilon.
    """

    k: int | None = Field(
        None, ge=1, description="how many come first; by default as many as there are positives"
    )
    steps: int = Field(100, ge=1, le=1000, description="gradients for each positive searched for")
    positives: int = Field(
        256,
        ge=1,
        le=10_000,
        description="searched for at most, spread evenly by rank over those among the first k",
    )

    def refuse_beyond_examples(self, examples: int) -> None:
        """Raise ConfigError for a k that leaves nobody outside."""
        if self.k is not None and self.k >= examples:
            raise ConfigError(
                "expected smallest_changes with k below the number of images that are audited, "
                f"{examples:,}, as nobody is outside of all of them, got {self.k:,}"
            )


class UniversalSearch(Config):
    """One perturbation that all images of a task share, within the threat: found, not proven.

    Searched by the ascent of Shafahi et al. (2020).
    """

    rounds: int = Field(
        20, ge=1, le=1000, description="steps, each a gradient of every image it is searched on"
    )
    images: int = Field(
        1000,
        ge=4,
        le=100_000,
        description="on which it is searched at most, half of them of each side where there are as "
        "many, spread evenly; it is measured on all",
    )


class Surrogate(Config):
    """The attacker's own model, used by the transfer attack: one that is here, or a new one."""

    model_id: Identifier | None = Field(None, description="an uploaded or trained model")
    train_on: Identifier | None = Field(
        None, description="a data set on which the service trains a surrogate with cross-entropy"
    )
    architecture: str | None = Field(
        None, max_length=64, description="of the model to train; by default the audited model's"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "Surrogate":
        if (self.model_id is None) == (self.train_on is None):
            raise ValueError("expected either model_id or train_on")
        if self.architecture is not None and self.train_on is None:
            raise ValueError("expected an architecture only beside train_on")
        return self


class OperatingPoint(Config):
    """Where the figures of operation are read off."""

    k: int | None = Field(
        None,
        ge=1,
        le=2**31,
        description="for precision@k; by default 100, or all positives if fewer",
    )
    precision: float = Field(0.9, gt=0, le=1, description="at which recall is given")
    fpr: float = Field(
        0.01, gt=0, lt=1, description="share of the negatives that may raise an alarm"
    )
    prevalence: float = Field(
        0.01, gt=0, lt=1, description="share of positives to which AP is carried over"
    )


def _readable(text: str) -> str:
    try:
        thresholds.parse(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


Threshold = Annotated[str, Field(max_length=thresholds.MAX_CHARACTERS), AfterValidator(_readable)]
OtherPositive = Annotated[
    bool,
    Field(
        description="read the single logit of a model for other classes than it was trained, or "
        "declared, to rank first; such a task is refused otherwise",
        exclude_if=lambda meant: not meant,
    ),
]


class AuditConfig(Config):
    """How a model is attacked and judged, apart from the model and the data."""

    task: AnyTask | None = Field(
        None,
        description="may be left out when the model was trained here: its own task is used. "
        '{"each": true} makes one task of each class, for models with an output for each',
    )
    other_positive: OtherPositive = False
    split: Split | None = Field(
        None, description="by default the test split where there is one, else every example"
    )
    sample: int | None = Field(
        None,
        ge=4,
        le=2**31,
        description="audit so many examples at random, by `seed`, each side in its share; by "
        "default, and where there are no more, all of them",
    )
    threat: Threat = Threat()
    preset: Preset = Field("standard", description="attacks to run when `attacks` is left out")
    attacks: list[Attack] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="attacks, or their bare names; one that occurs twice needs a label",
    )
    surrogate: Surrogate | None = Field(None, description="needed by the transfer attack")
    corruptions: Corruptions | None = Field(
        None,
        description="common corruptions to measure beside the attacks, {} for all of them; by "
        "default none. They are no part of the threat, so they never enter its worst case",
    )
    smallest_changes: SmallestChanges | None = Field(
        None,
        description="how little moves positives out of the first k, {} for the defaults; by "
        "default not asked. Found, not proven, and no part of the worst case",
    )
    universal: UniversalSearch | None = Field(
        None,
        description="one perturbation for all images within the threat, {} for the defaults; by "
        "default not asked. Found, not proven, and no part of the worst case",
    )
    pipeline: list[PipelineStep] = Field(
        [],
        max_length=8,
        description="what the deployment does to an image before the model sees it, in order: "
        "images are attacked before it, and clean and attacked ones are scored behind it. A step "
        "may be a text: jpeg:80, jpeg:60-90, resize:WIDTHxHEIGHT, crop:WIDTHxHEIGHT, quantise:256",
        examples=[[{"name": "jpeg", "quality": 80}, {"name": "resize", "height": 32, "width": 32}]],
    )
    epsilons: list[PixelSize] | None = Field(
        None,
        max_length=20,
        description="of the epsilon curve; by default five multiples of the threat's for the "
        "attacks of `standard`, otherwise none",
    )
    budgets: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        [1, 2, 5, 10, 20, 50, 100],
        max_length=20,
        description="of the budget curve: how many images the attacker may change",
    )
    operating: OperatingPoint = OperatingPoint()
    certify: Literal["off", "auto", "ibp", "crown_ibp", "crown"] = Field(
        "auto",
        description="bounds behind the certified floor; auto takes crown_ibp where a few images "
        "show that it proves anything, and says so where it does not",
    )
    checks: Checks | None = Field(
        None,
        description="how thoroughly the audit itself is checked; by default full for the attacks "
        "of `standard`, otherwise quick",
    )
    thresholds: list[Threshold] = Field(
        [],
        max_length=50,
        description="what the model must keep: `<figure> <operator> <number>`, for example "
        "`worst_case_ap >= 0.4`, or `trust >= caution`",
        examples=[["worst_case_ap >= 0.4", "clean_ap >= 0.9"]],
    )
    batch_size: int = Field(256, ge=1, le=4096)
    shard_size: int = Field(
        1024, ge=1, le=100_000, description="examples a worker attacks between two saves"
    )
    search_precision: SearchPrecision = Field(
        "float32",
        description="of the passes by which attacks search; every score that is reported is "
        "float32. bfloat16 is faster on a GPU that computes in it, and may find a little less",
    )
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("epsilons", "budgets")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and any(a >= b for a, b in pairwise(value)):
            raise ValueError(f"expected rising values, got {value}")
        return value

    @model_validator(mode="after")
    def _within_pixels(self) -> "AuditConfig":
        for epsilon in self.epsilons or []:
            refuse_beyond_pixels("epsilon of the curve", epsilon, self.threat.norm)
        for attack in self.attacks or []:
            if isinstance(attack, PGDAttack | TransferAttack):
                refuse_beyond_pixels("step_size", attack.step_size, self.threat.norm)
        return self

    @model_validator(mode="after")
    def _attacks_can_run(self) -> "AuditConfig":
        if self.attacks is None:
            return self
        keys = [attack.key for attack in self.attacks]
        if len(set(keys)) < len(keys):
            raise ValueError(f"expected each attack once, or with labels that differ, got {keys}")
        if "transfer" in [attack.name for attack in self.attacks] and self.surrogate is None:
            raise ValueError(
                "the transfer attack needs `surrogate`: the model on which the attacker "
                "computes the perturbations"
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_known(self) -> "AuditConfig":
        if self.threat.norm not in BOUNDED_NORMS and self.certify not in ("auto", "off"):
            raise ValueError(
                f"expected certify auto or off with norm {self.threat.norm}, as bounds are known "
                f"for {' and '.join(BOUNDED_NORMS)} alone, got {self.certify}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_bounded_behind_a_pipeline(self) -> "AuditConfig":
        if self.pipeline and self.certify not in ("auto", "off"):
            raise ValueError(
                "expected certify auto or off beside a pipeline, as no bounds are known of what "
                f"it does, got {self.certify}"
            )
        return self

    @model_validator(mode="after")
    def _smallest_changes_can_be_searched(self) -> "AuditConfig":
        if self.smallest_changes is None:
            return self
        if self.threat.norm not in SMALLEST_NORMS:
            raise ValueError(
                f"expected smallest_changes with norm {', '.join(SMALLEST_NORMS)}, got "
                f"{self.threat.norm}"
            )
        if pipeline_draws(self.pipeline) > 1:
            raise ValueError(
                "expected smallest_changes without a step of the pipeline that draws random "
                "numbers, as which side of the first k an image is on would change from one "
                "scoring to the next"
            )
        return self

    @model_validator(mode="after")
    def _universal_can_be_searched(self) -> "AuditConfig":
        if self.universal is not None and self.threat.norm not in BALL_NORMS:
            raise ValueError(
                f"expected universal with norm {' or '.join(BALL_NORMS)}, got {self.threat.norm}"
            )
        return self

    def behind_pipeline(self, image: ImageSize) -> ImageSize:
        """What the model is given of images of this size.

        Raises ConfigError for a step that cannot be done to them.
        """
        for step in self.pipeline:
            image = step.after(image)
        return image

    def sampled(self, examples: int) -> int | None:
        """How many of so many examples are looked at; None where all of them are."""
        return self.sample if self.sample is not None and self.sample < examples else None

    def resolved_attacks(self) -> list[Attack]:
        """The attacks to run; a preset leaves transfer out where no surrogate is named."""
        if self.attacks is not None:
            return self.attacks
        return [
            attack
            for attack in PRESETS[self.preset]
            if attack.name != "transfer" or self.surrogate is not None
        ]

    def recovery_attacks(self, height: int, width: int) -> list[Attack]:
        """What is run besides where the gradient of images of this size hides something."""
        searched = self.attacks is None and self.preset in RECOVERING
        if not searched or self.threat.epsilon == 0:
            return []
        return recovery_attacks(height, width)

    def resolved_epsilons(self) -> list[float]:
        """Where the epsilon curve is measured, rising; nowhere if no pixel may change."""
        if self.epsilons is not None:
            return self.epsilons
        if self.threat.epsilon == 0 or self.attacks is not None:
            return []
        multiples = PRESET_MULTIPLES[self.preset]
        rising = sorted({self.threat.scaled(multiple).epsilon for multiple in multiples})
        return [e for e in rising if self.threat.norm != "linf" or e <= LARGEST_LINF]

    def resolved_checks(self) -> Checks:
        """How thoroughly the audit itself is checked."""
        if self.checks is not None:
            return self.checks
        return PRESET_CHECKS[self.preset] if self.attacks is None else "quick"


class StatedAudit(AuditConfig):
    """An audit, and what its makers state about it: no figure and no hash hangs on that."""

    name: Name | None = Field(None, description="of the audit, to find it by")
    statement: Statement | None = Field(
        None, description="carried into the report as it is; see docs/sign-off.md"
    )


class AuditRequest(StatedAudit):
    """`POST /v1/audits` by ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "mdl_01k9x2v7m3c5r8t1w4z6y0b2d4",
                    "dataset_id": "ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
                    "threat": {"norm": "linf", "epsilon": 0.0314},
                    "attacks": ["pgd", {"name": "apgd", "steps": 50}],
                }
            ]
        }
    )

    model_id: Identifier
    dataset_id: Identifier
