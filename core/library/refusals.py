"""Refusals of the library: what pydantic says of a value, in the house's words and errors."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from adap.core.config.threats import Norm, Threat
from adap.core.errors import ConfigError
from adap.faults import explain

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
    others = f" (and {len(more)} more)" if more else ""
    return f"{f'{where}: ' if where else ''}{explain(first)}{others}"


def threat_of(epsilon: float | str | np.number[Any], norm: Norm) -> Threat:
    """What the attacker may do, by the rules of every other door; '8/255' is read as a fraction.

    Raises ConfigError, with a hint where levels of 255 were meant.
    """
    if isinstance(epsilon, np.number):
        epsilon = float(epsilon)
    return configured(Threat, {"norm": norm, "epsilon": epsilon})


def refuse_unless_whole(name: str, value: Any, *, least: int) -> None:
    """Raise ConfigError for a value that is no whole number of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
    if not whole or value < least:
        raise ConfigError(
            f"expected {name} as a whole number of at least {least}, got {_short(value)}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
