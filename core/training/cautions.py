"""What the user of a training must know: before it begins, and of its epoch. No torch."""

from collections.abc import Sequence

from adap.reading import Fact


def no_test_split(*, tests: bool) -> Fact | None:
    """What follows where a data set keeps no images back; None where it has a test split."""
    if tests:
        return None
    return Fact(
        level="caution",
        code="no_test_split",
        message="The data set has no test split: every image is trained on or chooses the epoch, "
        "and an audit on this data set can only say how well the model remembers them. Add it "
        "again with `hold_out` (--hold-out 0.2), or audit the model on other images.",
    )


def only_a_sample(learned: int, *, examples: int) -> Fact | None:
    """What follows where a training was tried on a sample; None where it had all examples.

    learned: how many were trained on or chose the epoch.
    """
    if learned == examples:
        return None
    return Fact(
        level="caution",
        code="trained_on_a_sample",
        message=f"A sample of {learned:,} of {examples:,} examples was trained on or chose the "
        "epoch: take it for a trial, and train again without `sample` what you mean to use.",
        figures={"learned": float(learned), "examples": float(examples)},
    )


def tied_epochs(tied: Sequence[int], figure: str) -> Fact | None:
    """What to say of epochs that share the best figure, the first of which is kept; None of one.

    tied: their numbers, rising.  figure: robust_ap or clean_ap.
    """
    if len(tied) < 2:
        return None
    others = ", ".join(map(str, tied[1:11])) + (", …" if len(tied) > 11 else "")
    return Fact(
        level="info",
        code="tied_epochs",
        message=f"Epoch {tied[0]} was kept, the first of {len(tied)} with the best validation "
        f"{'robust' if figure == 'robust_ap' else 'clean'} AP (also {others}): the validation "
        "images do not tell them apart. More of them would.",
        figures={"tied": float(len(tied))},
    )


def not_captured(reason: str | None) -> Fact | None:
    """What to say of steps that ran kernel by kernel on a GPU, for this reason; None without."""
    if reason is None:
        return None
    return Fact(
        level="info",
        code="not_captured",
        message="Steps or validation of this training could not be captured as a CUDA graph and "
        f"ran kernel by kernel ({reason}): the weights are the same up to rounding, and it took "
        "longer.",
    )
