"""Texts from outside that stand in pages and reports: what they may not hold. No torch."""

import unicodedata

TURNING = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
"""Marks, embeddings, overrides and isolates of direction (UAX 9), and the byte order mark."""


def reads_otherwise(sign: str) -> bool:
    """Whether a character commands what shows it, as C0 and C1 do, or the order of its text."""
    return unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") or sign in TURNING


def as_written(text: str, *, what: str) -> str:
    """The text. Raises ValueError where it changes how text around it is shown.

    what: what the text is, for the message.
    """
    hidden = sorted({f"U+{ord(sign):04X}" for sign in text if reads_otherwise(sign)})
    if hidden:
        raise ValueError(
            f"expected {what} without control and direction characters, got {', '.join(hidden[:5])}"
        )
    return text
