"""Whether the model scores an image the same way again, in any batch."""

import numpy as np

from adap.core.audit.checks.judging import change_of, check_of, refused_numbers, skipping
from adap.core.audit.checks.limits import ALONE, APART, LOGIT_CHANGE, MEAN_ERROR, NOTHING, ONE_DRAW
from adap.core.audit.checks.runs import Logits
from adap.core.report import Check


def repeatable(
    clean: Logits,
    again: Logits,
    alone: Logits | None,
    alone_again: Logits | None,
    *,
    draws: int = 1,
) -> Check:
    """In batches, and one by one: a network that draws once a batch then draws for each image.

    draws: behind each of the logits.
    """
    name = "repeatable"
    if not_finite := refused_numbers(name, clean, again):
        return not_finite
    change, share = change_of(clean, again, spread=clean.std())
    if alone is not None and alone_again is not None and np.isfinite([alone, alone_again]).all():
        change_alone, share_alone = change_of(alone, alone_again, spread=clean.std())
        change, share = max(change, change_alone), max(share, share_alone)
    figures = {"largest_change": change, "share_of_spread": share}
    if draws > 1:
        error = float(np.sqrt(np.square(again - clean).mean() / 2) / max(clean.std(), NOTHING))
        figures |= {"draws": float(draws), "error_of_mean": error}
        more = "." if MEAN_ERROR.status(error) == "pass" else ": take more draws."
        message = (
            "The model draws random numbers, so each score and each gradient is the mean over "
            f"{draws} draws, which is off by {error:.1%} of the spread of the logits{more}"
        )
        return check_of(name, message, figures, {"draws": ONE_DRAW, "error_of_mean": MEAN_ERROR})
    message = f"The same images scored twice differ by {change:.2g} at most"
    if LOGIT_CHANGE.status(share) == "pass":
        message += "."
    else:
        message += (
            f", {share:.1%} of the spread of the logits: the model draws random numbers, or "
            "remembers. Audit it without that, or averaged over many draws."
        )
    return check_of(name, message, figures, {"share_of_spread": LOGIT_CHANGE})


def batch_independent(
    clean: Logits, repeatable: Check, *, shuffled: Logits, alone: Logits | None
) -> Check:
    name = "batch_independent"
    advice = "put BatchNorm into eval mode, with its running statistics."
    if alone is None:
        message = (
            "The model refuses an image that comes alone, so its scores depend on the rest of the "
            f"batch: {advice}"
        )
        return check_of(name, message, {"scored_alone": 0.0}, {"scored_alone": ALONE})
    if not_finite := refused_numbers(name, clean, shuffled, alone):
        return not_finite
    other, other_share = change_of(clean, shuffled, spread=clean.std())
    single, single_share = change_of(clean, alone, spread=clean.std())
    share = max(other_share, single_share)
    changes = LOGIT_CHANGE.status(share) != "pass"
    if changes and share < APART * repeatable.figures.get("share_of_spread", 0):
        return skipping(
            name,
            "Scores do not repeat, and differ no more than that among other images: what the batch "
            "does cannot be told.",
        )
    message = f"Scores differ by {other:.2g} at most among other images, by {single:.2g} alone"
    if not changes:
        message += "."
    else:
        message += (
            f", {share:.1%} of the spread of the logits: the rest of the batch changes an image's "
            f"score, {advice}"
        )
    figures = {
        "largest_change_shuffled": other,
        "largest_change_alone": single,
        "share_of_spread": share,
        "scored_alone": 1.0,
    }
    limits = {"share_of_spread": LOGIT_CHANGE, "scored_alone": ALONE}
    return check_of(name, message, figures, limits)
