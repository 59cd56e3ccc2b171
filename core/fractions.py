"""Fractions as people write levels of a pixel: 8/255 of the text "8/255"."""

import re
from typing import Any

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def fraction(value: Any) -> Any:
    """8/255 of the text "8/255"; what is no fraction stays as it is.

    Raises ValueError for one over nothing.

    >>> fraction("51/255"), fraction("0.2"), fraction(0.2)
    (0.2, '0.2', 0.2)
    """
    found = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    above, below = map(float, found.groups())
    if below == 0:
        raise ValueError(f"expected a fraction such as 8/255, got {value!r:.40}")
    return above / below
