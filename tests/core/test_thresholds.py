"""Thresholds: what can be asked for, what is refused before any attack, and what is met."""

import contextlib
import itertools
import json
import operator
import time

import pytest
from pydantic import ValidationError

from adap.core import thresholds
from adap.core.config.audits import AuditConfig
from adap.core.config.data import Task
from adap.core.errors import ConfigError
from adap.core.figures import gate
from adap.core.rendering.sarif import sarif
from adap.core.report import Report, ThresholdResult, Trust, Verdict
from tests.reports import CONFIG, report_of, scores_of, task_of

TRUCK, CAT = Task(positive=["truck"]), Task(positive=["big cat", "lion"])


def config_of(*asked: str, **changes: object) -> AuditConfig:
    return AuditConfig.model_validate({**CONFIG, "thresholds": list(asked), **changes})


@pytest.fixture(scope="module")
def tasks() -> list:
    names = (TRUCK.positive, CAT.positive)
    return [task_of(scores_of(seed=i), positive=name) for i, name in enumerate(names)]


def results(report: Report) -> dict[str, tuple[float | None, bool]]:
    return {item.threshold: (item.got, item.passed) for item in report.thresholds}


# --- reading --------------------------------------------------------------------------------------


def test_a_threshold_is_a_figure_an_operator_and_a_number():
    read = thresholds.parse("  big <cat>.worst_case_ap>=4e-1 ")
    assert (read.figure, read.operator, read.bound) == ("big <cat>.worst_case_ap", ">=", 0.4)
    assert thresholds.parse("trust > not trustworthy").bound == 0
    assert thresholds.parse("drop < -0.5").bound == -0.5
    assert thresholds.parse("smallest_median >= 8/255").bound == 8 / 255
    assert thresholds.parse("truck.smallest_least > 12.5").bound == 12.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "such as `worst_case_ap >= 0.4`"),
        ("worst_case_ap", "such as `worst_case_ap >= 0.4`"),
        ("worst_case_ap = 0.4", "one of >=, <=, >, <"),
        (">= 0.4", "such as"),
        ("worst_case_ap => 0.4", "such as"),
        ("worst_case_ap >> 0.4", "such as"),
        ("worst_case_ap >=", "such as"),
        ("worst_case_ap >= 40", "between -1 and 1, as every figure is, got '40'"),
        ("worst_case_ap >= nan", "between -1 and 1"),
        ("worst_case_ap >= inf", "between -1 and 1"),
        ("worst_case_ap >= caution", "got 'caution'"),
        ("smallest_median >= -1", "size of a change, such as 0.02 or 8/255, got '-1'"),
        ("smallest_least >= inf", "size of a change"),
        ("smallest_least >= 8/0", "size of a change, such as 0.02 or 8/255, got '8/0'"),
        ("smallest_kept >= 8", "between -1 and 1"),
        ("trust >= 0.5", "not trustworthy, caution or trustworthy, got '0.5'"),
    ],
)
def test_what_cannot_be_read_is_refused_where_it_stands(text: str, said: str):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        thresholds.parse(text)
    with pytest.raises(ValidationError) as refused:
        config_of("clean_ap > 0", text)
    (error,) = refused.value.errors()
    assert error["loc"] == ("thresholds", 1)
    assert said in error["msg"]


def test_no_text_takes_long_to_read():
    """Of shapes that a pattern could dread: the square of their length would be minutes."""
    for shape in ("a>{}<", "{}", "a {} > 1", "a > {}1", "a > 1{}"):
        for sign in " \t\n<>=.a\u202e":
            begun = time.thread_time()
            with contextlib.suppress(ConfigError):
                thresholds.parse(shape.format(sign * 300_000))
            assert time.thread_time() - begun < 1


def test_a_threshold_is_short():
    figure = "c" * (thresholds.MAX_CHARACTERS - 4)
    assert thresholds.parse(f"{figure} >0").figure == figure.strip()
    with pytest.raises(ConfigError):
        thresholds.parse(f"{figure}  > 0")
    with pytest.raises(ValidationError, match="at most 200 characters"):
        config_of(f"{figure}  > 0")


# --- before any attack ----------------------------------------------------------------------------


def test_every_known_figure_is_measured_and_the_other_way_round(tasks: list):
    known = gate.known_figures(config_of(), [TRUCK, CAT])
    assert len(set(known)) == len(known)
    assert set(gate.measured(report_of(tasks))) == set(known)
    gate.refuse_unknown(config_of(*(f"{name} >= 0" for name in known[:50])), [TRUCK, CAT])


@pytest.mark.parametrize(
    ("asked", "changes", "said"),
    [
        ("worst_ap >= 0.4", {}, "did you mean worst_case_ap?"),
        ("apgd_ap >= 0.4", {}, "strong_ap"),
        ("truk.drop < 0.4", {}, "did you mean truck.drop?"),
        ("nonsense < 0.4", {}, "It has clean_ap, worst_case_ap, drop, chance, pgd_ap, strong_ap"),
        ("truck.trust < 0.4", {}, "expected a threshold on a figure"),
        ("certified_floor > 0.1", {"certify": "off"}, "`certify` is off"),
        ("truck.certified_floor > 0.1", {"certify": "off"}, "`certify` is off"),
        ("trust >= caution", {"checks": "off"}, "`checks` is off"),
        ("smallest_kept > 0", {"smallest_changes": None}, "smallest_kept needs `smallest_changes`"),
        ("truck.universal_ap > 0", {"universal": None}, "universal_ap needs `universal`"),
    ],
)
def test_an_unknown_figure_is_refused_with_what_is_known(asked: str, changes: dict, said: str):
    with pytest.raises(ConfigError) as refused:
        gate.refuse_unknown(config_of("drop < 1", asked, **changes), [TRUCK])
    assert said in str(refused.value)


def test_a_gap_between_groups_is_refused_where_there_are_no_groups():
    config = config_of("group_gap < 0.1")
    for grouped in (None, True):
        gate.refuse_unknown(config, [TRUCK], grouped=grouped)
    with pytest.raises(ConfigError, match="needs a data set with a `group` column"):
        gate.refuse_unknown(config, [TRUCK], grouped=False)


# --- after the attacks ----------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [">=", ">", "<=", "<"])
def test_a_figure_at_its_threshold_is_compared_exactly(tasks: list, sign: str):
    compare = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[sign]
    worst = tasks[0].worst_case.ap
    asked = {f"worst_case_ap {sign} {worst + step!r}": worst + step for step in (-1e-9, 0.0, 1e-9)}
    found = results(report_of(tasks[:1], required=list(asked)))
    assert found == {text: (worst, compare(worst, bound)) for text, bound in asked.items()}


def test_with_several_tasks_a_bare_name_is_the_mean(tasks: list):
    one, other = tasks
    asked = ["strong_ap > 0", "truck.strong_ap > 0", "big cat+lion.strong_ap > 0", "drop > 0"]
    found = results(report_of(tasks, required=[*asked, "clean_ap_low > 0", "group_gap < 1"]))
    aps = [task.attacks["strong"].ap for task in tasks]
    assert [found[text][0] for text in asked[:3]] == pytest.approx([sum(aps) / 2, *aps])
    assert found["drop > 0"][0] == pytest.approx(
        (one.clean.ap + other.clean.ap - one.worst_case.ap - other.worst_case.ap) / 2
    )
    lows = one.clean.interval.low + other.clean.interval.low
    assert found["clean_ap_low > 0"][0] == pytest.approx(lows / 2)
    gaps = [task.groups.worst_case_gap.difference.value for task in tasks]
    assert found["group_gap < 1"][0] == pytest.approx(sum(gaps) / 2)


def test_the_size_of_a_change_that_was_not_found_is_larger_than_any(tasks: list):
    asked = ["smallest_median >= 0.06", "smallest_median >= 999", "smallest_median <= 999"]
    small = tasks[0].smallest_changes  # of 0.02, 0.05, 0.05, 0.2, and one that was not found
    unmoved = small.model_copy(update={"median": None})
    report = report_of(tasks[:1], required=["smallest_least >= 0.02", *asked])
    assert results(report) == {
        "smallest_least >= 0.02": (0.02, True),
        **{text: (0.05, text == asked[-1]) for text in asked},
    }
    task = tasks[0].model_copy(update={"smallest_changes": unmoved})
    found = report_of([task], required=asked)
    assert results(found) == {text: (None, text != asked[-1]) for text in asked}
    assert Report.model_validate_json(found.model_dump_json()) == found
    assert gate.got_text(found.thresholds[0]) == "infinite, as no change was found"
    figures = json.loads(sarif(found))["runs"][0]["properties"]["figures"]
    assert (figures["smallest_median"], figures["smallest_kept"]) == (None, small.kept_at_epsilon)
    nobody = unmoved.model_copy(update={"kept_at_epsilon": None})
    bare = tasks[0].model_copy(update={"smallest_changes": nobody})
    assert results(report_of([bare], required=asked)) == dict.fromkeys(asked, (0.0, False))


def test_the_size_of_a_change_is_the_least_over_tasks(tasks: list):
    """In the task where nothing was found the search may have failed: it must not hide another."""
    named = [f"{size} >= 0.06" for size in ("smallest_least", "smallest_median")]
    asked = [*named, f"big cat+lion.{named[0]}", "smallest_kept >= 0.85"]
    small = tasks[1].smallest_changes
    none = small.model_copy(
        update={"least": None, "median": None, "found": 0, "curve": [], "kept_at_epsilon": 1.0}
    )
    unmoved = tasks[1].model_copy(update={"smallest_changes": none})
    expected = {
        named[0]: (0.02, False),
        named[1]: (0.05, False),
        asked[2]: (None, True),
        asked[3]: ((tasks[0].smallest_changes.kept_at_epsilon + 1) / 2, False),
    }
    assert results(report_of([tasks[0], unmoved], required=asked)) == expected
    assert results(report_of([unmoved, tasks[0]], required=asked)) == expected
    larger = small.model_copy(update={"least": 0.1, "median": 0.3})
    both = [tasks[0], tasks[1].model_copy(update={"smallest_changes": larger})]
    assert results(report_of(both, required=named)) == {
        text: (expected[text][0], False) for text in named
    }


@pytest.mark.parametrize("asked", ["certified_floor >= 0", "certified_floor <= 1"])
def test_a_figure_that_is_absent_in_the_end_is_not_met(tasks: list, asked: str):
    bare = tasks[1].model_copy(update={"certified_floor": None})
    assert results(report_of([bare], required=[asked])) == {asked: (0.0, False)}
    # one task without is enough for the mean
    assert results(report_of([tasks[0], bare], required=[asked])) == {asked: (0.0, False)}


def test_verdicts_are_ordered(tasks: list):
    order: list[Verdict] = ["not trustworthy", "caution", "trustworthy"]
    for (i, is_), (j, asked) in itertools.product(enumerate(order), repeat=2):
        report = report_of(
            tasks[:1], required=[f"trust >= {asked}"], trust=Trust(verdict=is_, checks=[])
        )
        assert results(report) == {f"trust >= {asked}": (i, i >= j)}
    unknown = report_of(tasks[:1], required=["trust <= trustworthy"], trust=None)
    assert results(unknown) == {"trust <= trustworthy": (0, False)}


@pytest.mark.parametrize(
    ("figure", "got", "shown"), [("trust", 2, "trustworthy"), ("drop", 0.5, "0.5000")]
)
def test_a_verdict_is_shown_by_its_name(figure: str, got: float, shown: str) -> None:
    result = ThresholdResult(threshold=f"{figure} > 0", figure=figure, got=got, passed=True)
    assert gate.got_text(result, ".4f") == shown
