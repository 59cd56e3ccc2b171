"""Average precision under attack: audits of image rankers, and rankers that keep theirs.

    report = adap.audit(model, images, labels, epsilon=8/255)
    report.worst_case.ap, report.trust.verdict; report.save("report.html")

    loss = adap.AdapLPN(examples=len(train))                    # in your own training loop
    x_adv = adap.attack(model, x, y, adap.APGD(steps=50), epsilon=8/255)
    adap.average_precision(logits, y)

Nothing is imported before it is used, so `import adap` costs nothing and needs no torch.
`docs/library.md` tells all of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adap.core.errors import AdapError, ConfigError, DataError, ModelError, TrainingError
    from adap.core.library.attacks import APGD, FGSM, PGD, Noise, Square, Transfer, attack
    from adap.core.library.audits import audit
    from adap.core.library.certifying import Certified, certify
    from adap.core.library.detectors import Detector, largest_score
    from adap.core.library.distilling import Distilled, distil
    from adap.core.library.losses import (
        AP,
        CE,
        MART,
        TRADES,
        AdapLN,
        AdapLPN,
        AdapLZ,
        AdapMM,
        AdapPZ,
        PGDTraining,
    )
    from adap.core.library.metrics import average_precision, worst_case
    from adap.core.library.remote import HTTPRanker
    from adap.core.library.results import Audit
    from adap.core.library.smallest import SmallestChanges, smallest_changes
    from adap.core.library.training import (
        Augment,
        Fitted,
        Optimizer,
        TrainingAttack,
        WeightPerturbation,
        attack_generator,
        batches,
        fit,
        training_attack,
    )
    from adap.core.library.universal import Universal, universal

_HOMES = {
    "adap.core.errors": ("AdapError", "ConfigError", "DataError", "ModelError", "TrainingError"),
    "adap.core.library.attacks": ("APGD", "FGSM", "PGD", "Noise", "Square", "Transfer", "attack"),
    "adap.core.library.audits": ("audit",),
    "adap.core.library.certifying": ("Certified", "certify"),
    "adap.core.library.detectors": ("Detector", "largest_score"),
    "adap.core.library.distilling": ("Distilled", "distil"),
    "adap.core.library.losses": (
        *("AP", "CE", "MART", "TRADES", "AdapLN", "AdapLPN", "AdapLZ", "AdapMM", "AdapPZ"),
        "PGDTraining",
    ),
    "adap.core.library.metrics": ("average_precision", "worst_case"),
    "adap.core.library.remote": ("HTTPRanker",),
    "adap.core.library.results": ("Audit",),
    "adap.core.library.smallest": ("SmallestChanges", "smallest_changes"),
    "adap.core.library.training": (
        *("Augment", "Fitted", "Optimizer", "TrainingAttack", "WeightPerturbation"),
        *("attack_generator", "batches", "fit", "training_attack"),
    ),
    "adap.core.library.universal": ("Universal", "universal"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AP",
    "APGD",
    "CE",
    "FGSM",
    "MART",
    "PGD",
    "TRADES",
    "AdapError",
    "AdapLN",
    "AdapLPN",
    "AdapLZ",
    "AdapMM",
    "AdapPZ",
    "Audit",
    "Augment",
    "Certified",
    "ConfigError",
    "DataError",
    "Detector",
    "Distilled",
    "Fitted",
    "HTTPRanker",
    "ModelError",
    "Noise",
    "Optimizer",
    "PGDTraining",
    "SmallestChanges",
    "Square",
    "TrainingAttack",
    "TrainingError",
    "Transfer",
    "Universal",
    "WeightPerturbation",
    "attack",
    "attack_generator",
    "audit",
    "average_precision",
    "batches",
    "certify",
    "distil",
    "fit",
    "largest_score",
    "smallest_changes",
    "training_attack",
    "universal",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adap' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
