"""Whether a model ranks better than chance before any attack: else there was nothing to lose."""

from adap.core.report import TaskReport


def chance_doubt(task: TaskReport) -> str | None:
    """What a reader must know where the clean AP, or its interval, reaches chance; else None."""
    clean, chance = task.clean, task.chance
    if clean.ap <= chance:
        return (
            f"The model ranks clean images no better than chance (AP {clean.ap:.3f}, "
            f"chance {chance:.3f})."
        )
    if clean.interval is not None and clean.interval.low <= chance:
        return (
            f"The interval of the clean AP, {clean.interval.low:.3f} to "
            f"{clean.interval.high:.3f}, reaches chance ({chance:.3f}): perhaps there "
            "was nothing to lose, and what is left under attack says little."
        )
    return None
