"""Every attack that can be asked for: from its configuration to the search itself."""

from collections.abc import Callable, Mapping
from typing import Any

from adap.core.attacks.apgd import APGD
from adap.core.attacks.base import Attack
from adap.core.attacks.fgsm import FGSM
from adap.core.attacks.noise import Noise
from adap.core.attacks.pgd import PGD
from adap.core.attacks.sparse import SparseSearch
from adap.core.attacks.square import Square
from adap.core.attacks.threat_model import ThreatModel
from adap.core.config import attacks as config
from adap.core.config.threats import BALL_NORMS, Threat


def build_attack(attack: config.Attack, threat: Threat) -> Attack:
    """The attack that a configuration describes, with its defaults for this threat filled in."""
    return ATTACKS[attack.name](attack, threat)


# One signature for all of them, though some attacks need no part of the threat or no settings.
def _fgsm(attack: config.FGSMAttack, threat: Threat) -> Attack:  # noqa: ARG001
    return FGSM()


def _pgd(attack: config.PGDAttack, threat: Threat) -> Attack:
    return PGD(
        attack.steps,
        _step_size(attack, threat),
        restarts=attack.restarts,
        iterate=attack.iterate,
        patience=attack.patience,
    )


def _apgd(attack: config.APGDAttack, threat: Threat) -> Attack:  # noqa: ARG001
    return APGD(
        attack.steps,
        restarts=attack.restarts,
        patience=attack.patience,
        averaged=attack.averaged,
    )


def _square(attack: config.SquareAttack, threat: Threat) -> Attack:
    search = Square if threat.norm in BALL_NORMS else SparseSearch
    return search(attack.queries, patience=attack.patience)


def _noise(attack: config.NoiseAttack, threat: Threat) -> Attack:  # noqa: ARG001
    return Noise()


def _transfer(attack: config.TransferAttack, threat: Threat) -> Attack:
    # The caller hands it the surrogate's loss, so the best iterate is the surrogate's: which one
    # is best for the audited model, an attacker with a black box cannot tell.
    return PGD(attack.steps, _step_size(attack, threat), iterate=attack.iterate)


def _step_size(attack: config.PGDAttack | config.TransferAttack, threat: Threat) -> float:
    # 2.5: the steps reach anywhere in the ball, with some left to move along its border
    # (Madry et al. 2018).
    reach = ThreatModel(threat.norm, threat.epsilon).reach
    return 2.5 * reach / attack.steps if attack.step_size is None else attack.step_size


# Any: each builder takes its own configuration, and the name guarantees which one it gets.
ATTACKS: Mapping[str, Callable[[Any, Threat], Attack]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "apgd": _apgd,
    "square": _square,
    "noise": _noise,
    "transfer": _transfer,
}
