"""Trust checks of the files behind an audit: how they were read, and what the model has seen.

They need no model: the readings were written when the files came, and images are compared by their
pixels. No torch.
"""

from adap.core.audit.leakage import Leakage
from adap.core.report import Check, Limit
from adap.reading import Reading

# Share of the audited images that a model may have learned by heart. Any is worth a word; from a
# tenth on the figures say how well it remembers.
LEAKED = Limit(caution=0, fail=0.1)

CHOSEN = Limit(caution=0)  # images that chose the epoch: they flatter, but are not remembered

CAUTIONS = Limit(caution=0)
FAULTS = Limit(caution=0, fail=0)


def check_files(
    *, dataset: Reading | None, model: Reading | None, leakage: Leakage | None
) -> list[Check]:
    """The checks of an audit's files, in a fixed order; what nobody knows is skipped."""
    return [
        _reading("data_set", dataset, "Nothing was noted of how the data set was read."),
        _reading("model_file", model, "Nothing was noted of how a model file was read."),
        _across_splits(leakage),
        _seen_in_training(leakage),
    ]


def doubts(checks: list[Check]) -> list[str]:
    """What a reader must know of the files before trusting the figures."""
    return [check.message for check in checks if check.status in ("caution", "fail")]


def _reading(name: str, reading: Reading | None, unknown: str) -> Check:
    if reading is None:
        return Check(name=name, status="skipped", message=unknown, figures={})
    levels = [fact.level for fact in reading.facts]
    figures = {
        "cautions": float(levels.count("caution")),
        "faults": float(levels.count("fault")),
    }
    limits = {"cautions": CAUTIONS, "faults": FAULTS}
    said = [_sentence(fact.message) for fact in reading.cautions]
    message = " ".join(said) or f"Read without doubt: {_sentence(reading.summary)}"
    return _check(name, message, figures, limits)


def _across_splits(leakage: Leakage | None) -> Check:
    name = "leakage"
    if leakage is None or leakage.across_splits is None:
        why = "No split is audited, so there is no other one to compare it with."
        return Check(name=name, status="skipped", message=why, figures={})
    found, of = leakage.across_splits, leakage.examples
    message = f"None of {of:,} audited images has the pixels of one in another split."
    if found:
        message = (
            f"{found:,} of {of:,} audited images have the pixels of one in another split: a model "
            "trained on that split has seen them, and the figures say how well it remembers them."
        )
    figures = {"images": float(found), "share": found / of}
    return _check(name, message, figures, {"share": LEAKED})


def _seen_in_training(leakage: Leakage | None) -> Check:
    name = "seen_in_training"
    if leakage is None or leakage.seen is None:
        why = "Nothing says on which images that are here the model was trained."
        return Check(name=name, status="skipped", message=why, figures={})
    found, of = leakage.seen, leakage.examples
    message = f"None of {of:,} audited images is one that the model was trained on."
    if found == of:
        message = (
            "The model was trained on these very examples: the figures say how well it remembers "
            "them, not how well it ranks new ones."
        )
    elif found:
        message = (
            f"The model was trained on {found:,} of the {of:,} audited images: of these the "
            "figures say how well it remembers them, not how well it ranks new ones."
        )
    if leakage.chosen:
        message += (
            f" By {leakage.chosen:,} of the {of:,} it was not trained, but its epoch was chosen: "
            "of these the figures are somewhat too good."
        )
    if leakage.missing:
        message += f" {leakage.missing} more data sets that it was trained on are not here."
    figures = {"images": float(found), "share": found / of}
    limits = {"share": LEAKED}
    if leakage.chosen is not None:
        figures["chosen"], limits["chosen"] = float(leakage.chosen), CHOSEN
    return _check(name, message, figures, limits)


def _check(name: str, message: str, figures: dict[str, float], limits: dict[str, Limit]) -> Check:
    statuses = [limit.status(figures[of]) for of, limit in limits.items()]
    status = max(statuses, key=("pass", "caution", "fail").index)
    return Check(name=name, status=status, message=message, figures=figures, limits=limits)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
