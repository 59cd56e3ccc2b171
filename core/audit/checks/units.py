"""Whether the threat suits the pixels: their units, and what is left when images are stored."""

import numpy as np

from adap.core.audit.checks.judging import Judged, check_of, skipping, status_of
from adap.core.audit.checks.limits import GAINED_BY_ROUNDING, HALF_A_LEVEL, LOST_TO_ROUNDING
from adap.core.audit.network import Pixels
from adap.core.config.threats import COUNTED_NORMS, LARGE_LINF, Threat
from adap.core.report import Check, Limit


def units(threat: Threat, images: Pixels, *, box: float) -> Check:
    epsilon = threat.epsilon
    brightest = int(images.max() if images.dtype == np.uint8 else (255 * images.max()).round())
    # a quarter of the way, of the places, or of the area; half of the length
    large = {"linf": LARGE_LINF, "l0": box / 4, "patch": box / 2}.get(threat.norm, box / 2)
    figures = {
        "epsilon": epsilon,
        "levels": 255 * epsilon,
        "covers_everything": box,
        "brightest": float(brightest),
    }
    limits = {
        "epsilon": Limit(caution=large, fail=box),
        "brightest": Limit(caution=2, side="below"),
    }
    counted = threat.norm in COUNTED_NORMS
    if epsilon > 0 and not counted:
        limits["levels"] = Limit(caution=255 * HALF_A_LEVEL, side="below")
    message = f"Epsilon {epsilon:g} ({threat.norm}) is plausible for pixels in [0, 1]."
    if epsilon == 0:
        message = "Epsilon is 0, so no pixel may change: only the scores themselves are checked."
    if epsilon > box:
        message = (
            f"Epsilon {epsilon:g} covers every image there is ({box:g} would do): pixels are in "
            f"[0, 1], so 8 of 255 levels are 8/255 = 0.0314."
        )
    elif epsilon > box / 2 and not counted:
        message = (
            f"Epsilon {epsilon:g} ({threat.norm}) can turn every image into plain grey, so that no "
            "model can rank: choose a smaller one."
        )
    elif epsilon > large and counted:
        message = f"Epsilon {epsilon:g} ({threat.norm}) is more than a quarter of every image."
    elif epsilon > large:
        message = (
            f"Epsilon {epsilon:g} ({threat.norm}) is {255 * epsilon:.0f} of 255 levels, which "
            "changes what people see: 8 levels are 8/255 = 0.0314."
        )
    elif 0 < epsilon < HALF_A_LEVEL and not counted:
        message = (
            f"Epsilon {epsilon:g} is less than half a level of an 8-bit pixel ({HALF_A_LEVEL:.4f}):"
            " no image stored as bytes can show it. Give it for pixels in [0, 1]."
        )
    elif brightest <= 1:
        message = (
            f"No sampled pixel is brighter than {brightest} of 255, so the images seem to be in "
            "[0, 1] already: store them as 0 to 255."
        )
    return check_of("units", message, figures, limits)


def eight_bit(judged: Judged, threat: Threat) -> Check:
    name = "eight_bit"
    if 0 < threat.epsilon < HALF_A_LEVEL:
        return skipping(
            name,
            "Epsilon is less than half a level of an 8-bit pixel: no byte can show the attack.",
        )
    if unjudgeable := judged.unjudgeable(name, "white_box", "eight_bit"):
        return unjudgeable
    drop, kept = judged.drop("white_box"), judged.drop("eight_bit")
    before, after = judged.ap("white_box"), judged.ap("eight_bit")
    lost = 1 - kept / drop if drop > 0 else 0.0
    # in L-inf all pixels may round outwards at once; elsewhere they do to either side
    outwards = HALF_A_LEVEL / threat.epsilon if threat.norm == "linf" else 0.0
    figures = {
        "ap": before,
        "ap_8_bit": after,
        "ap_back": after - before,
        "margin_drop": drop,
        "margin_drop_8_bit": kept,
        "share_lost": lost,
        "share_gained": -lost - outwards,
    }
    limits = {
        "share_lost": LOST_TO_ROUNDING,
        "ap_back": judged.ap_limit,
        "share_gained": GAINED_BY_ROUNDING,
    }
    message = (
        f"The attacked images leave AP {before:.3f} on the sample, stored with 8 bits {after:.3f}, "
        f"and keep {1 - lost:.0%} of the fall of the margin"
    )
    if status_of(figures, limits) == "pass":
        message += "."
    elif GAINED_BY_ROUNDING.status(figures["share_gained"]) != "pass":
        message += (
            ": files are scored otherwise than the pixels between their levels, on which attacks "
            "search. Audit the network without what tells them apart."
        )
    else:
        message += (
            ": the attack lives on less than a level of a pixel. Choose a larger epsilon, or audit "
            "the network without what depends on such small changes."
        )
    return check_of(name, message, figures, limits)
