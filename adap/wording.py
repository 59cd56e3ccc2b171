"""Texts from outside that stand in pages and reports: what they may not hold. No torch.

One rule for all that people read again: names of things, of classes, groups and files, reasons and
statements. Whoever reads one sees all of it, in its order, and nothing of what stands around it is
shown otherwise.

Source: Default_Ignorable_Code_Point (UAX 44), marks of direction (UAX 9), joiners (UAX 31), and
what is no character (Unicode, 23.7), which no XML file may hold.
"""

import re
import unicodedata
from collections.abc import Iterator

_COMMANDS = ("Cc", "Zl", "Zp", "Cs")  # C0 and C1, ends of lines and paragraphs, half characters
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"  # without which Persian, Hindi and some emoji are written wrongly
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_KEYCAP = "\u20e3"


def hidden(text: str) -> list[str]:
    """The characters that make a text read otherwise than it is, as `U+200B`, each once."""
    return sorted({f"U+{ord(text[i]):04X}" for i in _hidden_at(text)})


def visible(text: str) -> str:
    """The text without them."""
    places = set(_hidden_at(text))
    return "".join(sign for i, sign in enumerate(text) if i not in places)


def as_written(text: str, *, what: str) -> str:
    """The text. Raises ValueError where it changes how text is shown, its own or that around it.

    what: what the text is, for the message.
    """
    if found := hidden(text):
        raise ValueError(
            f"expected {what} without control, direction and invisible characters, got "
            f"{', '.join(found[:5])}"
        )
    return text


def is_name(text: str) -> bool:
    """Whether a text can be the name of a class or a file: as written, with plain spaces."""
    return not hidden(text) and re.sub(f"[{_JOINERS}]", "", text).isprintable()


def _hidden_at(text: str) -> Iterator[int]:
    if text.isascii() and text.isprintable():
        return
    for i, sign in enumerate(text):
        unseen = _UNSEEN.match(sign) and not _has_its_place(text, i)
        if unseen or unicodedata.category(sign) in _COMMANDS:
            yield i


def _has_its_place(text: str, i: int) -> bool:
    """Whether a joiner stands between what it joins, a selector behind what it selects."""
    before, behind = text[i - 1 : i], text[i + 1 : i + 2]
    if text[i] in _JOINERS:
        return _is_joined(before) and _is_joined(behind)
    if not before or not _SELECTORS.match(text[i]):
        return False
    east = unicodedata.category(before) == "Lo" and ord(before) >= 0x1800
    return east or unicodedata.category(before) in ("So", "Sm") or behind == _KEYCAP


def _is_joined(sign: str) -> bool:
    """Whether a character is of a script whose letters join, or of an emoji."""
    if not sign:
        return False
    kind = unicodedata.category(sign)
    return (kind[0] in "LM" and ord(sign) >= 0x590) or kind in ("So", "Sk")
