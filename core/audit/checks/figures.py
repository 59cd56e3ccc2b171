"""Trust checks of the figures: was there anything to lose, and is it of this side? No torch."""

from adap.core.figures.chance import chance_doubt, chance_low
from adap.core.figures.direction import direction_doubt
from adap.core.report import Check, Limit, ModelProvenance, TaskReport

# What the lower end of the clean AP's interval has above chance; not nothing but for rounding.
REACHES_CHANCE = Limit(caution=1e-9, side="below")


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
