"""What is ranked first, and how an uploaded data set is read."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from adap import faults
from adap.core.config.base import Config

ClassName = Annotated[str, Field(max_length=500)]  # longer than any that a data set may have
MAX_CLASSES_IN_URL = 120  # so many of the longest still fit into the 64 KiB of a request's head


class Task(Config):
    """Which classes are positive; every other class of the data set is negative."""

    positive: list[ClassName] = Field(
        min_length=1,
        max_length=1000,
        description="names of the positive classes, against all the others",
        examples=[["truck"]],
    )


class EachClass(Config):
    """Each class of the data set against the rest: one task a class, and the mean over them."""

    each: Literal[True]


AnyTask = Annotated[
    Annotated[Task, Tag("positive")] | Annotated[EachClass, Tag("each")],
    Discriminator(lambda value: "each" if "each" in _keys(value) else "positive"),
]


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else getattr(type(value), "model_fields", ())


class Resize(Config):
    """How images of any size become images of one: bilinear, with antialiasing."""

    height: int = Field(ge=1, le=2048, description="pixels")
    width: int = Field(ge=1, le=2048, description="pixels")
    fit: Literal["stretch", "crop", "pad"] = Field(
        description="stretch changes the proportions; crop cuts what sticks out on both sides; "
        "pad adds black on both sides"
    )


class Levels(Config):
    """The values that become black and white; what lies beyond is cut, what lies between spread."""

    low: float = Field(ge=-1e9, le=1e9, description="becomes black")
    high: float = Field(ge=-1e9, le=1e9, description="becomes white")

    @model_validator(mode="after")
    def _ascending(self) -> "Levels":
        if self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low:g} and {self.high:g}")
        return self


ColumnName = Annotated[str, Field(min_length=1, max_length=200)]


class DatasetOptions(Config):
    """How an upload is read where it could be read in more than one way."""

    resize: Resize | None = Field(None, description="how images become one size")
    folders: str | None = Field(
        None,
        pattern=faults.FOLDERS,
        description="what the folders are, from the outermost: class, split, group, cluster, or - "
        "for nothing; for example split/class",
    )
    levels: Levels | None = Field(
        None, description="the values that become black and white, of images deeper than 8 bits"
    )
    label_separator: Literal["|", ",", ";", "/", " ", "none"] | None = Field(
        None,
        description="what stands between the labels of an image that may have several; none where "
        "each text is one label, whatever it looks like",
    )
    label_columns: str | None = Field(
        None,
        min_length=1,
        max_length=4000,
        description="columns of 0 and 1, each of which is a class, separated by commas; * for all "
        "that mean nothing else",
    )
    label_in_name: Literal["_", "-", ".", " "] | None = Field(
        None,
        description="the label is what stands in the name of an image before the last of these: "
        "cat in cat_12.jpg",
    )
    image_column: ColumnName | None = Field(None, description="column, or array, of the images")
    label_column: ColumnName | None = Field(None, description="column, or array, of the labels")
    split_column: ColumnName | None = Field(None, description="column, or array, of the splits")
    group_column: ColumnName | None = Field(None, description="column, or array, of the groups")
    cluster_column: ColumnName | None = Field(None, description="column, or array, of clusters")
    skip_unreadable: bool = Field(
        False, description="leave out images that cannot be read, and count them"
    )
    hold_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of each class that becomes the test split, of a data set without one",
    )

    @model_validator(mode="after")
    def _labels_once(self) -> "DatasetOptions":
        """Labels are in one place."""
        told = ("label_columns", "label_in_name", "label_column", "label_separator")
        given = [name for name in told if getattr(self, name) is not None]
        if len(given) > 1 and given != ["label_column", "label_separator"]:
            raise ValueError(
                f"expected one place that the labels come from, got {' and '.join(given)}: leave "
                "out all but one"
            )
        return self
