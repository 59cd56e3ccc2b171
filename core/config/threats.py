"""How far an attacker may change an image, and numbers of pixels as people write them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from adap import faults
from adap.core.config.base import Config
from adap.core.errors import ConfigError
from adap.core.fractions import fraction

BallNorm = Literal["linf", "l2"]
Norm = Literal["linf", "l2", "l1", "l0", "patch"]
COUNTED_NORMS: tuple[Norm, ...] = ("l0", "patch")  # whose epsilon is a number of pixels
BALL_NORMS: tuple[Norm, ...] = ("linf", "l2")  # in which every pixel may move at once
BOUNDED_NORMS = BALL_NORMS  # for which bounds are known
EPSILON_PAPER = 8 / 255
LARGEST_LINF = 1.0  # every pixel is within it of every other
LARGE_LINF = 0.25  # a quarter of the way from black to white: hardly ever what was meant

FractionText = Annotated[str, Field(pattern=faults.FRACTION, max_length=40)]
AnySize = Annotated[float, Field(ge=0, le=1000)]
Positive = Annotated[float, Field(gt=0, le=1000)]
PixelSize = Annotated[
    AnySize, BeforeValidator(fraction, json_schema_input_type=AnySize | FractionText)
]
StepSize = Annotated[
    Positive, BeforeValidator(fraction, json_schema_input_type=Positive | FractionText)
]


def refuse_beyond_pixels(what: str, value: float | None, norm: Norm) -> None:
    """Raise ValueError for a size that no image can use or that is in another norm's unit: an L-inf
    one above 1, as 8 for 8/255; a part of a pixel where pixels are counted.

    what: how the size is called, for the message.
    """
    if norm in COUNTED_NORMS and value is not None:
        if what.startswith("step_size"):
            if value > 1:
                raise ValueError(
                    f"expected a {what} of at most 1, as pixels are in [0, 1], got {value:g}"
                )
        elif value != int(value):
            meaning = "pixels" if norm == "l0" else "pixels along a side of the patch"
            raise ValueError(
                f"expected an epsilon that is a whole number of {meaning} for norm {norm}, got "
                f"{value:.4g}"
            )
    if norm == "linf" and value is not None and value > LARGEST_LINF:
        levels = f"{value:g}" if value <= 255 else "8"
        raise ValueError(
            f"expected an L-inf {what} of at most 1, as pixels are in [0, 1], got {value:g}; for "
            f"{levels} of 255 levels write {levels}/255"
        )


class Threat(Config):
    """What the attacker may do to each image."""

    norm: Norm = Field(
        "linf",
        description="what bounds the perturbation of one image: the largest change of a pixel, its "
        "length in L2 or L1, the number of pixels changed (l0), or one square of them (patch)",
    )
    epsilon: PixelSize = Field(
        EPSILON_PAPER,
        description="largest perturbation, pixels in [0, 1], as a number or a fraction in text; "
        "8/255 is the usual L-inf value, 1 the largest. Of l0 the number of pixels, of patch the "
        "pixels along its side",
    )

    @model_validator(mode="after")
    def _within_pixels(self) -> "Threat":
        refuse_beyond_pixels("epsilon", self.epsilon, self.norm)
        return self

    def scaled(self, multiple: float) -> "Threat":
        """The same with an epsilon so many times as large, in whole pixels where they count."""
        epsilon = multiple * self.epsilon
        if self.norm in COUNTED_NORMS:
            epsilon = float(max(1, round(epsilon)))
        return self.model_copy(update={"epsilon": epsilon})

    def refuse_beyond_images(self, height: int, width: int) -> None:
        """Raise ConfigError where the images have fewer pixels than may be changed."""
        if self.norm == "l0" and self.epsilon > height * width:
            raise ConfigError(
                f"expected an l0 epsilon of at most {height * width} pixels, as many as an image "
                f"of {width}x{height} has, got {self.epsilon:g}"
            )
        if self.norm == "patch" and self.epsilon > min(height, width):
            raise ConfigError(
                f"expected a patch of at most {min(height, width)} pixels a side, as images are "
                f"{width}x{height}, got {self.epsilon:g}"
            )
