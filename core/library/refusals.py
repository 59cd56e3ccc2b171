"""Refusals of the library: what pydantic says of a value, in the house's words and errors."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adap.core.config import EPSILON_PAPER, Norm, Threat
from adap.core.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


def configured(kind: type[C], fields: Mapping[str, Any]) -> C:
    """A configuration of these fields. Raises ConfigError: which field, what was expected, got."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise ConfigError(sentence(error)) from error


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, and how many more there are."""
    first, *more = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].replace("Value error, ", "").replace("Input should be", "expected")
    got = "" if "got " in said or first["type"] == "missing" else f", got {_short(first['input'])}"
    others = f" (and {len(more)} more)" if more else ""
    return f"{f'{where}: ' if where else ''}{said}{got}{others}"


def threat_of(epsilon: float, norm: Norm) -> Threat:
    """What the attacker may do. Raises ConfigError, with a hint where levels of 255 were meant."""
    if norm not in ("linf", "l2"):
        raise ConfigError(f"expected norm 'linf' or 'l2', got {norm!r}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise ConfigError(f"expected epsilon as a number, for example 8/255, got {epsilon!r}")
    if norm == "linf" and epsilon > 1:
        meant = f": {epsilon:g} levels of 255 are epsilon={epsilon:g}/255" if epsilon <= 255 else ""
        raise ConfigError(
            f"expected epsilon from 0 to 1, for pixels in [0, 1] (usual: 8/255 = "
            f"{EPSILON_PAPER:.4f}), got {epsilon:g}{meant}"
        )
    return configured(Threat, {"norm": norm, "epsilon": float(epsilon)})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
