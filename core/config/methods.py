"""The ten training methods and their parameters."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from adap.core.config.base import Config, name_only, or_name

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
    BeforeValidator(name_only, json_schema_input_type=or_name(_AnyMethod)),
]
