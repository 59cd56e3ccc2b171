"""The model card, read back by markdown-it: CommonMark with GitHub's tables."""

import json

import pytest
from markdown_it import MarkdownIt

from adap.core.rendering.card import card, verdict
from adap.core.report import Interval, Report
from tests.reports import report_of, scores_of, task_of

HOSTILE = [
    "a | b || `c` \\| \\",
    "[x](javascript:alert(1)) ![y](http://e.example/z.png) <http://e.example>",
    "<script>alert(1)</script><!-- </details> &lt;b&gt;",
    "**bold** _under_ ~~gone~~ # head $x$ *",
    "http://e.example www.e.example a@e.example",
    "``` \n\n# new\n- item\r\n| --- |",
]


class Card:
    """The card as a parser sees it: sections of texts and tables, and what else it found."""

    def __init__(self, markdown: str) -> None:
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.fences: list[str] = []
        self.html: list[str] = []
        self.kinds: set[str] = set()
        into = ""
        for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
            self.kinds |= {token.type, *(child.type for child in token.children or [])}
            if token.type == "table_open":
                self.tables.append([])
            elif token.type == "tr_open":
                self.tables[-1].append([])
            elif token.type.endswith("_open"):
                into = token.type
            elif token.type == "inline":
                text = "".join(
                    " " if child.type == "softbreak" else child.content
                    for child in token.children or []
                )
                if into in ("th_open", "td_open"):
                    self.tables[-1][-1].append(text)
                elif into == "heading_open":
                    self.headings.append(text)
                else:
                    self.texts.append(text)
            elif token.type == "fence":
                self.fences.append(token.content)
            elif token.type == "html_block":
                self.html.append(token.content)

    def table(self, *columns: str) -> list[list[str]]:
        """The rows below these columns."""
        (found,) = [rows[1:] for rows in self.tables if rows[0] == list(columns)]
        return found


@pytest.fixture(scope="module")
def task():
    return task_of(scores_of())


def test_the_card_shows_the_figures_of_the_report(task):
    report = report_of([task])
    read = Card(card(report))
    rows = read.table("", "AP", "95 % interval", "lost", "positives tied")
    figures = {
        "clean": task.clean,
        "pgd": task.attacks["pgd"],
        "strong": task.attacks["strong"],
        "worst case": task.worst_case,
    }
    for row, (name, figure) in zip(rows, figures.items(), strict=True):
        span = f"{figure.interval.low:.4f} to {figure.interval.high:.4f}"
        assert row[:3] == [name, f"{figure.ap:.4f}", span]
        assert row[4] == str(figure.tied)
        if name != "clean":
            low, high = figure.drop.interval.low, figure.drop.interval.high
            assert row[3] == f"{figure.drop.value:.4f} ({low:.4f} to {high:.4f})"
    assert [row[0] for row in read.table("epsilon", "AP", "95 % interval")] == ["0.05", "0.1"]
    budget = read.table("images", "positives only", "negatives only", "both")
    assert [row[3] for row in budget] == [f"{point.both:.4f}" for point in task.budget_curve]
    groups = read.table("group", "examples", "positives", "clean", "worst case")
    assert [row[0] for row in groups] == ["<dusk>|", "day", "night"]
    assert groups[0][1:] == ["20", "0", "", ""]
    assert read.table("asked for", "got", "") == [
        ["worst_case_ap >= 0.1", f"{task.worst_case.ap:.4f}", "met"],
        ["worst_case_ap >= 0.9", f"{task.worst_case.ap:.4f}", "not met"],
    ]
    checks = read.table("check", "status", "found")
    assert [row[1] for row in checks] == ["pass", "caution", "skipped", "fail"]
    text = " ".join(read.texts)
    bracket = f"[{task.certified_floor.ap:.4f}, {task.worst_case.ap:.4f}]"
    assert bracket in text
    assert "Thresholds met: 1 of 2." in text
    assert "The audit itself: not trustworthy." in text
    assert "Only 20 positives, so the figures are uncertain" in text


def test_the_card_holds_what_reproduces_it(task):
    report = report_of([task])
    read = Card(card(report))
    cells = {cell for rows in read.tables for row in rows for cell in row}
    provenance = report.provenance
    assert {
        *(provenance.model.sha256, provenance.dataset.sha256, provenance.config_sha256),
        *(provenance.scores_sha256, "7", "2.14.1"),
    } <= cells
    (config,) = read.fences
    assert json.loads(config) == provenance.config


def test_several_tasks_have_a_mean_and_a_section_each():
    tasks = [task_of(scores_of(seed=i), positive=[f"class {i}"]) for i in range(2)]
    report = report_of(tasks)
    read = Card(card(report))
    assert ["worst_case", f"{report.mean['worst_case']:.4f}"] in read.table("", "AP")
    assert [h for h in read.headings if "rest" in h] == [
        "class 0 against the rest",
        "class 1 against the rest",
    ]
    assert "as a mean over 2 tasks" in " ".join(read.texts)


def test_what_the_report_lacks_the_card_leaves_out(task):
    bare = task.model_copy(
        update={
            "certified_floor": None,
            "no_certified_floor": "The network has a GELU.",
            "epsilon_curve": None,
            "budget_curve": [],
            "groups": None,
        }
    )
    report = report_of([bare], required=[], trust=None).model_copy(update={"warnings": []})
    read = Card(card(report))
    assert read.headings == [
        "a model: average precision under attack",
        "truck against the rest",
        "What was not assessed",
        "Images and model behind the figures",
        "Clauses that this report supports an answer to",
        "Reproduce",
    ]
    assert "No certified floor: The network has a GELU." in read.texts


@pytest.mark.parametrize(
    ("clean", "worst", "low", "said"),
    [
        (0.9, 0.6, 0.5, "Keeps 0.600 of 0.900 AP under the worst of 2 attacks; chance is 0.375."),
        (0.9, 0.4, 0.3, "not clearly better than a random ranking, whose AP is 0.375."),
        (0.9, 0.3, 0.2, "no better than a random ranking, whose AP is 0.375."),
        (0.3, 0.2, 0.1, "no better than chance before any attack: AP 0.300, chance 0.375."),
    ],
)
def test_the_verdict_compares_with_a_random_ranking(task, clean, worst, low, said):
    interval = Interval(low=low, high=1, level=0.95)
    changed = task.model_copy(
        update={
            "clean": task.clean.model_copy(update={"ap": clean}),
            "worst_case": task.worst_case.model_copy(update={"ap": worst, "interval": interval}),
        }
    )
    assert said in verdict(changed)


def hostile(name: str) -> Report:
    scores = scores_of()
    group = {"day": name, "night": "night", "<dusk>|": "dusk"}
    named = [group[own] for own in scores.groups or []]
    task = task_of(type(scores)(**{**scores.__dict__, "groups": named}), positive=[name])
    report = report_of([task], name=name, doubts=[name])
    config = {**report.provenance.config, "task": {"positive": [name]}}
    provenance = report.provenance.model_copy(update={"config": config, "device": name})
    checks = [check.model_copy(update={"message": name}) for check in report.trust.checks]
    return report.model_copy(
        update={
            "provenance": provenance,
            "trust": report.trust.model_copy(update={"checks": checks}),
        }
    )


GROUPS = ("group", "examples", "positives", "clean", "worst case")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_text(name: str):
    markdown = card(hostile(name))
    read, quiet = Card(markdown), Card(card(hostile("quiet")))
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    assert read.kinds == quiet.kinds
    assert read.headings[0] == f"{shown}: average precision under attack"
    assert len(read.headings) == len(quiet.headings)
    assert [[len(row) for row in rows] for rows in read.tables] == [
        [len(row) for row in rows] for rows in quiet.tables
    ]
    assert {row[2] for row in read.table("check", "status", "found")} == {shown}
    assert shown in [row[0] for row in read.table(*GROUPS)]
    assert (
        read.html == quiet.html == ["<details>\n<summary>Configuration</summary>\n", "</details>\n"]
    )
    assert json.loads(read.fences[0])["task"] == {"positive": [name]}
    assert "<script" not in markdown
