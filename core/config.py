"""Requests and their configurations, each a frozen class with bounds.

One class is the body of the HTTP call, the JSON column of the job and the argument of the pipeline.

Every field has a bound and a description, unknown fields are refused, and nothing is coerced: a
string is never read as a number, but for fractions of pixels. This module imports no torch, so the
web process can use it.

Pixels are in [0, 1] everywhere, and so are `epsilon` and `step_size`: 0.0314, or "8/255".
"""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from adap import faults
from adap.core import presets, thresholds
from adap.core.errors import ConfigError
from adap.core.presets import TrainingPreset
from adap.core.rankings import OWN_NAMES
from adap.core.statement import Statement
from adap.faults import NamedFields
from adap.wording import as_written

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
BallNorm = Literal["linf", "l2"]
Norm = Literal["linf", "l2", "l1", "l0", "patch"]
COUNTED_NORMS: tuple[Norm, ...] = ("l0", "patch")  # whose epsilon is a number of pixels
BALL_NORMS: tuple[Norm, ...] = ("linf", "l2")  # in which every pixel may move at once
BOUNDED_NORMS = BALL_NORMS  # for which bounds are known

EPSILON_PAPER = 8 / 255
LARGEST_LINF = 1.0  # every pixel is within it of every other
LARGE_LINF = 0.25  # a quarter of the way from black to white: hardly ever what was meant

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def fraction(value: Any) -> Any:
    """8/255 of the text "8/255", as people write levels of a pixel; what is none stays as it is."""
    found = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    above, below = map(float, found.groups())
    if below == 0:
        raise ValueError(f"expected a fraction such as 8/255, got {value!r:.40}")
    return above / below


_FractionText = Annotated[str, Field(pattern=faults.FRACTION, max_length=40)]
_AnySize = Annotated[float, Field(ge=0, le=1000)]
_Positive = Annotated[float, Field(gt=0, le=1000)]
PixelSize = Annotated[
    _AnySize, BeforeValidator(fraction, json_schema_input_type=_AnySize | _FractionText)
]
StepSize = Annotated[
    _Positive, BeforeValidator(fraction, json_schema_input_type=_Positive | _FractionText)
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


class Config(NamedFields):
    """A frozen value that refuses unknown fields and does not coerce."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def as_json(self) -> dict[str, Any]:
        """The plain JSON value of this configuration, defaults included."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """A hash of every value of the configuration: equal hash, equal run."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


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


def _name_only(value: Any) -> Any:
    """A bare name stands for the entry with its defaults."""
    return {"name": value} if isinstance(value, str) else value


def _or_name(union: Any) -> Any:
    """What may stand there in JSON, for the OpenAPI: an entry of the union, or its bare name."""
    names = tuple(member.model_fields["name"].default for member in get_args(union))
    return Annotated[union, Field(discriminator="name")] | Literal[names]


# --- training methods -----------------------------------------------------------------------------

Lambda = Annotated[
    float, Field(ge=0, le=1000, alias="lambda", description="weight of the regulariser")
]
Margin = Annotated[
    float, Field(gt=0, le=100, description="margin of the squared hinge in the AP surrogate")
]
Gamma1 = Annotated[
    float,
    Field(gt=0, le=1, description="moving-average weight of the newest batch in u_pos and u_all"),
]
Gamma2 = Annotated[
    float,
    Field(gt=0, le=1, description="moving-average weight of the newest batch, listwise term"),
]
FirstVisit = Annotated[
    Literal["published", "batch"],
    Field(
        description="'published': estimators start at 0 as in the released code; "
        "'batch': they start at the first batch value"
    ),
]


Anchor = Annotated[
    Literal["own", "ema"],
    Field(
        description="whose clean ranking the attacked one is kept near by the listwise term: the "
        "network's own, or that of the moving average of its weights (needs ema)"
    ),
]


class CEMethod(Config):
    """Cross-entropy on clean images."""

    name: Literal["ce"] = "ce"


class APMethod(Config):
    """Maximise the AP surrogate on clean images (SOAP)."""

    name: Literal["ap"] = "ap"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    first_visit: FirstVisit = "published"


class PGDMethod(Config):
    """Adversarial training: cross-entropy on attacked images (Madry et al.)."""

    name: Literal["pgd"] = "pgd"


class TRADESMethod(Config):
    """Cross-entropy on clean images plus a pointwise KL term to the attacked ones."""

    name: Literal["trades"] = "trades"
    lambda_: Lambda = 1.0


class MARTMethod(Config):
    """Cross-entropy on attacked images plus a KL term weighted by how wrong the clean score is."""

    name: Literal["mart"] = "mart"
    lambda_: Lambda = 1.0


class AdapMMMethod(Config):
    """Minimax AP surrogate on attacked images, eq. (6)."""

    name: Literal["adap_mm"] = "adap_mm"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    first_visit: FirstVisit = "published"


class AdapPZMethod(Config):
    """AP surrogate plus a pointwise term, as a zero-sum game, eq. (7)."""

    name: Literal["adap_pz"] = "adap_pz"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    lambda_: Lambda = 1.0
    first_visit: FirstVisit = "published"


class AdapLZMethod(Config):
    """AP surrogate plus the listwise term, as a zero-sum game, eq. (18)."""

    name: Literal["adap_lz"] = "adap_lz"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    gamma2: Gamma2 = 0.9
    lambda_: Lambda = 1.0
    first_visit: FirstVisit = "published"


class AdapLNMethod(Config):
    """AP surrogate plus the listwise term, with a pointwise attacker, eq. (9)."""

    name: Literal["adap_ln"] = "adap_ln"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    gamma2: Gamma2 = 0.9
    lambda_: Lambda = 1.0
    first_visit: FirstVisit = "published"
    anchor: Anchor = "own"


class AdapLPNMethod(Config):
    """AP surrogate plus listwise and pointwise terms, with a pointwise attacker, eq. (10)."""

    name: Literal["adap_lpn"] = "adap_lpn"
    margin: Margin = 0.6
    gamma1: Gamma1 = 0.9
    gamma2: Gamma2 = 0.9
    lambda_: Lambda = 1.0
    first_visit: FirstVisit = "published"
    anchor: Anchor = "own"


_AnyMethod = (
    CEMethod
    | APMethod
    | PGDMethod
    | TRADESMethod
    | MARTMethod
    | AdapMMMethod
    | AdapPZMethod
    | AdapLZMethod
    | AdapLNMethod
    | AdapLPNMethod
)
Method = Annotated[
    _AnyMethod,
    Field(discriminator="name"),
    BeforeValidator(_name_only, json_schema_input_type=_or_name(_AnyMethod)),
]


# --- training -------------------------------------------------------------------------------------


WarmupEpochs = Annotated[int, Field(ge=0, le=1000)]


class Optimizer(Config):
    """The optimiser, as torch implements it, and how its learning rate falls."""

    name: Literal["adam", "adamw", "nadam", "radam", "rmsprop", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0, le=10, description="learning rate of the first epoch")
    weight_decay: float = Field(2e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1, description="used by sgd and rmsprop only")
    nesterov: bool = Field(False, description="Nesterov's momentum, for sgd only")
    schedule: Literal["steps", "cosine"] = Field(
        "steps",
        description="how the learning rate falls from epoch to epoch: by milestones and decay, or "
        "along half a cosine towards 0, which leaves those two unused",
    )
    milestones: list[float] = Field(
        [0.5, 0.75],
        max_length=10,
        description="fractions of the epochs after which the learning rate is multiplied by decay",
    )
    decay: float = Field(0.1, gt=0, le=1)
    warmup_epochs: WarmupEpochs = Field(
        0, description="epochs over which the learning rate rises linearly to its full value"
    )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(
                f"expected nesterov for sgd with a momentum above 0, got {self.name} with "
                f"{self.momentum:g}"
            )
        return self


class TrainingAttack(Config):
    """PGD as run inside training: every step moves each pixel by `step_size`; last iterate."""

    norm: BallNorm = "linf"
    epsilon: PixelSize = EPSILON_PAPER
    steps: int = Field(6, ge=1, le=100)
    step_size: StepSize = 0.01
    positive_factor: float = Field(
        1,
        ge=1,
        le=10,
        description="epsilon and step_size of positives are so many times as large; for one task. "
        "Validation attacks all images alike",
    )
    positive_warmup_epochs: WarmupEpochs = Field(
        0, description="epochs over which positive_factor rises linearly from 1"
    )

    @model_validator(mode="after")
    def _within_pixels(self) -> "TrainingAttack":
        for name, value in (("epsilon", self.epsilon), ("step_size", self.step_size)):
            refuse_beyond_pixels(name, value, self.norm)
            refuse_beyond_pixels(f"{name} of positives", value * self.positive_factor, self.norm)
        return self


class Augment(Config):
    """Random changes of the training images; off by default, as not every image may be flipped."""

    crop_padding: int = Field(0, ge=0, le=64, description="pixels of zero padding for random crops")
    flip: bool = Field(False, description="flip half of the images left to right")
    crop_shift: int = Field(
        0,
        ge=0,
        le=64,
        description="cut up to so many pixels off each side's length, and put what is left "
        "anywhere on black",
    )
    jitter: float = Field(
        0,
        ge=0,
        le=1,
        description="brightness, contrast and saturation are each multiplied by 1 - jitter to "
        "1 + jitter",
    )
    erase: float = Field(
        0, ge=0, le=1, description="share of the images of which a random rectangle becomes black"
    )


VALIDATION_STEPS = 10
"""Of PGD, by which the epoch is chosen: the paper's attack."""


class Validation(Config):
    """Where the best epoch is chosen, and when none better is waited for any more."""

    fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of each class held out when the data set has no validation split",
    )
    select_by: Literal["robust_ap", "clean_ap"] | None = Field(
        None,
        description="figure that chooses the epoch; by default robust_ap (PGD-10) for methods that "
        "train on attacked images, clean_ap for ce and ap, as in the paper",
    )
    every: int = Field(
        1,
        ge=1,
        le=1000,
        description="validate after every so many epochs, and after the last: only those can be "
        "the best, and the others cost no passes over the validation images",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="stop when this many epochs in a row have not raised that figure; by default "
        "all epochs are done",
    )


class WeightPerturbation(Config):
    """Adversarial weight perturbation (Wu, Xia & Wang 2020): descend where weights are worse."""

    size: float = Field(
        0.01, gt=0, le=1, description="length of the perturbation as a share of a layer's weights"
    )
    warmup_epochs: WarmupEpochs = Field(0, description="epochs before the first perturbation")


Precision = Literal["float32", "tf32", "bfloat16"]


class TrainingConfig(Config):
    """How a network is trained, apart from the data."""

    preset: TrainingPreset | None = Field(
        None,
        description="values of the fields that are left out, see GET /v1/presets",
    )
    method: Method = Field(
        AdapLPNMethod(),
        description="a method, or its bare name",
        # the same by its name: some generators of clients take no object here
        json_schema_extra={"default": "adap_lpn"},
    )
    architecture: str = Field("small_cnn", max_length=64, description="see GET /v1/architectures")
    epochs: int = Field(30, ge=1, le=1000)
    batch_size: int = Field(128, ge=2, le=4096)
    positives_per_batch: int | None = Field(
        None,
        ge=1,
        le=4095,
        description="positives in each batch for methods with an AP surrogate, shared among the "
        'classes of {"each": true}; by default half',
    )
    optimizer: Optimizer = Optimizer()
    attack: TrainingAttack = TrainingAttack()
    augment: Augment = Augment()
    validation: Validation = Validation()
    precision: Precision = Field(
        "float32",
        description="number format of the passes; weights, the last layer, logits, losses, "
        "estimators and AP are float32 in any case. bfloat16 is for GPUs, and slow on a CPU",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, for example 0.999: "
        "the average is what is validated and kept; by default the weights themselves are",
    )
    weight_perturbation: WeightPerturbation | None = Field(
        None,
        description="move the weights to where the loss is higher before each step, and descend "
        "from there; by default they stay where they are",
    )
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _filled_from_the_preset(cls, values: Any) -> Any:
        return presets.fill(values)

    @model_validator(mode="after")
    def _positives_leave_room(self) -> "TrainingConfig":
        if self.positives_per_batch is not None and self.positives_per_batch >= self.batch_size:
            raise ValueError(
                f"expected positives_per_batch below batch_size {self.batch_size}, "
                f"got {self.positives_per_batch}"
            )
        return self

    @model_validator(mode="after")
    def _an_anchor_has_an_average(self) -> "TrainingConfig":
        if getattr(self.method, "anchor", "own") == "ema" and self.ema is None:
            raise ValueError('expected ema, for example 0.999, with anchor "ema", got none')
        return self


Identifier = Annotated[str, Field(pattern=faults.ID, max_length=40)]


def _reads_as_written(text: str) -> str:
    return as_written(text, what="a name")


Name = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=faults.VISIBLE),
    AfterValidator(_reads_as_written),
]


class WarmStart(Config):
    """The model whose weights a training starts from, instead of random ones."""

    model_id: Identifier = Field(description="of the same architecture and input size")
    fresh_head: bool | None = Field(
        None,
        description="start with a random last layer; by default true for ap, as the paper "
        "fine-tunes it from a ce model, and false for the others",
    )


class TrainingRequest(TrainingConfig):
    """`POST /v1/training-jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset_id": "ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
                    "task": {"positive": ["truck"]},
                    "method": {"name": "adap_lpn", "lambda": 1.0},
                    "epochs": 30,
                }
            ]
        }
    )

    dataset_id: Identifier
    task: AnyTask | None = Field(
        None,
        description="may be left out when the data set has two classes, one named as positive. "
        '{"each": true} trains one network with an output for each class, on their mean AP',
    )
    warm_start: WarmStart | None = Field(
        None,
        description="a model to start from; by default training starts from scratch",
    )
    sample: int | None = Field(
        None,
        ge=4,
        le=2**31,
        description="try the training on about so many examples, drawn by `seed`, each class in "
        "its share: those that choose the epoch are among them. By default, and where there are "
        "no more, all of them",
    )
    name: Name | None = Field(None, description="name of the resulting model")
    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of the worker (its cores, where it has no GPU) that share every batch; "
        "the training is the same up to rounding",
    )

    @model_validator(mode="after")
    def _devices_divide_the_batch(self) -> "TrainingRequest":
        if self.batch_size % self.devices:
            raise ValueError(
                f"expected a batch_size that {self.devices} devices divide evenly, got "
                f"{self.batch_size}"
            )
        return self

    def fresh_head(self) -> bool:
        """Whether a warm start replaces the last layer."""
        if self.warm_start is None:
            return False
        asked = self.warm_start.fresh_head
        return self.method.name == "ap" if asked is None else asked


# --- audits ---------------------------------------------------------------------------------------


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
    BeforeValidator(_name_only, json_schema_input_type=_or_name(_AnyAttack)),
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


RECOVERING: frozenset[Preset] = frozenset({"standard"})
"""Whose audits search on where the gradient hides something, by `recovery_attacks`."""


def recovery_attacks(height: int, width: int) -> list[Attack]:
    """What still searches where the gradient tells half the truth; Square grows with the image."""
    queries = min(max(2 * height * width, 1000), 10_000)
    return [
        APGDAttack(label="apgd_averaged", averaged=16),
        SquareAttack(label="square_long", queries=queries),
    ]


Checks = Literal["off", "quick", "full"]

# Multiples of the threat's epsilon at which the epsilon curve is measured.
PRESET_MULTIPLES: dict[Preset, list[float]] = {
    "quick": [],
    "standard": [0.25, 0.5, 1.0, 1.5, 2.0],
    "paper": [],
}
PRESET_CHECKS: dict[Preset, Checks] = {"quick": "quick", "standard": "full", "paper": "quick"}
CURVE_ATTACK = APGDAttack(steps=10)
"""The attack behind every point of the epsilon curve."""


ImageSize = tuple[int, int, int]  # channels, height, width

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


class RankingRequest(Config):
    """`POST /v1/rankings`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "mdl_01k9x2v7m3c5r8t1w4z6y0b2d4",
                    "dataset_id": "ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
                }
            ]
        }
    )

    model_id: Identifier
    dataset_id: Identifier
    split: Split | None = Field(
        None, description="by default the test split where there is one, else every example"
    )
    task: Task | None = Field(
        None,
        description="which examples are shown as positive; needed by a model with a logit for each "
        "class, which ranks these classes first",
    )
    other_positive: OtherPositive = False
    batch_size: int = Field(256, ge=1, le=4096)
