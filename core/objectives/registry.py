"""The objectives by the names of `adap.core.config.methods.Method`."""

from adap.core.config.methods import Method
from adap.core.objectives.adap import AdapLN, AdapLPN, AdapLZ, AdapMM, AdapPZ
from adap.core.objectives.ap import AP
from adap.core.objectives.base import Objective
from adap.core.objectives.baselines import CE, MART, TRADES, PGDTraining

OBJECTIVES: dict[str, type[Objective]] = {
    "ce": CE,
    "ap": AP,
    "pgd": PGDTraining,
    "trades": TRADES,
    "mart": MART,
    "adap_mm": AdapMM,
    "adap_pz": AdapPZ,
    "adap_lz": AdapLZ,
    "adap_ln": AdapLN,
    "adap_lpn": AdapLPN,
}


def build_objective(method: Method, *, examples: int, classes: int | None = None) -> Objective:
    """The objective of this method for a training set of so many examples.

    classes: K for a network with a logit for each of K classes; by default one logit.
    """
    return OBJECTIVES[method.name](method, examples=examples, classes=classes)
