"""Which classes a single logit ranks first: as it was trained, and as it is asked for.

A network with a logit for each class names its sides. A single logit does not say whose it is; read
for the other side it is a ranking upside down, which looks like a model that was never any good.
"""

from collections.abc import Sequence

from adap.core.errors import ConfigError


def refuse_other_side(
    asked: Sequence[str], known: Sequence[str] | None, *, meant: bool, whose: str = "the model"
) -> None:
    """Raise ConfigError where a single logit is read for other classes than it ranks first.

    known: those it was trained, or declared, to rank first; None where nobody knows.
    meant: whether the request says that it is to be read so all the same.
    """
    if meant or not known or set(asked) == set(known):
        return
    names, others = ", ".join(known[:20]), ", ".join(asked[:20])
    flags = " ".join(f"--positive {name}" for name in known[:20])
    raise ConfigError(
        f"task: {whose} has a single logit, which ranks {names} first; got {others}. Ask for "
        f"{names} ({flags}), or say other_positive: true (--other-positive) to read that logit "
        f"for {others} all the same"
    )
