"""Trust check of the figures themselves: was there anything to lose? No torch."""

from adap.core.figures.chance import chance_doubt
from adap.core.report import Check, Limit, TaskReport

# What the lower end of the clean AP's interval has above chance; not nothing but for rounding.
REACHES_CHANCE = Limit(caution=1e-9, side="below")


def above_chance(task: TaskReport) -> Check:
    """Whether the clean AP, with its interval, lies above that of a random ranking."""
    name, clean, chance = "above_chance", task.clean, task.chance
    low = clean.ap if clean.interval is None else clean.interval.low
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
