"""Whether a model ranks better than chance before any attack: else there was nothing to lose."""

from adap.core.report import TaskReport


def chance_low(task: TaskReport) -> float:
    """The lower end of the clean AP: what is held against chance."""
    return task.clean.ap if task.clean.interval is None else task.clean.interval.low


def chance_doubt(task: TaskReport) -> str | None:
    """What a reader must know where the clean AP, or its interval, reaches chance; else None."""
    clean, chance = task.clean, task.chance
    turned = task.upside_down
    if turned is not None and turned.interval is not None and turned.interval.low > chance:
        return (
            f"The model ranks clean images worse than chance (AP {clean.ap:.3f}, chance "
            f"{chance:.3f}), and better than chance when its ranking is read from the end (AP "
            f"{turned.ap:.3f}, at least {turned.interval.low:.3f}): the ranker may rank the "
            "opposite class first, or its outputs may be of the classes in another order."
        )
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
