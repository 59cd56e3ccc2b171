"""Named values for the fields of a training that are left out; what is given always wins.

`robust` is what helped in `benchmarks/results/recipe.md`. The three of the paper are its released
settings (Li, Tong & Yang, NeurIPS 2023, section 5): the learning rate is the first of the three
that it tries, and the method stays yours to choose. Its random affine changes of CelebA and BDD100K
images are random crops here.
"""

from copy import deepcopy
from typing import Any, Literal

from pydantic import BaseModel

TrainingPreset = Literal["paper-cifar", "paper-celeba", "paper-bdd", "robust", "quick"]

_PAPER: dict[str, Any] = {
    "architecture": "resnet18",
    "batch_size": 128,
    "optimizer": {
        "name": "adam",
        "lr": 1e-3,
        "milestones": [0.5, 0.75],
        "decay": 0.1,
        "weight_decay": 1e-5,
    },
    "attack": {"norm": "linf", "epsilon": 8 / 255, "steps": 6, "step_size": 0.01},
    "augment": {"crop_padding": 4, "flip": True},
    "validation": {"fraction": 0.2},
    "epochs": 32,
}

TRAINING_PRESETS: dict[TrainingPreset, dict[str, Any]] = {
    "paper-cifar": {
        **_PAPER,
        "epochs": 60,
        "optimizer": {**_PAPER["optimizer"], "weight_decay": 2e-4},
    },
    "paper-celeba": _PAPER,
    "paper-bdd": _PAPER,
    "robust": {
        "method": {"name": "adap_lpn", "anchor": "ema"},
        "ema": 0.999,
        "optimizer": {"schedule": "cosine", "warmup_epochs": 1},
    },
    "quick": {
        "architecture": "small_cnn",
        "epochs": 5,
        "attack": {"steps": 3, "step_size": 0.015},
    },
}

DESCRIPTIONS: dict[TrainingPreset, str] = {
    "paper-cifar": "The paper's training on CIFAR-10 and CIFAR-100: ResNet-18, 60 epochs.",
    "paper-celeba": "The paper's training on CelebA: ResNet-18, 32 epochs.",
    "paper-bdd": "The paper's training on BDD100K: ResNet-18, 32 epochs.",
    "robust": "What helped beyond the paper, on small images: AdAP_LPN held to the clean ranking "
    "of averaged weights, a cosine schedule with warm-up.",
    "quick": "A first look: the small network, five epochs, three attack steps.",
}


def fill(values: Any) -> Any:
    """A training's fields with what its preset says where they say nothing, at any depth.

    Anything else than a dict with a known preset is answered as it came, for others to refuse.
    """
    if not isinstance(values, dict):
        return values
    preset = values.get("preset")
    if not isinstance(preset, str) or preset not in TRAINING_PRESETS:
        return values
    return _under(deepcopy(TRAINING_PRESETS[preset]), values)


def _under(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in given.items():
        inner = base.get(name)
        if isinstance(value, BaseModel) and isinstance(inner, dict):
            value = value.model_dump(exclude_unset=True)
        merged[name] = (
            _under(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged
