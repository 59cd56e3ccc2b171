"""Whether a single logit ranks first what it was audited for, as far as anything tells."""

from adap.core.figures.chance import chance_low
from adap.core.report import ModelProvenance, TaskReport


def direction_doubt(task: TaskReport, model: ModelProvenance) -> str | None:
    """What a reader must know where a single logit may be that of other classes; else None.

    Where nobody says which classes it ranks first, a clean AP above chance does.
    """
    asked = ", ".join(task.positive)
    if model.outputs != 1:
        return None
    if model.positive is not None:
        if set(model.positive) == set(task.positive):
            return None
        return (
            f"The model's single logit ranks {', '.join(model.positive)} first; as asked, it was "
            f"read for {asked} all the same."
        )
    if chance_low(task) > task.chance:
        return None
    doubt = (
        f"Nothing says which class the model's single logit ranks first, and its clean AP for "
        f"{asked} does not tell: it may rank the opposite class."
    )
    if model.origin == "in process":
        return doubt
    return f"{doubt} Say which when the model is added (--positive), and others are refused."
