"""Trust checks of the figures: was there anything to lose, and is it of this side? No torch."""

from adap.core.figures.chance import chance_doubt, chance_low
from adap.core.figures.direction import direction_doubt
from adap.core.report import Check, Limit, ModelProvenance, TaskReport

# What the lower end of the clean AP's interval has above chance; not nothing but for rounding.
REACHES_CHANCE = Limit(caution=1e-9, side="below")

# AP that one perturbation for all images took and attacks on each of them did not.
MISSED = Limit(caution=0.01, fail=0.05)


def of_figures(task: TaskReport, model: ModelProvenance) -> list[Check]:
    """All checks of this module that a task allows."""
    found = [above_chance(task), universal_no_worse(task), positive_class(task, model)]
    return [check for check in found if check is not None]


def above_chance(task: TaskReport) -> Check:
    """Whether the clean AP, with its interval, lies above that of a random ranking."""
    name, chance, low = "above_chance", task.chance, chance_low(task)
    figures = {"low": low, "chance": chance, "above": low - chance}
    doubt = chance_doubt(task)
    message = (
        doubt or f"The clean AP is at least {low:.3f} in its interval, chance is {chance:.3f}."
    )
    return Check(
        name=name,
        status=REACHES_CHANCE.status(figures["above"]),
        message=message,
        figures=figures,
        limits={"above": REACHES_CHANCE},
    )


def universal_no_worse(task: TaskReport) -> Check | None:
    """Whether attacks that choose for each image lost no more than one that all images share; None
    where none such was searched."""
    if task.universal is None:
        return None
    ap, worst = task.universal.ap, task.worst_case.ap
    figures = {"ap": ap, "worst_case_ap": worst, "lower": worst - ap}
    status = MISSED.status(figures["lower"])
    message = (
        f"One perturbation for all images leaves an AP of {ap:.3f}, "
        f"{'no less' if ap >= worst else 'hardly less'} than the worst case of attacks on each, "
        f"{worst:.3f}."
        if status == "pass"
        else f"One perturbation for all images leaves an AP of {ap:.3f}, less than the worst case "
        f"of attacks on each, {worst:.3f}: they missed what was there, and the worst case is too "
        "high."
    )
    return Check(
        name="universal_no_worse",
        status=status,
        message=message,
        figures=figures,
        limits={"lower": MISSED},
    )


def positive_class(task: TaskReport, model: ModelProvenance) -> Check:
    """Whether the model's single logit ranks first what the task asks for."""
    name, asked = "positive_class", ", ".join(task.positive)
    if model.outputs != 1:
        why = (
            "Nobody knows how many outputs the model has."
            if model.outputs is None
            else f"The model has an output for each of {model.outputs} classes, by their names."
        )
        return Check(name=name, status="skipped", message=why, figures={})
    doubt = direction_doubt(task, model)
    message = f"The model's single logit ranks {asked} first, as it was trained or declared to."
    if model.positive is None:
        message = (
            f"Nothing says which class the model's single logit ranks first; its clean AP for "
            f"{asked}, above chance, does."
        )
    told = model.positive is not None
    low, chance = chance_low(task), task.chance
    return Check(
        name=name,
        status="pass" if doubt is None else "caution",
        message=doubt or message,
        figures={} if told else {"low": low, "chance": chance, "above": low - chance},
        limits={} if told else {"above": REACHES_CHANCE},
    )
