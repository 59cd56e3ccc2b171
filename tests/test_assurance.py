"""Tests of `docs/assurance.md`: each promise is shown by tests that exist, or not covered."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "assurance.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROWS = [*(f"R{n}" for n in range(1, 36)), *(f"S{n}" for n in range(1, 24))]


@cache
def names_in(file: Path) -> set[str]:
    """The names of the tests of a file, those in classes included."""
    if not file.is_file():
        return set()
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_a_document_names_exists() -> None:
    named = {
        (file, name)
        for document in (REPOSITORY / "docs").rglob("*.md")
        for file, name in NAMED.findall(document.read_text())
    }
    assert len(named) > 50
    assert [(f, n) for f, n in sorted(named) if n not in names_in(REPOSITORY / f)] == []
    assert "test_no_such_test" not in names_in(Path(__file__))


def test_every_row_has_a_promise_and_a_test_or_the_reason_why_not() -> None:
    rows = re.findall(r"^\| ([RS]\d+) \| (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [number for number, _, _ in rows] == ROWS
    for number, promise, shown in rows:
        assert len(promise) > 20, number
        assert NAMED.search(shown) or "not covered: " in shown, number
