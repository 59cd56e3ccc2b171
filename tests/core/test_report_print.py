"""The report on paper: printed by Chromium, then read page by page from the structure of the PDF.

A tagged PDF says of every heading, row, item and figure on which pages its marks are (ISO 32000-1,
14.7), so what is torn over two pages shows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from pypdf.generic import PdfObject

from adap.core.figures.clauses import supported
from adap.core.rendering.page import render
from adap.core.report import AuditedImages, Report
from adap.core.statement import Statement
from tests.core.browser import chromium
from tests.core.pages import rich_report, scores_of

A4_PX = round((210 - 2 * 14) / 25.4 * 96)  # between the margins
WHOLE = ("H1", "H2", "H3", "H4", "TR", "LI", "Figure", "Caption", "P")
HEADINGS = ("H1", "H2", "H3", "H4")
MUCH = "only 12 positives, so the figures are uncertain, and what is left under attack says little."


@dataclass(frozen=True)
class Mark:
    """What is drawn at once: the page that it is on, and the elements that it is in."""

    page: int
    inside: tuple[tuple[str, int], ...]


def marks(reader: PdfReader) -> list[Mark]:
    """Everything that has a place in the structure, in reading order."""
    numbers = {page.indirect_reference.idnum: i for i, page in enumerate(reader.pages)}  # type: ignore[union-attr]
    made = iter(range(10**6))

    def walk(node: Any, page: int, inside: tuple[tuple[str, int], ...]) -> Iterator[Mark]:
        value = node.get_object()
        if isinstance(value, int):
            yield Mark(page, inside)
            return
        if "/Pg" in value:
            page = numbers[value.raw_get("/Pg").idnum]
        if value.get("/Type") == "/MCR":
            yield Mark(page, inside)
            return
        if "/S" in value:
            inside = (*inside, (value["/S"].removeprefix("/"), next(made)))
        kids = value.get("/K", [])
        kids = kids.get_object() if isinstance(kids, PdfObject) else kids
        for kid in kids if isinstance(kids, list) else [kids]:
            yield from walk(kid, page, inside)

    return list(walk(reader.root_object["/StructTreeRoot"], -1, ()))  # type: ignore[arg-type]


def torn(found: list[Mark]) -> list[str]:
    """Elements that should be whole and are on more than one page; a table's head is on each."""
    pages: dict[tuple[str, int], set[int]] = {}
    rows = {it for mark in found for it in mark.inside if "TD" in {kind for kind, _ in mark.inside}}
    for mark in found:
        for element in mark.inside:
            if element[0] in WHOLE and (element[0] != "TR" or element in rows):
                pages.setdefault(element, set()).add(mark.page)
    return [f"{kind} on pages {sorted(on)}" for (kind, _), on in pages.items() if len(on) > 1]


def orphaned(found: list[Mark]) -> list[str]:
    """Headings whose page ends before anything that they head."""
    faults = []
    for here, after in pairwise(found):
        own = [element for element in here.inside if element[0] in HEADINGS]
        if own and own[-1] not in after.inside and after.page != here.page:
            faults.append(f"{own[-1][0]} at the end of page {here.page}")
    return faults


def told(report: Report) -> Report:
    """The report with all that a signer asks for."""
    statement = Statement(
        purpose="Decide whether the ranker may screen pictures at the gate. " * 6,
        intended_use="Still pictures of one camera, looked at by two people.",
        tester="R. Tester",
        tested_on="2026-11-30",
    )
    images = AuditedImages(examples=400, lowest=0, highest=1, equal=2, in_other_splits=0)
    report = report.model_copy(update={"statement": statement, "images": images})
    return report.model_copy(update={"clauses": supported(report)})


@dataclass(frozen=True)
class Printed:
    """The PDF of a report, and what sticks out of its boxes on paper."""

    reader: PdfReader
    outside: Sequence[str]


@pytest.fixture(scope="module", params=["one task", "ten tasks"])
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A report in which nothing is absent, and one of many tasks with as many warnings, printed."""
    folder = tmp_path_factory.mktemp("print")
    if request.param == "one task":
        one = scores_of(400, evidence=12, shape=(3, 32, 32))
        page = render(told(rich_report(one)), [one])
    else:
        many = [scores_of(60 + 10 * i) for i in range(10)]
        report = told(rich_report(*many, names=[f"class {i}" for i in range(10)]))
        warnings = [f"class {i}: {MUCH} {part}" for i in range(10) for part in (1, 2)]
        page = render(report.model_copy(update={"warnings": warnings}), many)
    (file := folder / "report.html").write_text(page, encoding="utf-8")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": A4_PX, "height": 900}, color_scheme="dark")
        tab.goto(file.as_uri())
        tab.pdf(path=folder / "report.pdf", format="A4", tagged=True, prefer_css_page_size=True)
        tab.emulate_media(media="print")
        outside = tab.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll(".scroll, .chart, td")]
            .filter(it => it.scrollWidth > it.clientWidth + 1)
            .map(it => `${it.tagName} ${it.className}: ${it.scrollWidth} > ${it.clientWidth}`)"""
        )
    return Printed(PdfReader(Path(folder / "report.pdf")), outside)


@pytest.mark.browser
def test_no_row_item_or_figure_is_torn_and_no_heading_is_left_behind(printed: Printed) -> None:
    found = marks(printed.reader)
    kinds = {element for mark in found for element in mark.inside}
    count = {kind: sum(it[0] == kind for it in kinds) for kind in WHOLE}
    assert count["TR"] > 11
    assert count["LI"] > 40
    assert count["H2"] > 6
    assert len(printed.reader.pages) > 5
    assert torn(found) == []
    assert orphaned(found) == []


@pytest.mark.browser
def test_nothing_is_cut_at_the_side_of_the_paper(printed: Printed) -> None:
    assert printed.outside == []


@pytest.mark.browser
def test_the_first_page_answers_in_a_minute(printed: Printed) -> None:
    first = " ".join(printed.reader.pages[0].extract_text().split())
    for words in (
        "a model",
        "a data set",
        "Keeps",
        "epsilon 0.100",
        "With caution",
        "of 3 require",
        "orst-case AP",  # the figures themselves
        "Chance",
    ):
        assert words in first
    everything = " ".join(page.extract_text() for page in printed.reader.pages)
    for words in ("What was not assessed", "R. Tester", "Annex IV, point 2(g)"):
        assert words in " ".join(everything.split())


@pytest.mark.browser
def test_pages_are_numbered_and_none_but_the_last_is_nearly_empty(printed: Printed) -> None:
    texts = [page.extract_text() for page in printed.reader.pages]
    for number, text in enumerate(texts, 1):
        assert f"{number} of {len(texts)}" in " ".join(text.split())
    on = Counter(mark.page for mark in marks(printed.reader))
    assert min(on[page] for page in range(len(texts) - 1)) > 15  # pieces of text and drawing


@pytest.mark.browser
def test_nothing_that_is_closed_takes_a_place_on_paper(printed: Printed) -> None:
    everything = " ".join(page.extract_text() for page in printed.reader.pages)
    assert "\u25b8" not in everything  # the mark of a task that a click would open
