"""Texts of strangers read as they are written, and honest ones of all scripts are taken.

The judges: Unicode's own list of what is shown as nothing, as Unicode 15 has it, and texts as they
are written in newspapers and on phones.
"""

import pytest
from pydantic import ValidationError

from adap.core.statement import Statement
from adap.models.header import OutputSpec
from adap.wording import hidden, is_name, visible
from adap.worker.intake.names import name_problem

# DerivedCoreProperties.txt, Default_Ignorable_Code_Point
IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810)),
    *(*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164),
    *(*range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0, *range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4)),
    *(*range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]
HONEST = [
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: I want
    "\u0915\u094d\u200d\u0937",  # Devanagari: a half form
    "\u2764\ufe0f",  # a red heart
    "\U0001f469\u200d\U0001f52c",  # a scientist
    "\U0001f9d1\U0001f3fd\u200d\u2695\ufe0f",  # a doctor of medium skin
    "\u8fbb\U000e0100",  # a name with one of two forms of its first character
    "1\ufe0f\u20e3",  # a key
    *(
        "caf\u00e9",
        "\u017didovsk\u00fd",
        "\u6771\u4eac",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0639\u0631\u0628\u064a",
    ),
    *("a b", "it's 5 % \u2014 so", "\u00e0 la carte"),
]


def test_what_is_shown_as_nothing_has_no_place_between_letters() -> None:
    no_characters = [0xFFFE, 0xFFFF, *range(0xFDD0, 0xFDF0)]
    for code in [*IGNORABLE, *no_characters, *range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]:
        text = f"ap{chr(code)}ple"
        assert hidden(text) == [f"U+{code:04X}"], hex(code)
        assert visible(text) == "apple"
        assert not is_name(text)


@pytest.mark.parametrize("text", HONEST)
def test_honest_texts_of_all_scripts_are_as_written(text: str) -> None:
    assert hidden(text) == []
    assert is_name(text)
    assert name_problem("label", text) is None
    assert Statement(purpose=text, tester=text).tester == text


@pytest.mark.parametrize(
    "text",
    [
        *("\u200dapple", "apple\u200d", "\u0645\u200c", "a\u200c\u0645", "\ufe0f", "a\ufe0f"),
        *("\u2764\ufe0f\ufe0f", "\u8fbb\U000e0100\U000e0101", "\u0645\u200c\u200c\u0645"),
        "\U0001f3f4\U000e0067\U000e007f",
    ],
)
def test_joiners_and_selectors_out_of_place_are_hidden(text: str) -> None:
    assert hidden(text) != []


@pytest.mark.parametrize("sign", ["\u200b", "\u202e", "\u3164", "\ufe0f", "\x9b", "\U000e0041"])
def test_a_statement_and_the_names_of_classes_keep_the_same_rule(sign: str) -> None:
    text = f"approved{sign} by nobody"
    for field in ("purpose", "threat_rationale", "tester", "approver"):
        with pytest.raises(ValidationError, match=f"U\\+{ord(sign):04X}"):
            Statement.model_validate({field: text})
    with pytest.raises(ValidationError, match="printable"):
        OutputSpec(kind="multiclass", classes=["cat", text])
    said = name_problem("label", text)
    assert said is not None
    assert sign not in said
