"""The page of a report, read back by a parser, by scikit-learn and by a browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics import precision_recall_curve as sklearn_curve

from adap.core.errors import DataError
from adap.core.figures.ranking import floor_ap
from adap.core.rendering.page import render
from adap.core.report import (
    BudgetPoint,
    CertifiedFloor,
    Check,
    EpsilonCurve,
    EpsilonPoint,
    Groups,
    Interval,
    Report,
)
from adap.core.scores import Evidence, Scores, load_scores
from tests.core.browser import chromium
from tests.core.drawings import close
from tests.core.pages import (
    HOSTILE,
    Page,
    renamed,
    report_of,
    rich_report,
    scores_of,
    with_figures,
    worst_of,
)
from tests.core.take_pictures import take
from tests.reports import audited


def page_of(scores: Scores, **described: Any) -> Page:
    return Page(render(report_of(scores, **described), [scores]))


def with_hostile_words(report: Report) -> Report:
    """The report with every text that a stranger may have put there replaced by hostile ones."""
    everything = " ".join(HOSTILE)
    assert report.trust is not None
    return report.model_copy(
        update={
            "trust": report.trust.model_copy(
                update={
                    "checks": [
                        Check(
                            name=everything,
                            status=check.status,
                            message=everything,
                            figures=dict.fromkeys([f"{i}{everything}" for i in range(2)], 0.5)
                            if check.figures
                            else {},
                        )
                        for check in report.trust.checks
                    ]
                }
            ),
            "thresholds": [
                it.model_copy(update={"threshold": everything, "figure": everything})
                for it in report.thresholds
            ],
            "tasks": [
                report.tasks[0],
                *(
                    task.model_copy(
                        update={"certified_floor": None, "no_certified_floor": everything}
                    )
                    for task in report.tasks[1:]
                ),
            ],
        }
    )


def hostile_page(*, tasks: int = 1) -> str:
    names = {"pgd": "pgd"} | {f"stranger-{i}": name for i, name in enumerate(HOSTILE)}
    scores = [scores_of(300, attacks=tuple(names), evidence=6, ids=tuple(HOSTILE))] * tasks
    everything = " ".join(HOSTILE)
    report = rich_report(
        *scores,
        names=(everything,) * tasks,
        groups=HOSTILE,
        verdict="not trustworthy",
        model=everything,
        dataset=everything,
        warnings=(everything,),
    )
    others = [
        replace(it, attacked={names[key]: logits for key, logits in it.attacked.items()})
        for it in scores
    ]
    return render(with_hostile_words(renamed(report, names)), others)


# --- the figures are right ------------------------------------------------------------------------


def test_every_curve_is_the_one_of_scikit_learn():
    scores = scores_of(500)
    chart = page_of(scores).charts["chart-curves"]
    for name, logits in {
        "Clean": scores.clean,
        "Worst case": worst_of(scores),
        **scores.attacked,
    }.items():
        recall, precision = chart.curve(name)
        expected_precision, expected_recall, _ = sklearn_curve(scores.targets, logits)
        # scikit-learn lists every threshold; at one recall the highest precision ends at a positive
        tops: dict[float, float] = {}
        for r, p in zip(expected_recall, expected_precision, strict=True):
            tops[r] = max(p, tops.get(r, 0))
        assert recall == close(sorted(tops))
        assert precision[1:] == close([tops[r] for r in sorted(tops)[1:]])
        area = np.diff(recall) @ np.array(precision[1:])
        assert area == pytest.approx(average_precision_score(scores.targets, logits), abs=1e-3)


def test_a_curve_that_is_pointed_at_says_its_precision_by_scikit_learn():
    scores = scores_of(500)
    readings = page_of(scores).charts["chart-curves"].readings
    assert len(readings) == 50
    for reading in readings:
        recall, *lines = reading.splitlines()
        at = float(recall.removeprefix("recall "))
        curves = {"Clean": scores.clean, **scores.attacked, "Worst case": worst_of(scores)}
        for line, (name, logits) in zip(lines, curves.items(), strict=True):
            precision, reached, _ = sklearn_curve(scores.targets, logits)
            nearest = reached[reached >= at].min()
            assert line == f"{name} {precision[reached == nearest].max():.3f}"


def test_long_curves_keep_their_shape_with_few_points():
    scores = scores_of(20_000)
    page = page_of(scores)
    for name, logits in {"Clean": scores.clean, "Worst case": worst_of(scores)}.items():
        recall, precision = map(np.array, page.charts["chart-curves"].curve(name))
        expected_precision, expected_recall, _ = sklearn_curve(scores.targets, logits)
        on_curve = np.column_stack([expected_recall, expected_precision])
        for point in zip(recall[1:], precision[1:], strict=True):
            assert np.abs(on_curve - point).max(axis=1).min() < 1e-3
        assert len(recall) <= 401
        assert recall[-1] == close(1)
        assert np.diff(recall).max() < 0.02
        area = np.diff(recall) @ precision[1:]
        # 199 slices: a slice's area is off by at most its height times 1/199.
        assert area == pytest.approx(average_precision_score(scores.targets, logits), abs=0.005)


def test_thinning_keeps_both_ends_and_the_extremes_of_every_slice():
    # A random ranking whose last eight positives come after 500 negatives: the precision falls
    # there and climbs again, so that the last point is neither highest nor lowest near the end.
    ranked = np.random.default_rng(0).integers(0, 2, 9000)
    ranked = np.concatenate([ranked, np.zeros(500, np.int64), np.ones(8, np.int64)])
    clean = -np.arange(len(ranked), dtype=np.float64)
    scores = Scores([str(i) for i in range(len(ranked))], ranked, clean, {"pgd": clean - 1})
    recall, precision = page_of(scores).charts["chart-curves"].curve("Clean")
    expected = (np.cumsum(ranked) / np.arange(1, 1 + len(ranked)))[ranked == 1]
    assert len(recall) <= 401
    assert (recall[1], precision[1]) == close((1 / len(expected), expected[0]))
    assert (recall[-1], precision[-1]) == close((1, expected[-1]))
    drawn = np.array(precision[1:])
    at = (np.array(recall[1:]) * len(expected)).round().astype(int) - 1
    for part in range(199):
        inside = np.arange(len(expected)) * 199 // len(expected) == part
        # A place may be read as its neighbour's, whose slice is the next one.
        shown = drawn[np.convolve(inside, [1, 1, 1], "same")[at] > 0]
        for extreme in (expected[inside].max(), expected[inside].min()):
            assert np.abs(shown - extreme).min() < 1e-3


@pytest.mark.slow
def test_the_ap_figure_shows_the_figures_of_the_report():
    scores = scores_of(200)
    interval = Interval(low=0.3, high=0.9, level=0.95)
    report = with_figures(report_of(scores), interval=interval)
    task = report.tasks[0]
    chart = Page(render(report, [scores])).charts["chart-ap"]
    expected = {"Clean": task.clean, **task.attacks, "Worst case": task.worst_case}
    assert chart.names == list(expected)
    whiskers, falls = chart.of("whisker"), chart.of("fall")
    for i, (name, figure) in enumerate(expected.items()):
        dot = chart.one("dot", f"{name}: AP {figure.ap:.4f}, 0.3000 to 0.9000")
        assert dot.points == [close((figure.ap, i))]
        assert whiskers[i].points == [close((0.3, i)), close((0.9, i))]
        if i > 0:
            assert falls[i - 1].points == [close((task.clean.ap, i)), close((figure.ap, i))]
    assert [line.x[0] for line in chart.of("upright")] == close([task.chance, task.floor])
    assert chart.texts("note") == [f"chance {task.chance:.2f}", f"floor {task.floor:.2f}"]
    assert chart.texts("value") == [f"{figure.ap:.3f}" for figure in expected.values()]


def test_histograms_count_what_falls_between_their_edges():
    scores = scores_of(300)
    chart = page_of(scores).charts["chart-scores"]
    edges = np.histogram_bin_edges(np.concatenate([scores.clean, worst_of(scores)]), 40)
    assert len(chart.of("outline")) == 4
    for images, logits in {"clean": scores.clean, "worst case": worst_of(scores)}.items():
        readings = [it for it in chart.readings if it.startswith(images)]
        for name, target in {"positives": 1, "negatives": 0}.items():
            chosen = logits[scores.targets == target]
            shares = np.histogram(chosen, edges)[0] / len(chosen)
            outline = chart.one("outline", f"{images}, {name}")
            # From the corner at the left edge: across a bar, then up or down to the next.
            assert outline.y[2:-2:2] == close([*shares, shares[-1]])
            assert outline.x[2::2] == close([*edges, edges[-1]])
            assert (outline.y[0], outline.y[-1]) == close((0, 0))
            for reading, share in zip(readings, shares, strict=True):
                assert f"\n{100 * share:.1f} % of {name}" in reading
        starts = [float(it.split(" from ")[1].split(" to ")[0]) for it in readings]
        assert starts == pytest.approx(edges[:-1], abs=0.0051)


def test_infinite_logits_are_drawn_in_the_outermost_bars():
    scores = scores_of(50, evidence=0)
    scores.clean[[0, 49]] = [np.inf, -np.inf]
    chart = page_of(scores).charts["chart-scores"]
    assert all(np.isfinite(it.points).all() for it in chart.of("outline"))
    last = [it for it in chart.readings if it.startswith("clean")][-1]
    share = re.search(r"(\S+) % of positives", last)
    assert share
    assert float(share[1]) >= 10  # one of ten positives


# --- the pictures are right -----------------------------------------------------------------------


def pictures(page: Page) -> list[Image.Image]:
    prefix = "data:image/png;base64,"
    sources = [element.attributes["src"] for element in page.all("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources
    ]


@pytest.mark.parametrize(("shape", "mode"), [((1, 8, 8), "L"), ((3, 32, 32), "RGB")])
def test_pictures_are_the_images_in_8_bit_and_their_magnified_difference(shape, mode):
    scores = scores_of(40, shape=shape, evidence=2)
    page = page_of(scores)
    (factor,) = {
        int(f)
        for f in re.findall(r"difference \N{MULTIPLICATION SIGN}(\d+)", page.one("main").text)
    }
    shown = pictures(page)
    assert len(shown) == 6
    for i, item in enumerate(scores.evidence):
        difference = 0.5 + factor * (item.attacked.astype(np.float64) - item.clean)
        assert np.abs(difference - 0.5).max() <= 0.51, "a change beyond black or white"
        for picture, pixels in zip(
            shown[3 * i : 3 * i + 3], (item.clean, item.attacked, difference), strict=True
        ):
            assert picture.mode == mode
            levels = np.asarray(picture, np.float64).reshape(*shape[1:], shape[0])
            # Half a level is the rounding, and float32 against float64 may tip a tie.
            assert np.abs(levels - 255 * pixels.transpose(1, 2, 0)).max() <= 0.501


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_images_of_one_grey_that_did_not_change_are_drawn(level):
    scores = scores_of(20, evidence=0)
    flat = np.full((1, 4, 4), level, np.float32)
    scores = Scores(
        scores.example_ids,
        scores.targets,
        scores.clean,
        scores.attacked,
        [Evidence("0.png", "pgd", 1.0, 0.5, flat, flat)],
    )
    clean, attacked, difference = pictures(page_of(scores))
    assert clean.getextrema() == attacked.getextrema() == (round(255 * level),) * 2
    assert difference.getextrema() == (128, 128)


def test_large_images_are_shrunk():
    scores = scores_of(20, evidence=1, shape=(3, 600, 300))
    assert {picture.size for picture in pictures(page_of(scores))} == {(128, 256)}


def test_ranks_are_counted_among_all_images_with_negatives_first_in_ties():
    scores = Scores(
        example_ids=["a", "b", "c", "d", "e"],
        targets=np.array([1, 1, 0, 0, 0]),
        clean=np.array([5.0, 3.0, 3.0, 2.0, 1.0]),
        attacked={"pgd": np.array([4.0, 0.0, 3.5, 2.5, 4.0])},
        evidence=[
            # b: behind a and, tied, c; in the worst case behind everything else.
            Evidence("b", "pgd", 3.0, 0.0, *np.zeros((2, 1, 2, 2), np.float32)),
            # a: first; in the worst case behind e, which rose to the same 4.0.
            Evidence("a", "pgd", 5.0, 4.0, *np.zeros((2, 1, 2, 2), np.float32)),
        ],
    )
    cards = [li.words for li in page_of(scores).all("li") if "→" in li.words]
    assert "logit 3.00 → 0.00 rank 3 → 5" in cards[0]
    assert "logit 5.00 → 4.00 rank 1 → 2" in cards[1]


# --- the words are right --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "interval", "sentence"),
    [
        (
            {"clean": 0.994, "worst_case": 0.8, "chance": 0.1},
            None,
            "Keeps 0.80 of 0.99 AP under the worst of 3 attacks; chance is 0.10.",
        ),
        (
            {"clean": 1.0, "worst_case": 0.9972, "chance": 0.5},
            None,
            "Keeps 0.997 of 1.00 AP under the worst of 3 attacks; chance is 0.50.",
        ),
        (
            {"clean": 0.98, "worst_case": 0.0518, "chance": 0.1},
            None,
            "Keeps 0.052 of 0.98 AP under the worst of 3 attacks: "
            "no better than a random ranking, whose AP is 0.10.",
        ),
        (
            {"clean": 0.98, "worst_case": 0.12, "chance": 0.1},
            (0.09, 0.17),
            "Keeps 0.12 of 0.98 AP under the worst of 3 attacks: "
            "not clearly better than a random ranking, whose AP is 0.10.",
        ),
        (
            {"clean": 0.0099, "worst_case": 0.005, "chance": 0.01},
            None,
            "Ranks no better than chance before any attack: 0.0099 AP, chance is 0.010.",
        ),
    ],
)
def test_the_verdict_says_what_the_figures_say(figures, interval, sentence):
    if interval is not None:
        interval = Interval(low=interval[0], high=interval[1], level=0.95)
    scores = scores_of(50)
    report = with_figures(report_of(scores), interval=interval, **figures)
    page = Page(render(report, [scores]))
    assert page.one("p", class_="verdict").text == sentence


def test_headline_holds_model_data_threat_figures_and_warnings():
    scores = scores_of(200)
    page = page_of(scores, model="my model", dataset="my data", warnings=("beware",))
    headline = page.one("header").words
    assert "my model" in page.one("h1").text
    assert "Ranks truck above the rest of my data , test split" in headline
    assert "L-inf, epsilon 0.100 = 25.5/255" in headline
    assert "beware" in page.one("aside").text
    clean, worst, chance, _ = (element.text for element in page.all("div", class_="big"))
    assert float(clean) == pytest.approx(
        average_precision_score(scores.targets, scores.clean), abs=0.005
    )
    assert float(worst) == pytest.approx(
        average_precision_score(scores.targets, worst_of(scores)), abs=0.005
    )
    assert float(chance) == pytest.approx(random_ap(40, 200), abs=0.005)


def test_the_table_has_a_row_for_every_set_of_images():
    scores = scores_of(200)
    page = page_of(scores)
    rows = [row.words for row in page.all("tr")]
    assert [row.split()[0] for row in rows[1:]] == ["Clean", "pgd", "apgd", "transfer", "Worst"]
    lost = average_precision_score(scores.targets, scores.clean) - average_precision_score(
        scores.targets, scores.attacked["apgd"]
    )
    assert f"{lost:.4f}" in rows[3]
    assert "steps 20, restarts 1, loss logit, averaged 1, patience default" in rows[3]
    signs = 2 * scores.targets - 1
    margins = signs * np.stack([scores.clean, *scores.attacked.values()])
    assert f" {(margins[0] - margins[2]).mean():.3f} " in rows[3]
    for row, strongest in zip(rows[1:5], np.bincount(margins.argmin(axis=0)), strict=True):
        assert row.endswith(f"{strongest} {100 * strongest / 200:.1f} %")


def test_the_page_holds_what_reproduces_it():
    page = page_of(scores_of(20))
    shown = page.one("main").text
    for fact in ("a" * 64, "b" * 64, "c" * 64, "mdl_1", "ds_1", "adap 0.1.0", "cpu"):
        assert fact in shown
    assert json.loads(page.one("pre").text)["threat"] == {"norm": "linf", "epsilon": 0.1}


def test_one_attack_and_no_evidence_make_a_page():
    page = page_of(scores_of(20, attacks=("pgd",), evidence=0))
    assert "under the one attack that was run" in page.one("p", class_="verdict").text
    assert page.all("img") == []
    assert "kept no images" in page.one("main").text


# --- what an audit may have, and may lack ---------------------------------------------------------


def rich_scores(*, examples: int = 600, evidence: int = 3) -> Scores:
    return scores_of(examples, attacks=("pgd", "square", "transfer"), evidence=evidence)


def rich_page(scores: Scores, **changes: Any) -> Page:
    """The page of a report in which nothing is absent, but for these changes to its task."""
    report = rich_report(scores)
    task = report.tasks[0].model_copy(update=changes)
    return Page(render(report.model_copy(update={"tasks": [task]}), [scores]))


def rows_after(page: Page, heading: str) -> list[str]:
    """The table's rows in the section with this heading."""
    regions = page.all("div", **{"aria-labelledby": heading})
    assert len(regions) == 1
    at = page.elements.index(regions[0])
    inside = []
    for element in page.elements[at + 1 :]:
        if element.tag == "section":
            break
        if element.tag == "tr":
            inside.append(element.words)
    return inside


def test_the_certified_floor_is_never_rounded_up_and_spans_a_band_to_the_worst_case():
    scores = rich_scores()
    floor = CertifiedFloor(ap=0.296, method="crown_ibp", proven_pairs=0.7125)
    page = rich_page(scores, certified_floor=floor)
    worst = average_precision_score(scores.targets, worst_of(scores))
    words = page.one("p", class_="proven").words
    assert f"Proven: at least 0.29. Reached by an attack: {worst:.2f}." in words
    assert "71.2 % of the pairs" in words
    assert "CROWN-IBP" in words
    assert "Proven: at least 0.29 on these images" in page.one("p", class_="caveat").words
    chart = page.charts["chart-ap"]
    assert chart.one("band").x == close(sorted([0.296, worst]))
    assert chart.one("diamond", "Certified floor: AP 0.2960").x == close([0.296])
    assert rows_after(page, "h-table")[-1] == (
        "Certified floor CROWN-IBP, 71.2 % of the pairs proven 0.2960 "
        f"{average_precision_score(scores.targets, scores.clean) - 0.296:.4f}"
    )


def test_bounds_that_prove_nothing_are_said_to():
    scores = rich_scores()
    floor = CertifiedFloor(
        ap=floor_ap(int(scores.targets.sum()), 600), method="ibp", proven_pairs=0.0
    )
    page = rich_page(scores, certified_floor=floor)
    assert "too loose to prove the order of any pair" in page.one("p", class_="proven").words
    assert "never prove its absence" in page.one("p", class_="caveat").words


def test_where_there_is_no_certified_floor_the_reason_stands_in_its_place():
    page = rich_page(rich_scores(), certified_floor=None, no_certified_floor="It has a softmax.")
    assert page.one("p", class_="proven").words == "No certified floor: It has a softmax."
    assert "never prove its absence" in page.one("p", class_="caveat").words
    assert page.charts["chart-ap"].of("band") == []


def test_the_epsilon_curve_and_its_table_hold_the_points_of_the_report():
    scores = rich_scores()
    task = rich_report(scores).tasks[0]
    page = rich_page(scores)
    chart = page.charts["chart-epsilon"]
    points = task.epsilon_curve.points
    assert chart.one("curve").points == [close((it.epsilon, it.ap)) for it in points]
    assert chart.one("interval").points == [
        *(close((it.epsilon, it.interval.low)) for it in points),
        *(close((it.epsilon, it.interval.high)) for it in reversed(points)),
    ]
    assert [it.y[0] for it in chart.of("level")] == close([task.chance, task.floor])
    assert chart.one("upright").x == close([0.1, 0.1])  # the audited epsilon
    assert {it.title: it.points for it in chart.of("dot")} == {
        **{
            f"robust AP, epsilon {it.epsilon:.4g}: AP {it.ap:.4f}": [close((it.epsilon, it.ap))]
            for it in points
        },
        f"clean, epsilon 0: AP {task.clean.ap:.4f}": [close((0, task.clean.ap))],
        f"worst case, epsilon 0.1: AP {task.worst_case.ap:.4f}": [close((0.1, task.worst_case.ap))],
    }
    assert rows_after(page, "h-epsilon")[1:] == [
        f"{point.epsilon:.4g} {255 * point.epsilon:.4g}/255"
        f"{', audited' if point.epsilon == 0.1 else ''} "
        f"{point.ap:.4f} {point.interval.low:.3f} to {point.interval.high:.3f}"
        for point in points
    ]


def test_an_epsilon_curve_without_intervals_that_starts_at_zero_is_drawn():
    scores = rich_scores()
    curve = EpsilonCurve(
        attack={"name": "fgsm"},
        points=[EpsilonPoint(epsilon=0, ap=0.9), EpsilonPoint(epsilon=0.2, ap=0.5)],
    )
    chart = rich_page(scores, epsilon_curve=curve).charts["chart-epsilon"]
    assert chart.one("curve").points == [close((0, 0.9)), close((0.2, 0.5))]
    assert len(chart.of("dot")) == 4
    assert chart.of("interval") == chart.of("from-clean") == []


def test_the_budget_curve_and_its_table_hold_the_points_of_the_report():
    scores = rich_scores()
    points = rich_report(scores).tasks[0].budget_curve
    page = rich_page(scores)
    chart = page.charts["chart-budget"]
    assert len(chart.of("curve")) == 3
    for name, role in {
        "hide positives and push negatives": "both",
        "hide positives": "hide_positives",
        "push negatives": "push_negatives",
    }.items():
        (line,) = [it for it in chart.of("curve") if it.title == name]
        left = [getattr(it, role) for it in points]
        # A ten-thousandth of a logarithmic axis of two decades is a thousandth of the number.
        assert line.x == pytest.approx([it.images for it in points], rel=2e-3)
        assert line.y == close(left)
        for reading, it, ap in zip(chart.readings, points, left, strict=True):
            assert reading.startswith(f"{it.images} images\n")
            assert f"\n{name} {ap:.4f}" in reading
    assert rows_after(page, "h-budget")[1:] == [
        f"{p.images} {p.both:.4f} {p.hide_positives:.4f} {p.push_negatives:.4f}" for p in points
    ]


def test_a_budget_of_one_size_is_drawn():
    point = BudgetPoint(images=10, hide_positives=0.8, push_negatives=0.7, both=0.6)
    chart = rich_page(rich_scores(), budget_curve=[point]).charts["chart-budget"]
    assert chart.texts("x tick") == ["10"]
    assert [it.get("x") for it in chart.plot.iter("text") if it.text == "10"] == ["50.00%"]
    assert sorted(it.y[0] for it in chart.of("dot")) == close([0.6, 0.7, 0.8])


def test_groups_stand_worst_first_with_their_gaps_in_words():
    scores = rich_scores()
    task = rich_report(scores).tasks[0]
    page = rich_page(scores)
    with_figures = [group for group in task.groups.groups if group.clean]
    ordered = sorted(with_figures, key=lambda it: it.worst_case_at_prevalence)
    chart = page.charts["chart-groups"]
    assert chart.names == [group.group for group in ordered]
    for name, kind, figures in (
        ("Clean: ", "dot", [it.clean.ap for it in ordered]),
        ("Clean, at", "diamond", [it.clean_at_prevalence for it in ordered]),
        ("Worst case: ", "dot", [it.worst_case.ap for it in ordered]),
        ("Worst case, at", "diamond", [it.worst_case_at_prevalence for it in ordered]),
    ):
        marks = chart.of(kind, name)
        assert [it.x[0] for it in marks] == close(figures)
        assert [round(it.y[0]) for it in marks] == list(range(len(ordered)))
        assert all(f"{ap:.4f}" in it.title for it, ap in zip(marks, figures, strict=True))
    rows = rows_after(page, "h-groups")[1:]
    assert len(rows) == len(ordered) + 1
    for row, group in zip(rows, ordered, strict=False):
        clean, worst = group.clean, group.worst_case
        assert row == (
            f"{group.group} {group.examples} {group.positives} "
            f"{100 * group.positives / group.examples:.3g} % "
            f"{clean.ap:.4f} {clean.interval.low:.3f} to {clean.interval.high:.3f} "
            f"{worst.ap:.4f} {worst.interval.low:.3f} to {worst.interval.high:.3f} "
            f"{group.clean_at_prevalence:.4f} {group.worst_case_at_prevalence:.4f}"
        )
    assert rows[-1] == "seen once 1 1 100 % too few too few"
    gap = task.groups.worst_case_gap
    words = page.all("p", class_="gap")[0].words
    assert words.startswith(f"Worst case: a gap of {gap.difference.value:.3f}")
    assert f"between {gap.best} , the best group, and {gap.worst} , the worst" in words


def test_groups_without_any_figures_are_only_listed():
    scores = rich_scores()
    alone = rich_report(scores).tasks[0].groups.groups[-1]
    page = rich_page(scores, groups=Groups(groups=[alone], clean_gap=None, worst_case_gap=None))
    assert "chart-groups" not in page.charts
    assert page.all("p", class_="gap") == []
    assert rows_after(page, "h-groups")[1:] == ["seen once 1 1 100 % too few too few"]


@pytest.mark.slow
def test_of_many_groups_the_worst_are_drawn_and_all_are_listed():
    scores = rich_scores(examples=4000)
    report = rich_report(scores, groups=[f"group {i}" for i in range(50)])
    page = Page(render(report, [scores]))
    assert len(page.charts["chart-groups"].names) == 40
    assert len(rows_after(page, "h-groups")) == 1 + 50 + 1
    assert "The 40 worst of 51 groups" in page.one("main").words


def test_each_attack_shows_the_drop_of_the_report_with_its_interval():
    scores = rich_scores()
    task = rich_report(scores).tasks[0]
    rows = rows_after(rich_page(scores), "h-table")
    for row, figure in zip(rows[2:5], task.attacks.values(), strict=True):
        drop = figure.drop
        assert f"{drop.value:.4f} {drop.interval.low:.3f} to {drop.interval.high:.3f}" in row


@pytest.mark.parametrize(
    ("verdict", "answer", "tally", "shown"),
    [
        ("trustworthy", "Yes: trustworthy", "5 checks: 4 passed, 1 skipped", []),
        (
            "caution",
            "With caution",
            "6 checks: 1 with caution, 4 passed, 1 skipped",
            ["! caution The gradient"],
        ),
        (
            "not trustworthy",
            "No: not trustworthy",
            "7 checks: 1 failed, 1 with caution, 4 passed, 1 skipped",
            ["✕ fail The same images", "! caution The gradient"],
        ),
    ],
)
def test_the_headline_says_whether_the_figures_may_be_used(verdict, answer, tally, shown):
    scores = rich_scores()
    report = rich_report(scores, verdict=verdict)
    page = Page(render(report, [scores]))
    assert page.one("h2", id="h-verdict").words.endswith(answer)
    assert tally in page.one("header").words
    card = page.all("section", class_="status")[0].words
    assert [card.find(words) > 0 for words in shown] == [True] * len(shown)
    assert sorted(shown, key=card.find) == shown
    (checks,) = page.all("ul", class_="checks")
    after = page.elements[page.elements.index(checks) :]
    own = takewhile(lambda element: element.tag != "section", after)
    items = [element.words for element in own if element.tag == "li"]
    assert len(items) == len(report.trust.checks)
    for check in report.trust.checks:
        (item,) = [words for words in items if words.startswith(check.name.replace("_", " "))]
        assert f" {check.status} {check.message}" in item
        for figure in check.figures.values():
            assert f" {figure:.4g}" in item


def test_requirements_are_counted_and_the_failed_come_first():
    scores = rich_scores()
    report = rich_report(scores)
    page = Page(render(report, [scores]))
    assert page.one("h2", id="h-thresholds").words.endswith("2 of 3 requirements met")
    card = page.all("section", class_="status")[1].words
    for it in report.thresholds:
        assert f"{'pass' if it.passed else 'fail'} {it.threshold} , got {it.got:.6g}" in card
    assert card.index("fail") < card.index("pass")


ABSENCES = {
    "certified_floor": ([], []),
    "epsilon_curve": (["h-epsilon"], ["chart-epsilon"]),
    "budget_curve": (["h-budget"], ["chart-budget"]),
    "groups": (["h-groups"], ["chart-groups"]),
    "operating": (["h-operating"], []),
    "trust": (["h-verdict", "h-checks"], []),
    "thresholds": (["h-thresholds"], []),
}


@pytest.mark.parametrize("absent", ABSENCES)
def test_what_is_absent_leaves_nothing_behind_and_the_rest_as_it_was(absent):
    scores = rich_scores()
    report = rich_report(scores)
    nothing = [] if absent in ("budget_curve", "thresholds") else None
    if absent in ("trust", "thresholds"):
        lacking = report.model_copy(update={absent: nothing})
    else:
        task = report.tasks[0].model_copy(update={absent: nothing})
        lacking = report.model_copy(update={"tasks": [task]})
    full, page = Page(render(report, [scores])), Page(render(lacking, [scores]))
    headings, charts = ABSENCES[absent]
    assert set(full.ids) - set(page.ids) == {*headings, *charts}
    assert set(full.charts) - set(page.charts) == set(charts)
    assert all(e.attributes["aria-labelledby"] in page.ids for e in page.all("section"))
    assert "None" not in page.one("main").text


# --- several tasks --------------------------------------------------------------------------------


def random_ap(positives: int, examples: int) -> float:
    """Mean AP of all orders: at each rank, one positive there and its share of those above it."""
    ranks = np.arange(1, examples + 1)
    return float(np.mean((1 + (ranks - 1) * (positives - 1) / (examples - 1)) / ranks))


@cache
def ten_tasks() -> tuple[Report, list[Scores]]:
    scores = [scores_of(200 + 20 * i, share=0.1 + 0.02 * i, evidence=12) for i in range(10)]
    for i, task in enumerate(scores):  # each next one is ranked better
        for logits in (task.clean, *task.attacked.values()):
            logits += (2 + 0.1 * i) * task.targets
    return rich_report(*scores, names=[f"class {i}" for i in range(10)]), scores


def test_several_tasks_begin_with_their_means_and_a_table_weakest_first():
    report, scores = ten_tasks()
    page = Page(render(report, scores))
    clean, worst = report.mean["clean"], report.mean["worst_case"]
    chance = np.mean([task.chance for task in report.tasks])
    assert page.one("p", class_="verdict").text == (
        f"Keeps {worst:.2f} of {clean:.3f} mean AP over 10 tasks under the worst of 3 attacks; "
        f"mean chance is {chance:.2f}."
    )
    ordered = sorted(report.tasks, key=lambda task: task.worst_case.ap)
    assert [float(e.text) for e in page.all("div", class_="big")] == pytest.approx(
        [clean, worst, ordered[0].worst_case.ap, chance], abs=0.005
    )
    chart = page.charts["chart-tasks"]
    assert chart.names == [task.positive[0] for task in ordered]
    for i, (task, chance) in enumerate(zip(ordered, chart.of("bar"), strict=True)):
        assert chance.title == f"chance {task.chance:.4f}"
        assert chance.x == close([task.chance] * 2)
        for dots, figure in (("Clean", task.clean), ("Worst case", task.worst_case)):
            assert chart.of("dot", dots)[i].points == [close((figure.ap, i))]
    rows = rows_after(page, "h-tasks")
    assert len(rows) == 12
    for row, task in zip(rows[1:11], ordered, strict=True):
        assert row.startswith(f"{task.positive[0]} {task.positives} of {task.examples} ")
        figures = (task.clean, *task.attacks.values(), task.worst_case, task.certified_floor)
        for figure in figures:
            assert f" {figure.ap:.4f} " in row
        assert row.endswith(f" {task.clean.ap - task.worst_case.ap:.4f}")
    means = [report.mean[name] for name in ("clean", "pgd", "apgd", "transfer", "worst_case")]
    assert " ".join(f"{mean:.4f}" for mean in means) in rows[-1]


@pytest.mark.slow
def test_several_tasks_that_rank_by_chance_are_said_to():
    report, scores = ten_tasks()
    report = report.model_copy(update={"mean": report.mean | {"worst_case": 0.1}})
    assert "0.10 of" in (words := Page(render(report, scores)).one("p", class_="verdict").text)
    chance = np.mean([random_ap(task.positives, task.examples) for task in report.tasks])
    assert f"no better than random rankings, whose mean AP is {chance:.2f}." in words


def test_every_task_has_its_own_closed_part_with_ids_of_its_own():
    report, scores = ten_tasks()
    page = Page(render(report, scores))
    assert len(page.ids) == len(set(page.ids))
    assert all(e.attributes["aria-labelledby"] in page.ids for e in page.all("section"))
    assert {a.attributes["href"][1:] for a in page.all("a")} <= set(page.ids)
    parts = page.all("details", class_="task")
    assert [part.attributes.get("open") for part in parts] == [None] * 10
    for i, (part, task) in enumerate(zip(parts, report.tasks, strict=True), 1):
        worst, clean = re.match(rf"{task.positive[0]} (\S+) of (\S+) ", part.words).groups()
        assert float(worst) == pytest.approx(task.worst_case.ap, abs=0.005)
        assert float(clean) == pytest.approx(task.clean.ap, abs=0.005)
        assert {chart for chart in page.charts if chart.startswith(f"task-{i}-")} == {
            f"task-{i}-chart-{name}"
            for name in ("ap", "curves", "scores", "epsilon", "groups", "budget")
        }


def test_ten_tasks_weigh_little_more_than_one():
    scores = scores_of(2000, evidence=12, shape=(3, 64, 64))
    one = render(rich_report(scores), [scores])
    ten = render(rich_report(*[scores] * 10, names=["t"] * 10), [scores] * 10)
    assert one.count("<img ") == 12 * 3
    assert ten.count("<img ") == 10 * 4 * 3
    assert len(ten.encode()) < 5 * len(one.encode())


def test_of_many_tasks_the_weakest_are_drawn_and_all_are_listed():
    scores = [scores_of(60, evidence=2)] * 45
    report = rich_report(*scores, names=[f"class {i}" for i in range(45)], groups=("a", "b"))
    page = Page(render(report, scores))
    assert len(page.charts["chart-tasks"].names) == 40
    assert len(rows_after(page, "h-tasks")) == 1 + 45 + 1
    assert "The 40 weakest of 45 tasks" in page.one("main").words
    assert len(page.all("img")) == 45 * 3


# --- a page of strangers' names -------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [1, 3])
def test_hostile_names_change_no_element_of_the_page(tasks):
    tame = [scores_of(300, attacks=("pgd", "b", "c", "d", "e", "f", "g"), evidence=6)] * tasks
    groups = ("a", "b", "c", "d", "e", "f")
    report = rich_report(
        *tame,
        names=("t",) * tasks,
        groups=groups,
        verdict="not trustworthy",
        warnings=("w",),
    )
    checks = [
        check.model_copy(update={"figures": {"a": 0.5, "b": 0.5} if check.figures else {}})
        for check in report.trust.checks
    ]
    report = report.model_copy(
        update={
            "trust": report.trust.model_copy(update={"checks": checks}),
            "tasks": [
                report.tasks[0],
                *(
                    task.model_copy(update={"certified_floor": None, "no_certified_floor": "w"})
                    for task in report.tasks[1:]
                ),
            ],
        }
    )
    expected = Page(render(report, tame))
    page = Page(hostile_page(tasks=tasks))
    assert [e.tag for e in page.elements] == [e.tag for e in expected.elements]
    assert [list(e.attributes) for e in page.elements] == [
        list(e.attributes) for e in expected.elements
    ]
    shown = page.one("main").text
    assert all(name in shown for name in HOSTILE), "a name is not shown as it is"
    assert {element.attributes["alt"] for element in page.all("img")} >= {
        f"{name}, clean" for name in HOSTILE[: 6 if tasks == 1 else 1]
    }


def test_names_in_figures_are_text():
    charts = Page(hostile_page()).charts
    everything = " ".join(HOSTILE)
    assert charts["chart-ap"].names == ["Clean", "pgd", *HOSTILE, "Worst case", "Certified floor"]
    assert [it.title for it in charts["chart-curves"].of("curve")][2:-1] == HOSTILE
    assert all(f"\n{name} " in charts["chart-curves"].readings[0] for name in HOSTILE)
    assert sorted(charts["chart-groups"].names) == sorted(HOSTILE)
    assert Page(hostile_page(tasks=2)).charts["chart-tasks"].names == [everything] * 2


def test_nothing_is_fetched():
    page = Page(hostile_page())
    for element in page.elements:
        for name, value in element.attributes.items():
            assert not name.startswith(("on", "xlink"))
            if name == "href":
                assert value.startswith("#")
            elif name in ("src", "srcset", "action", "data", "poster", "background"):
                assert value.startswith("data:image/png;base64,")
    style = page.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    assert {e.tag for e in page.elements} & {"link", "iframe", "object", "form", "base"} == set()


def test_the_policy_allows_no_script_and_there_is_none():
    page = Page(hostile_page())
    (policy,) = [
        e.attributes["content"]
        for e in page.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.all("script") == []


@pytest.mark.slow
def test_a_page_of_100000_scores_weighs_less_than_half_a_megabyte():
    scores = scores_of(100_000, evidence=12, shape=(3, 32, 32))
    assert len(render(report_of(scores), [scores]).encode()) < 500_000


@pytest.mark.parametrize("broken", ["tasks", "attacks", "examples"])
def test_scores_of_another_report_are_refused(broken):
    scores = scores_of(40)
    report = report_of(scores)
    if broken == "tasks":
        report = report.model_copy(update={"tasks": report.tasks * 2})
    elif broken == "attacks":
        scores = scores_of(40, attacks=("pgd", "apgd"))
    else:
        scores = scores_of(41)
    expected = {"tasks": "2 tasks, got 1", "attacks": "transfer", "examples": "40.*got 41"}
    with pytest.raises(DataError, match=expected[broken]):
        render(report, [scores])


# --- everybody can read it ------------------------------------------------------------------------


def test_pictures_tables_and_regions_carry_their_names():
    page = page_of(scores_of(20))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    assert all(e.attributes["aria-labelledby"] in ids for e in page.all("section"))
    assert all(e.attributes["alt"] for e in page.all("img"))
    assert {e.attributes["scope"] for e in page.all("th")} == {"col", "row"}
    charts = page.all("div", class_="chart")
    assert len(charts) == 3
    assert all(e.attributes["role"] == "img" and e.attributes["aria-label"] for e in charts)


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(mode):
    style = page_of(scores_of(20)).one("style").text
    light, dark = (
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    colors = light if mode == "light" else dark
    assert set(light) == set(dark)

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(colors[a]), luminance(colors[b])))
        return (high + 0.05) / (low + 0.05)

    for text in ("--ink", "--muted", "--clean", "--worst", "--good", "--caution", "--bad"):
        assert contrast(text, "--card") >= 4.5
    assert contrast("--ink", "--page") >= 4.5
    assert contrast("--muted", "--page") >= 4.5
    assert contrast("--ink", "--warning") >= 4.5
    for mark in (*(f"--attack-{i}" for i in range(1, 6)), "--positives", "--negatives"):
        assert contrast(mark, "--card") >= 3  # graphics, not text


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


WIDE = {"width": 1280, "height": 900}
VIEWS = {
    "light": {"viewport": WIDE},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True},
}


@contextmanager
def opened(browser: Any, file: Path, **view: Any) -> Iterator[Any]:
    """A tab with this page, of which nobody complains and which asks for nothing else."""
    context = browser.new_context(**view)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    yield tab
    assert complaints == []
    asked = {url.partition("#")[0] for url in requests if not url.startswith("data:")}
    assert asked == {file.as_uri()}
    context.close()


OUTSIDE = """() => [...document.querySelectorAll(".chart")].flatMap(chart => {
    const box = chart.getBoundingClientRect();
    return [...chart.querySelectorAll("circle, path, rect, text, line, .names span")]
        .map(it => [it.outerHTML, it.getBoundingClientRect()])
        .filter(([, own]) => own.height + own.width > 0)
        .filter(([, own]) => own.left < box.left - 2 || own.right > box.right + 2
            || own.top < box.top - 2 || own.bottom > box.bottom + 2)
        .map(([mark, own]) => `${chart.id}: ${mark} ${JSON.stringify(own)}`);
})"""
OVERLAPS = """() => [...document.querySelectorAll(".chart")].flatMap(chart => {
    const boxes = [...chart.querySelectorAll(".tick, .names bdi, .value, .title")]
        .map(it => [it.textContent, it.getBoundingClientRect()]).filter(([, box]) => box.width);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
        .filter(([, q]) => p.left < q.right && q.left < p.right && p.top < q.bottom - 3
            && q.top < p.bottom - 3)
        .map(([b]) => `${chart.id}: ${a} over ${b}`));
})"""


@pytest.mark.browser
@pytest.mark.parametrize(
    ("kind", "view"),
    [
        ("plain", "light"),
        ("plain", "narrow"),
        ("rich", "light"),
        ("rich", "dark"),
        ("rich", "narrow"),
        ("hostile", "dark"),
        ("hostile", "narrow"),
    ],
)
def test_a_browser_draws_every_figure_without_a_complaint_or_a_request(
    browser, tmp_path: Path, kind, view
):
    scores = scores_of(400, evidence=12, shape=(3, 32, 32))
    if kind == "hostile":
        page = hostile_page()
    else:
        report = report_of(scores) if kind == "plain" else rich_report(scores)
        page = render(report, [scores])
    (file := tmp_path / "report.html").write_text(page, encoding="utf-8")
    with opened(browser, file, **VIEWS[view]) as tab:
        assert tab.locator(".chart > .plot > svg").count() == (3 if kind == "plain" else 6)
        assert tab.evaluate(OVERLAPS) == []
        assert tab.evaluate(OUTSIDE) == []
        assert tab.locator(".chart a, .chart img").count() == 0
        assert tab.evaluate(CUT_OFF) == []
        assert tab.evaluate("window.pwned") is None
        assert (
            tab.evaluate("document.documentElement.scrollWidth") <= VIEWS[view]["viewport"]["width"]
        )


CUT_OFF = """() => [...document.querySelectorAll(".scroll")]
    .filter((region) => region.scrollWidth > region.clientWidth)
    .map((region) => region.innerText)
"""  # tables that are wider than their place


@pytest.mark.browser
@pytest.mark.parametrize("view", ["dark", "narrow"])
def test_a_link_to_a_task_opens_it(browser, tmp_path: Path, view):
    report, scores = ten_tasks()
    (file := tmp_path / "report.html").write_text(render(report, scores), encoding="utf-8")
    with opened(browser, file, **VIEWS[view]) as tab:
        assert tab.locator("details.task[open]").count() == 0
        tab.click("#task-3-h")
        assert tab.locator("#task-3-chart-ap").bounding_box()["width"] > 250
        tab.click('a[href="#task-8-figures"]')  # in the table of all tasks
        tab.locator("#task-8-chart-budget").wait_for(state="visible")
        assert tab.locator("details.task[open]").count() == 2
        assert tab.evaluate(CUT_OFF) == []
        assert (
            tab.evaluate("document.documentElement.scrollWidth") <= VIEWS[view]["viewport"]["width"]
        )
        tab.goto("about:blank")
        tab.goto(f"{file.as_uri()}#task-5-figures")
        tab.locator("#task-5-chart-budget").wait_for(state="visible")


@pytest.mark.browser
def test_pictures_for_the_documents_are_taken(browser, tmp_path: Path):
    scores = rich_scores()
    file = tmp_path / "page.html"
    file.write_text(render(rich_report(scores), [scores]), encoding="utf-8")
    written = take(file, tmp_path, browser=browser)
    names = ("light", "ap", "evidence", "epsilon", "budget", "groups", "checks", "dark")
    assert [path.name for path in written] == [f"page-{name}.png" for name in names]
    assert all(path.stat().st_size < 300_000 for path in written)
    light, dark = (Image.open(written[i]).convert("L") for i in (0, -1))
    assert light.size == dark.size == (1280, 1900)
    assert np.asarray(light).mean() > 200 > 60 > np.asarray(dark).mean()


@pytest.mark.browser
def test_figures_follow_the_reader_from_light_to_dark_and_to_paper(browser, tmp_path: Path):
    file = tmp_path / "report.html"
    scores = scores_of(100)
    file.write_text(render(report_of(scores), [scores]), encoding="utf-8")
    tab = browser.new_page(color_scheme="light")
    tab.goto(file.as_uri())
    seen = []
    for medium in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}):
        tab.emulate_media(**medium)
        drawn, asked = tab.evaluate(
            """() => [
                getComputedStyle(document.querySelector("#chart-curves .curve")).stroke,
                getComputedStyle(document.querySelector(".tile.clean .big")).color,
            ]"""
        )
        assert drawn == asked
        seen.append(drawn)
    # paper is light again
    assert seen == ["rgb(31, 95, 191)", "rgb(110, 168, 255)", "rgb(31, 95, 191)"]
    tab.close()


# --- a report of a real audit ---------------------------------------------------------------------


def test_the_page_of_an_audit_shows_what_scikit_learn_finds_in_its_scores(tmp_path: Path):
    report_file, scores_file = audited(tmp_path, required=["clean_ap >= 0.1"])
    (scores,) = load_scores(scores_file)
    targets = scores.targets
    found = {
        "Clean": scores.clean,
        **scores.attacked,
        "Worst case": worst_of(scores),
        "Certified floor": np.where(targets == 1, *scores.bounds),
    }
    expected = {name: average_precision_score(targets, it) for name, it in found.items()}
    assert len({round(ap, 4) for ap in expected.values()}) >= 4, "figures that cannot be mixed up"
    page = Page(report_file.with_suffix(".html").read_text(encoding="utf-8"))
    chart = page.charts["chart-ap"]
    assert chart.names == list(expected)
    for i, (name, ap) in enumerate(expected.items()):
        kind = "diamond" if name == "Certified floor" else "dot"
        assert chart.one(kind, f"{name}: AP {ap:.4f}").points == [close((ap, i))]
        (row,) = [row for row in rows_after(page, "h-table") if row.startswith(name)]
        assert f" {ap:.4f} " in row
    for name in list(found)[:-1]:
        recall, precision = page.charts["chart-curves"].curve(name)
        assert np.diff(recall) @ np.array(precision[1:]) == pytest.approx(expected[name], abs=2e-3)
    curve = page.charts["chart-epsilon"]
    for epsilon, logits in scores.curve.items():
        ap = average_precision_score(targets, logits)
        dot = curve.one("dot", f"robust AP, epsilon {epsilon:.4g}: AP {ap:.4f}")
        assert dot.points == [close((epsilon, ap))]
    groups = page.charts["chart-groups"]
    for name in groups.names:
        chosen = np.array(scores.groups) == name
        marks = [it for it in groups.of("dot") if round(it.y[0]) == groups.names.index(name)]
        for mark, logits in zip(marks, (scores.clean, worst_of(scores)), strict=True):
            ap = average_precision_score(targets[chosen], logits[chosen])
            assert f"AP {ap:.4f}" in mark.title
            assert mark.x == [close(ap)]
    # Each further image that is changed lowers the AP, down to the worst case at the most.
    budget = page.charts["chart-budget"]
    (both,) = [it for it in budget.of("curve") if it.title == "hide positives and push negatives"]
    assert both.y == sorted(both.y, reverse=True)
    assert both.y[-1] >= expected["Worst case"] - 2e-3
