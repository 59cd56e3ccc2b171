"""What happens to images without an attacker: kinds and severities."""

from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from adap.core.config.base import Config

CorruptionKind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "resize",
]
CORRUPTION_KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(Config):
    """One kind of corruption at one severity."""

    kind: CorruptionKind
    severity: int = Field(ge=SEVERITIES[0], le=SEVERITIES[-1])

    @property
    def key(self) -> str:
        """What the scores call it."""
        return f"{self.kind}.{self.severity}"


class Corruptions(Config):
    """What happens to images without an attacker: each kind at each severity."""

    kinds: list[CorruptionKind] = Field(
        list(CORRUPTION_KINDS),
        min_length=1,
        max_length=len(CORRUPTION_KINDS),
        description="by default all, as published by Hendrycks & Dietterich 2019 but for frost, "
        "which needs photographs; resize is ours",
    )
    severities: list[Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])]] = Field(
        list(SEVERITIES), min_length=1, max_length=len(SEVERITIES), description="rising, 1 to 5"
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Corruptions":
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"expected each kind once, got {', '.join(self.kinds)}")
        if any(a >= b for a, b in pairwise(self.severities)):
            raise ValueError(f"expected rising severities, got {self.severities}")
        return self

    def each(self) -> list[Corruption]:
        """Kind by kind, the severities rising."""
        return [
            Corruption(kind=kind, severity=severity)
            for kind in self.kinds
            for severity in self.severities
        ]
