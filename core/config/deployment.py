"""What a deployment does to an image before the model sees it, step by step."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from adap.core.config.base import Config
from adap.core.errors import ConfigError

ImageSize = tuple[int, int, int]  # channels, height, width


class ResizeStep(Config):
    """Every image becomes one of this size, whatever that does to its proportions."""

    name: Literal["resize"] = "resize"
    height: int = Field(ge=1, le=2048, description="pixels")
    width: int = Field(ge=1, le=2048, description="pixels")
    filter: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    antialias: bool = Field(
        True, description="as Pillow and torchvision do; OpenCV and Keras do not by default"
    )

    @property
    def words(self) -> str:
        """What it does, for a sentence."""
        rough = "" if self.antialias or self.filter == "nearest" else ", without antialiasing"
        return f"resize to {self.width}x{self.height} ({self.filter}{rough})"

    def after(self, image: ImageSize) -> ImageSize:
        """What comes of an image of this size."""
        return image[0], self.height, self.width


class CropStep(Config):
    """The middle of the image."""

    name: Literal["crop"] = "crop"
    height: int = Field(ge=1, le=2048, description="pixels")
    width: int = Field(ge=1, le=2048, description="pixels")

    @property
    def words(self) -> str:
        """What it does, for a sentence."""
        return f"crop to the middle {self.width}x{self.height}"

    def after(self, image: ImageSize) -> ImageSize:
        """What comes of an image of this size. Raises ConfigError for one that is too small."""
        channels, height, width = image
        if self.height > height or self.width > width:
            raise ConfigError(
                f"expected images of at least {self.width}x{self.height} pixels to crop in the "
                f"pipeline, got {width}x{height} (width x height)"
            )
        return channels, self.height, self.width


class JPEGStep(Config):
    """Into a JPEG file and out of it."""

    name: Literal["jpeg"] = "jpeg"
    quality: int = Field(75, ge=1, le=100, description="libjpeg's")
    least_quality: int | None = Field(
        None,
        ge=1,
        le=100,
        description="where the quality varies: drawn anew each time, evenly from this to `quality`",
    )

    @model_validator(mode="after")
    def _rising(self) -> "JPEGStep":
        if self.least_quality is not None and self.least_quality >= self.quality:
            raise ValueError(
                f"expected a least_quality below the quality, {self.quality}, got "
                f"{self.least_quality}"
            )
        return self

    @property
    def words(self) -> str:
        """What it does, for a sentence."""
        if self.least_quality is None:
            return f"JPEG of quality {self.quality}"
        return f"JPEG of any quality from {self.least_quality} to {self.quality}"

    def after(self, image: ImageSize) -> ImageSize:
        """The size itself. Raises ConfigError for channels that no JPEG has."""
        if image[0] not in (1, 3):
            raise ConfigError(
                f"expected images of 1 or 3 channels to write as JPEG, got {image[0]}"
            )
        return image


class QuantiseStep(Config):
    """Each value becomes the nearest of so many levels, evenly spaced from 0 to 1."""

    name: Literal["quantise"] = "quantise"
    levels: int = Field(256, ge=2, le=65_536)

    @property
    def words(self) -> str:
        """What it does, for a sentence."""
        return f"rounding to {self.levels} levels"

    def after(self, image: ImageSize) -> ImageSize:
        """The size itself."""
        return image


_SIZED_STEP = re.compile(r"(resize|crop):(\d{1,5})x(\d{1,5})")
_JPEG_STEP = re.compile(r"jpeg(?::(?:(\d{1,3})-)?(\d{1,3}))?")
_QUANTISE_STEP = re.compile(r"quantise(?::(\d{1,6}))?")


def _step_in_text(value: Any) -> Any:
    """The step that a text as `jpeg:60-90` stands for."""
    if not isinstance(value, str):
        return value
    if found := _SIZED_STEP.fullmatch(value):
        return {"name": found[1], "width": int(found[2]), "height": int(found[3])}
    if found := _JPEG_STEP.fullmatch(value):
        numbers = {"least_quality": found[1], "quality": found[2]}
    elif found := _QUANTISE_STEP.fullmatch(value):
        numbers = {"levels": found[1]}
    else:
        raise ValueError(
            "expected jpeg:80, jpeg:60-90, resize:WIDTHxHEIGHT, crop:WIDTHxHEIGHT or "
            f"quantise:256, got {value[:100]!r}"
        )
    given = {name: int(number) for name, number in numbers.items() if number is not None}
    return {"name": value.partition(":")[0], **given}


_AnyStep = ResizeStep | CropStep | JPEGStep | QuantiseStep
PipelineStep = Annotated[
    _AnyStep,
    Field(discriminator="name"),
    BeforeValidator(
        _step_in_text, json_schema_input_type=Annotated[_AnyStep, Field(discriminator="name")]
    ),
]


def pipeline_in_words(pipeline: Sequence[PipelineStep]) -> str:
    """The steps in order, and how scores come about where a step draws random numbers."""
    steps = ", then ".join(step.words for step in pipeline)
    drawn = pipeline_draws(pipeline)
    return steps if drawn == 1 else f"{steps}; scores and gradients are means over {drawn} draws"


def pipeline_draws(pipeline: Sequence[PipelineStep]) -> int:
    """Behind each score: more than one where a step draws random numbers."""
    varies = [s for s in pipeline if isinstance(s, JPEGStep) and s.least_quality is not None]
    return DRAWS if varies else 1


DRAWS = 16
"""Behind each score and each gradient of what draws random numbers, unless others are asked for."""
