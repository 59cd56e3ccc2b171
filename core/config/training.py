"""A training: its optimiser, attack, augmentation, validation and start."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from adap.core import presets
from adap.core.config.base import Config, Identifier, Name
from adap.core.config.data import AnyTask
from adap.core.config.methods import AdapLPNMethod, Method
from adap.core.config.threats import (
    EPSILON_PAPER,
    BallNorm,
    PixelSize,
    StepSize,
    refuse_beyond_pixels,
)
from adap.core.presets import TrainingPreset

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
    folded_attack: bool = Field(
        False,
        description="attack a copy of the network with BatchNorm folded into its convolutions, "
        "made anew in each step: the same gradients up to rounding, in fewer and cheaper passes",
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
