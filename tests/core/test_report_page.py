"""The page of a report, read back by a parser, by scikit-learn and by a browser."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs
from sklearn.metrics import average_precision_score
from sklearn.metrics import precision_recall_curve as sklearn_curve

from core.errors import DataError
from core.report import Interval
from core.report_page import render
from core.scores import Evidence, Scores
from tests.core.browser import chromium, chromium_path
from tests.core.pages import HOSTILE, Page, report_of, scores_of, worst_of


def page_of(scores: Scores, **report: Any) -> Page:
    return Page(render(report_of(scores, **report), [scores]))


def hostile_scores() -> Scores:
    return scores_of(60, attacks=("pgd", *HOSTILE), evidence=6, ids=tuple(HOSTILE))


def hostile_page() -> str:
    scores = hostile_scores()
    everything = " ".join(HOSTILE)
    names = {"model": everything, "dataset": everything, "positive": everything}
    return render(report_of(scores, warnings=(everything,), **names), [scores])


# --- the figures are right ------------------------------------------------------------------------


def test_every_curve_is_the_one_of_scikit_learn():
    scores = scores_of(500)
    page = page_of(scores)
    for name, logits in {
        "Clean": scores.clean,
        "Worst case": worst_of(scores),
        **scores.attacked,
    }.items():
        recall, precision = page.curve(name)
        expected_precision, expected_recall, _ = sklearn_curve(scores.targets, logits)
        # scikit-learn lists every threshold; at one recall the highest precision ends at a positive
        tops: dict[float, float] = {}
        for r, p in zip(expected_recall, expected_precision, strict=True):
            tops[round(r, 6)] = max(p, tops.get(round(r, 6), 0))
        assert recall[0] == 0
        assert recall[1:] == sorted(recall[1:])
        assert set(recall) == set(tops)
        assert precision[1:] == pytest.approx([tops[r] for r in recall[1:]], abs=1e-6)
        area = np.diff(recall) @ np.array(precision[1:])
        assert area == pytest.approx(average_precision_score(scores.targets, logits), abs=1e-5)


def test_long_curves_keep_their_shape_with_few_points():
    scores = scores_of(20_000)
    page = page_of(scores)
    for name, logits in {"Clean": scores.clean, "Worst case": worst_of(scores)}.items():
        recall, precision = map(np.array, page.curve(name))
        expected_precision, expected_recall, _ = sklearn_curve(scores.targets, logits)
        on_curve = set(zip(expected_recall.round(6), expected_precision.round(6), strict=True))
        assert set(zip(recall[1:], precision[1:], strict=True)) <= on_curve
        assert len(recall) <= 401
        assert recall[-1] == 1
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
    recall, precision = page_of(scores).curve("Clean")
    expected = (np.cumsum(ranked) / np.arange(1, 1 + len(ranked)))[ranked == 1].round(6)
    assert len(recall) <= 401
    assert (recall[1], precision[1]) == (round(1 / len(expected), 6), expected[0])
    assert (recall[-1], precision[-1]) == (1, expected[-1])
    drawn = np.array(precision[1:])
    at = (np.array(recall[1:]) * len(expected)).round().astype(int) - 1
    for part in range(199):
        inside = np.arange(len(expected)) * 199 // len(expected) == part
        shown = drawn[inside[at]]
        assert shown.max() == expected[inside].max()
        assert shown.min() == expected[inside].min()


def test_the_ap_figure_shows_the_figures_of_the_report():
    scores = scores_of(200)
    report = report_of(scores, interval=Interval(low=0.3, high=0.9, level=0.95))
    task = report.tasks[0]
    chart = Page(render(report, [scores])).charts["chart-ap"]
    dots = {t["name"]: t for t in chart["data"] if t["mode"] == "markers"}
    expected = {"Clean": task.clean, **task.attacks, "Worst case": task.worst_case}
    assert {name: dot["x"] for name, dot in dots.items()} == {
        name: [figure.ap] for name, figure in expected.items()
    }
    for dot in dots.values():
        assert dot["x"][0] + dot["error_x"]["array"][0] == pytest.approx(0.9)
        assert dot["x"][0] - dot["error_x"]["arrayminus"][0] == pytest.approx(0.3)
    lines = [shape["x0"] for shape in chart["layout"]["shapes"]]
    assert lines == [task.chance, task.floor]
    # Row i of the ticks is the dot at height i.
    ticks = chart["layout"]["yaxis"]["ticktext"]
    assert {name: ticks[dot["y"][0]] for name, dot in dots.items()} == {n: n for n in dots}


def test_histograms_count_what_falls_between_their_edges():
    scores = scores_of(300)
    outlines = page_of(scores).charts["chart-scores"]["data"]
    assert len(outlines) == 4
    for outline in outlines:
        logits = scores.clean if outline["yaxis"] == "y" else worst_of(scores)
        chosen = logits[scores.targets == (outline["name"] == "positives")]
        edges = outline["x"][:-1]
        for i, share in enumerate(outline["y"][:-2]):
            last = i == len(edges) - 2
            inside = [edges[i] <= x < edges[i + 1] or (last and x >= edges[i]) for x in chosen]
            # One count of slack: edges are written with six decimals.
            assert share * len(chosen) == pytest.approx(sum(inside), abs=1.01)
        assert sum(outline["y"][:-2]) == pytest.approx(1, abs=1e-4)


def test_infinite_logits_are_drawn_in_the_outermost_bars():
    scores = scores_of(50, evidence=0)
    scores.clean[[0, 49]] = [np.inf, -np.inf]
    outlines = page_of(scores).charts["chart-scores"]["data"]
    assert all(np.isfinite(outline["x"]).all() for outline in outlines)
    positives = next(t for t in outlines if (t["name"], t["yaxis"]) == ("positives", "y"))
    assert positives["y"][-3] >= 1 / 10  # of ten positives


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
    cards = [li.words for li in page_of(scores).all("li") if "rank" in li.text]
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
    page = page_of(scores_of(50), interval=interval, **figures)
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
    assert float(chance) == 0.2


def test_the_table_has_a_row_for_every_set_of_images():
    scores = scores_of(200)
    page = page_of(scores)
    rows = [row.words for row in page.all("tr")]
    assert [row.split()[0] for row in rows[1:]] == ["Clean", "pgd", "apgd", "transfer", "Worst"]
    lost = average_precision_score(scores.targets, scores.clean) - average_precision_score(
        scores.targets, scores.attacked["apgd"]
    )
    assert f"{lost:.4f}" in rows[3]
    assert "steps 10, step_size default" in rows[3]
    assert "1.250" in rows[3]
    assert rows[1].endswith("200 100.0 %")


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


# --- a page of strangers' names -------------------------------------------------------------------


def test_hostile_names_change_no_element_of_the_page():
    tame = scores_of(60, attacks=("pgd", "b", "c", "d", "e", "f", "g"), evidence=6)
    expected = page_of(tame, warnings=("w",))
    page = Page(hostile_page())
    assert [e.tag for e in page.elements] == [e.tag for e in expected.elements]
    assert [list(e.attributes) for e in page.elements] == [
        list(e.attributes) for e in expected.elements
    ]
    shown = page.one("main").text
    assert all(name in shown for name in HOSTILE), "a name is not shown as it is"
    assert {element.attributes["alt"] for element in page.all("img")} >= {
        f"{name}, clean" for name in HOSTILE
    }


def test_names_in_figures_hold_no_markup_for_plotly():
    ticks = Page(hostile_page()).charts["chart-ap"]["layout"]["yaxis"]["ticktext"]
    assert len(ticks) == 3 + len(HOSTILE)
    assert not any("<" in tick or "$" in tick for tick in ticks)
    assert "&lt;a href='javascript:window.pwned=1'&gt;&amp;lt;b&amp;gt;&lt;/a&gt;" in ticks


def test_nothing_is_fetched():
    page = Page(hostile_page())
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith("data:image/png;base64,")
    style = page.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    assert {e.tag for e in page.elements} & {"link", "iframe", "object", "form", "base"} == set()


def test_the_policy_allows_exactly_the_two_scripts_of_the_page():
    page = Page(hostile_page())
    (policy,) = [
        e.attributes["content"]
        for e in page.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = [e.text for e in page.all("script") if "type" not in e.attributes]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    ]
    assert len(scripts) == 2
    assert directives["script-src"].split() == hashes
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"


def test_a_page_of_100000_scores_weighs_less_than_a_megabyte_beside_plotly():
    scores = scores_of(100_000, evidence=12, shape=(3, 32, 32))
    page = render(report_of(scores), [scores])
    assert page.count(get_plotlyjs()) == 1
    assert len(page.encode()) - len(get_plotlyjs().encode()) < 1_000_000


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

    for text in ("--ink", "--muted", "--clean", "--worst"):
        assert contrast(text, "--card") >= 4.5
    assert contrast("--ink", "--page") >= 4.5
    assert contrast("--muted", "--page") >= 4.5
    assert contrast("--ink", "--warning") >= 4.5
    for mark in (*(f"--attack-{i}" for i in range(1, 6)), "--positives", "--negatives"):
        assert contrast(mark, "--card") >= 3  # graphics, not text


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if chromium_path() is None:
        pytest.skip("needs Chromium on PATH, or named by CHROMIUM")
    with chromium() as started:
        yield started


@pytest.mark.browser
@pytest.mark.parametrize(
    "view",
    [
        {"viewport": {"width": 1280, "height": 900}},
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
        {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True},
    ],
    ids=["light", "dark", "narrow"],
)
@pytest.mark.parametrize("names", ["tame", "hostile"])
def test_a_browser_draws_every_figure_without_a_complaint_or_a_request(
    browser, tmp_path: Path, view, names
):
    file = tmp_path / "report.html"
    scores = scores_of(400, evidence=12, shape=(3, 32, 32))
    page = hostile_page() if names == "hostile" else render(report_of(scores), [scores])
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(**view)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector("#chart-scores .scatterlayer .trace")
    attacks = 7 if names == "hostile" else 3
    drawn = {
        chart: tab.locator(f"#{chart} svg.main-svg .scatterlayer .trace").count()
        for chart in ("chart-ap", "chart-curves", "chart-scores")
    }
    assert drawn == {
        "chart-ap": 3 + attacks,  # the falls, and a dot a row
        "chart-curves": 2 + attacks,
        "chart-scores": 4,
    }
    assert tab.locator(".chart a, .chart img").count() == 0
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    context.close()


@pytest.mark.browser
def test_figures_follow_the_reader_from_light_to_dark_and_to_paper(browser, tmp_path: Path):
    file = tmp_path / "report.html"
    scores = scores_of(100)
    file.write_text(render(report_of(scores), [scores]), encoding="utf-8")
    tab = browser.new_page(color_scheme="light")
    tab.goto(file.as_uri())

    def colors() -> tuple[str, str]:
        """Of the clean curve, and as the style sheet has it."""
        return tab.evaluate(
            """() => [
                getComputedStyle(document.querySelector("#chart-curves .js-line")).stroke,
                getComputedStyle(document.querySelector(".tile.clean .big")).color,
            ]"""
        )

    seen = set()
    for medium in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}):
        tab.emulate_media(**medium)
        tab.wait_for_function(
            """() => getComputedStyle(document.querySelector("#chart-curves .js-line")).stroke
                === getComputedStyle(document.querySelector(".tile.clean .big")).color"""
        )
        seen.add(colors()[0])
    assert seen == {"rgb(31, 95, 191)", "rgb(110, 168, 255)"}  # paper is light again
    tab.close()
