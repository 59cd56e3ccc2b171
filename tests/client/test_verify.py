"""`adap report verify` on reports that the library and the service make, whole and tampered with.

The verifier shares no code with them: that the two agree on every figure is what is tested, and
that it notices whatever was changed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adap.client.verify.book import Line, NotAReportError
from adap.client.verify.reports import verify
from adap.client.verify.scores import greedy
from adap.core.audit.checks.judging import Judged
from adap.core.audit.checks.planned import DEPTHS, plan_runs
from adap.core.audit.checks.scoring import batch_independent, repeatable
from adap.core.audit.checks.searches import (
    black_box_weaker,
    converged,
    monotone,
    noise_weaker,
    reaches_floor,
    restarts,
)
from adap.core.audit.checks.units import eight_bit
from adap.core.audit.checks.verdicts import merge
from adap.core.config.attacks import PGDAttack
from adap.core.config.threats import Threat
from adap.core.figures.budget import greedy_changes
from adap.core.figures.ranking import average_precision
from adap.core.report import Check
from adap.core.scores import Scores, load_scores, save_scores
from tests.client.conftest import Adap
from tests.reports import audited, report_of, scores_of, stored, task_of

REQUIRED = (
    *("worst_case_ap >= 0.1", "worst_case_ap >= 0.9", "class 0.strong_ap < 0.5"),
    *("trust >= caution", "certified_floor > 0", "group_gap < 0.5", "clean_ap_low > 0.1"),
    *("worst_case_ap_at_prevalence > 0", "drop < 1", "chance > 0"),
)
# What the scores cannot tell: names and hashes of others, and what only the model can show.
TAKEN_AS_REPORTED = re.compile(
    r"tasks/\d/(positive|resamples|certified_floor/method|no_certified_floor|"
    r"searched_on|"
    r"epsilon_curve/attack)"
    r"|warnings|trust/checks/\d/(name|message|figures|limits)|version|thresholds/\d/figure"
    r"|statement|not_assessed|clauses|images"  # words, which a signature covers
    r"|provenance/(model|dataset|surrogate|versions|device|created_at)"
)


def wrong(lines: list[Line]) -> list[str]:
    return [line.figure for line in lines if not line.ok]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, holder, key and value of everything in a report that is no list or object."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        below = f"{path}/{key}".removeprefix("/")
        if isinstance(inner, dict | list):
            yield from leaves(inner, below)
        else:
            yield below, value, key, inner


@pytest.fixture(scope="module", params=["audit", 1, 2], ids=["an audit", "one task", "two tasks"])
def audit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report and the bytes of its scores: of an attacked network, or of made up scores."""
    folder = tmp_path_factory.mktemp("audit")
    if request.param == "audit":
        report, scores = audited(folder, required=["worst_case_ap >= 0.9", "trust >= caution"])
    else:
        report, scores = stored(folder, tasks=request.param, required=REQUIRED)
    return json.loads(report.read_text()), scores.read_bytes()


def test_a_report_of_our_own_functions_is_borne_out(audit: Any) -> None:
    report, content = audit
    lines = verify(report, content)
    assert wrong(lines) == []
    figures = [line.figure.rpartition(": ")[2] for line in lines]
    for path in ("clean.ap", "attacks.strong.drop.value", "worst_case.won", "certified_floor.ap"):
        assert figures.count(path) == len(report["tasks"])
    budget = report["tasks"][0]["budget_curve"][0]["images"]
    assert f"budget_curve.{budget}.both" in figures
    assert "operating.worst_case.tpr_at_fpr" in figures
    assert "groups.night.worst_case_at_prevalence" in figures


def test_a_threshold_on_the_size_of_a_change_is_borne_out_by_the_least_over_tasks(
    tmp_path: Path,
) -> None:
    moved, unmoved = scores_of(seed=0), scores_of(seed=1)
    assert moved.smallest is not None
    assert unmoved.smallest is not None
    sizes = np.full(len(unmoved.smallest.sizes), np.inf)
    both = [moved, replace(unmoved, smallest=replace(unmoved.smallest, sizes=sizes))]
    save_scores(both, tmp_path / "scores.safetensors")
    content = (tmp_path / "scores.safetensors").read_bytes()
    report = report_of(
        [task_of(own, positive=[f"class {i}"]) for i, own in enumerate(both)],
        required=["smallest_least >= 0.06", "smallest_median >= 0.06"],
        scores_sha256=hashlib.sha256(content).hexdigest(),
    ).model_dump(mode="json")
    assert [(it["got"], it["passed"]) for it in report["thresholds"]] == [
        (0.02, False),
        (0.05, False),
    ]
    assert wrong(verify(report, content)) == []
    for result in report["thresholds"]:  # as if one task without a change were enough
        result |= {"got": None, "passed": True}
    assert wrong(verify(report, content)) == [
        f"threshold {result['threshold']}: got" for result in report["thresholds"]
    ]


@pytest.mark.parametrize("resamples", [1e-9, 1, 1e300, True, 10**40])
def test_so_few_resamples_that_any_interval_would_pass_are_noticed(
    audit: Any, resamples: Any
) -> None:
    report, content = deepcopy(audit[0]), audit[1]
    for task in report["tasks"]:
        task["resamples"] = resamples
        task["clean"]["interval"] |= {"low": 0.9999, "high": 1.0}
    found = wrong(verify(report, content))
    assert any(figure.endswith("resamples") for figure in found)
    assert any(figure.endswith("clean.interval") for figure in found)


def test_what_a_terminal_would_obey_is_written_out(tmp_path: Path) -> None:
    report_file, scores_file = stored(tmp_path, required=REQUIRED)
    report = json.loads(report_file.read_text())
    report["thresholds"][0] |= {"threshold": "\x1b[2Jx >= 0", "figure": "\x1b[2Jx"}
    lines = verify(report, scores_file.read_bytes())
    said = "".join(f"{line.figure}{line.reported}{line.recomputed}" for line in lines)
    assert "\x1b" not in said
    assert "\\x1b[2Jx" in said


@pytest.mark.parametrize("of_one", [6, 9], ids=["in one group each", "in several groups"])
def test_intervals_of_clusters_are_borne_out_and_those_of_single_examples_are_not(
    tmp_path: Path, of_one: int
) -> None:
    made = scores_of(240)
    order = np.argsort(made.clean)  # neighbours are alike, as images of one cluster are
    names = np.empty(240, dtype=object)
    names[order] = [f"patient {i // of_one}" for i in range(240)]
    groups = [("day", "night")[int(name.split()[1]) % 2] for name in names]
    if of_one == 9:
        groups = [("day", "night")[i % 2] for i in range(240)]
    clustered = replace(made, clusters=list(names), groups=groups)
    file = tmp_path / "scores"
    save_scores([clustered], file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    report = json.loads(
        report_of([task_of(clustered)], scores_sha256=digest, trust=None).model_dump_json()
    )
    assert wrong(verify(report, file.read_bytes())) == []
    plain = task_of(replace(clustered, clusters=None)).model_dump(mode="json")
    report["tasks"][0]["clean"]["interval"] = plain["clean"]["interval"]
    report["tasks"][0]["clusters"] = plain["clusters"]
    assert {"clusters", "clean.interval"} <= set(wrong(verify(report, file.read_bytes())))


def test_whatever_is_changed_in_the_report_is_noticed(tmp_path: Path) -> None:
    report_file, scores_file = stored(tmp_path, required=REQUIRED)
    original, content = json.loads(report_file.read_text()), scores_file.read_bytes()
    changed = 0
    for path, _, _, _ in leaves(original):
        if TAKEN_AS_REPORTED.match(path):
            continue
        report = deepcopy(original)
        _, holder, key, value = next(leaf for leaf in leaves(report) if leaf[0] == path)
        if isinstance(value, bool):
            holder[key] = not value
        elif isinstance(value, int | float):
            # Intervals of another bootstrap differ a little; figures do not.
            # Those of groups of seven positives are wide, and so is what two bootstraps may differ.
            small = "groups" in path
            holder[key] = value + ((1.0 if small else 0.25) if "interval" in path else 1e-6)
        elif value is None:
            holder[key] = 0.5
        else:
            holder[key] = "trustworthy" if path == "trust/verdict" else f"{value}!"
        try:
            lines = verify(report, content)
        except NotAReportError:
            continue
        assert wrong(lines), path
        changed += 1
    assert changed > 100


def test_a_wrong_figure_is_named(audit: Any) -> None:
    report, content = deepcopy(audit[0]), audit[1]
    report["tasks"][0]["attacks"]["strong"]["ap"] += 0.01
    (named, mean_is_fine) = wrong(verify(report, content)), report["mean"]["strong"]
    assert [name.rpartition(": ")[2] for name in named] == ["attacks.strong.ap"]
    assert mean_is_fine


def test_an_attack_or_a_point_that_was_left_out_is_noticed(audit: Any) -> None:
    report, content = deepcopy(audit[0]), audit[1]
    del report["tasks"][0]["attacks"]["strong"]
    report["tasks"][0]["epsilon_curve"]["points"].pop()
    report["thresholds"].pop()
    named = " ".join(wrong(verify(report, content)))
    for figure in ("attacks", "epsilon_curve", "thresholds"):
        assert figure in named


def test_a_changed_byte_of_the_scores_is_noticed(audit: Any) -> None:
    report, content = audit
    random = np.random.default_rng(0)
    for place in [0, 8, 9, len(content) - 1, *random.integers(0, len(content), 10)]:
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(8))
        assert "scores_sha256" in wrong(verify(report, bytes(changed))), place
    assert "scores file" in wrong(verify(report, content[:-1]))


def test_other_scores_are_noticed_though_their_hash_is_written_in(
    audit: Any, tmp_path: Path
) -> None:
    report = deepcopy(audit[0])
    path = tmp_path / "scores"
    path.write_bytes(audit[1])
    tasks = load_scores(path)
    tasks[0].attacked["strong"][0] -= 1  # a positive that was hurt more
    save_scores(tasks, path)
    report["provenance"]["scores_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    named = {name.rpartition(": ")[2] for name in wrong(verify(report, path.read_bytes()))}
    assert "attacks.strong.mean_margin_drop" in named
    assert "scores_sha256" not in named
    tasks[0].clean[0] = np.nan
    save_scores(tasks, path)
    assert "scores file" in wrong(verify(report, path.read_bytes()))


@pytest.mark.parametrize("report", [{}, {"version": 1}, {"version": 2}, {"version": 2, "tasks": 1}])
def test_what_is_no_report_is_refused(report: dict[str, Any]) -> None:
    with pytest.raises(NotAReportError, match="Expected"):
        verify(report, b"")


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_attacker_takes_what_the_services_takes(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = np.arange(24) % (2 + seed % 4) == 0
    clean = random.integers(0, 4 + seed, 24).astype(np.float64)  # many ties
    signs = 2 * targets.astype(np.int64) - 1
    worst = clean - signs * random.integers(0, 5, 24)
    left = greedy(clean, worst, targets.astype(np.int64), steps=24)
    expected = greedy_changes(clean, worst, targets.astype(np.int64), images=24)[1]
    assert left == pytest.approx(expected, abs=1e-12)
    assert left[-1] == pytest.approx(average_precision(worst, targets))


def test_each_step_of_the_greedy_attacker_is_the_best_one() -> None:
    random = np.random.default_rng(3)
    targets = np.arange(14) % 2
    clean = random.normal(size=14)
    worst = clean - (2 * targets - 1) * random.uniform(0, 2, 14)
    logits, left = clean.copy(), greedy(clean, worst, targets, steps=14)
    for step in left[1:]:
        tried = []
        for i in np.flatnonzero(logits != worst):
            changed = logits.copy()
            changed[i] = worst[i]
            tried.append((average_precision(changed, targets), i))
        if min(tried)[0] > left[-1] + 1e-12:  # else several are equal, and one of them is taken
            assert step == pytest.approx(min(tried)[0])
        logits[min(tried)[1]] = worst[min(tried)[1]]


# --- trust ----------------------------------------------------------------------------------------


def honest_checks(scores: Scores) -> list[Check]:
    """What the service's own checks could find on the examples behind these scores.

    Their judge is the service's own: its runs are made up, its figures and limits are not.
    """
    signs = 2 * scores.targets - 1
    runs = {
        **dict.fromkeys(("white_box", "restart", "eight_bit"), scores.clean - 2 * signs),
        **dict.fromkeys(("doubled", "same", "square"), scores.clean - 2.1 * signs),
        "noise": scores.clean - 0.1 * signs,
        "half": scores.clean - signs,
        "twice": scores.clean - 3 * signs,
        "floor": -1.0 * signs,
    }
    judged = Judged(scores.targets, scores.clean, runs)
    threat, attacks = Threat(epsilon=0.1), [PGDAttack()]
    plan = plan_runs(threat, attacks, DEPTHS["quick"], surrogate=False, box=1.0)
    repeats = repeatable(scores.clean, scores.clean, scores.clean, scores.clean)
    steady = {"shuffled": scores.clean, "alone": scores.clean}
    return [
        converged(judged, attacks, plan),
        restarts(judged, attacks),
        noise_weaker(judged),
        black_box_weaker(judged, "quick", threat.norm),
        monotone(judged, threat),
        reaches_floor(judged),
        repeats,
        batch_independent(scores.clean, repeats, **steady),
        eight_bit(judged, threat),
    ]


def with_checks(folder: Path, checks: list[Check]) -> tuple[dict[str, Any], bytes]:
    report_file, scores_file = stored(folder)
    report = json.loads(report_file.read_text())
    report["trust"] = merge({"class 0": checks}).model_dump(mode="json")
    return report, scores_file.read_bytes()


def test_what_the_checks_found_is_borne_out_as_far_as_it_can_be(tmp_path: Path) -> None:
    report, content = with_checks(tmp_path, honest_checks(scores_of()))
    lines = {line.figure: line for line in verify(report, content)}
    assert wrong(list(lines.values())) == []
    for name in ("noise_weaker", "black_box_weaker", "restarts", "repeatable", "eight_bit"):
        assert lines[f"trust.{name}.status"].recomputed == "pass"
    assert lines["trust.verdict"].recomputed == "trustworthy"
    assert "trust.monotone.ap_clean" in lines
    assert lines["trust.monotone by the audit's attacks"].ok


def test_the_check_of_a_function_without_gradients_is_borne_out(tmp_path: Path) -> None:
    scores, attacks = scores_of(), [PGDAttack()]
    judged = Judged(scores.targets, scores.clean, {"square": scores.clean})
    plan = plan_runs(Threat(epsilon=0.1), attacks, DEPTHS["quick"], surrogate=False, box=1.0)
    report, content = with_checks(tmp_path, [converged(judged, attacks, plan)])
    assert wrong(verify(report, content)) == []


def test_a_check_of_rounding_without_an_epsilon_is_no_report(tmp_path: Path) -> None:
    report, content = with_checks(tmp_path, honest_checks(scores_of()))
    report["provenance"]["config"]["threat"]["epsilon"] = 0
    with pytest.raises(NotAReportError):
        verify(report, content)


@pytest.mark.parametrize(
    ("name", "figures", "status"),
    [
        ("noise_weaker", {"share": 0.6}, "caution"),
        ("noise_weaker", {"share": 1.0}, "fail"),
        ("black_box_weaker", {"square_wins": 0.2}, "fail"),
        ("black_box_weaker", {"square_ap_lower": 0.06}, "caution"),  # more than 1 / 20
        ("monotone", {"rise": 0.06}, "caution"),
        ("reaches_floor", {"share_above_floor": 0.9}, "fail"),
        ("repeatable", {"share_of_spread": 0.1}, "fail"),
        ("batch_independent", {"scored_alone": 0.0}, "fail"),
        ("eight_bit", {"share_lost": 0.2}, "caution"),
        ("converged", {"gradient_attacks": 0.0}, "caution"),
    ],
)
def test_a_check_whose_status_does_not_follow_from_its_figures_is_named(
    tmp_path: Path, name: str, figures: dict[str, float], status: str
) -> None:
    report, content = with_checks(tmp_path, honest_checks(scores_of()))
    check = next(check for check in report["trust"]["checks"] if check["name"] == name)
    check["figures"] |= figures
    lines = [line for line in verify(report, content) if line.figure == f"trust.{name}.status"]
    assert [(line.reported, line.recomputed, line.ok) for line in lines] == [
        ("pass", status, False)
    ]
    check["status"] = status
    assert "trust.verdict" in wrong(verify(report, content))


def test_a_check_is_judged_by_the_limits_that_it_carries(tmp_path: Path) -> None:
    report, content = with_checks(tmp_path, honest_checks(scores_of()))
    check = next(c for c in report["trust"]["checks"] if c["name"] == "noise_weaker")
    assert check["limits"]["share"] == {"caution": 0.5, "fail": 0.9, "side": "above"}
    check["limits"]["share"] = {"caution": 0.01, "fail": 0.02, "side": "above"}
    assert "trust.noise_weaker.status" in wrong(verify(report, content))
    check["status"], report["trust"]["verdict"] = "fail", "not trustworthy"
    assert wrong(verify(report, content)) == []


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        *(("monotone", "ap_clean"), ("monotone", "rise"), ("reaches_floor", "floor")),
        *(("noise_weaker", "share"), ("converged", "ap_lower"), ("restarts", "ap_lower")),
        *(("eight_bit", "share_gained"), ("converged", "ap_left")),
        *(("eight_bit", "share_lost"), ("black_box_weaker", "square_ap_lower")),
    ],
)
def test_a_figure_of_a_check_that_the_scores_contradict_is_named(
    tmp_path: Path, name: str, figure: str
) -> None:
    report, content = with_checks(tmp_path, honest_checks(scores_of()))
    check = next(check for check in report["trust"]["checks"] if check["name"] == name)
    check["figures"][figure] -= 0.019
    assert f"trust.{name}.{figure}" in wrong(verify(report, content))


def test_attacks_of_the_audit_that_contradict_a_check_are_named(tmp_path: Path) -> None:
    report, _ = with_checks(tmp_path, honest_checks(scores_of()))
    scores = scores_of()
    signs = 2 * scores.targets - 1
    scores.attacked["noise"] = scores.clean - 3.0 * signs
    scores.attacked["square"] = scores.clean - 3.0 * signs
    scores.curve[0.1] = scores.clean + 3.0 * signs
    save_scores([scores], tmp_path / "other")
    for key in ("noise", "square"):
        entry = deepcopy(report["tasks"][0]["attacks"]["pgd"])
        report["tasks"][0]["attacks"][key] = entry | {"attack": {"name": key}}
    contradicted = {
        f"trust.{name} by the audit's attacks"
        for name in ("noise_weaker", "black_box_weaker", "monotone")
    }
    content = (tmp_path / "other").read_bytes()
    assert contradicted <= set(wrong(verify(report, content)))
    # a report that says itself what more queries found hides nothing
    report["warnings"].append("square, which does not see the model's gradients, did more damage.")
    assert contradicted - set(wrong(verify(report, content))) == {
        "trust.black_box_weaker by the audit's attacks"
    }


# --- the command ----------------------------------------------------------------------------------


def test_the_command_verifies_files_without_a_service(adap: Adap, tmp_path: Path) -> None:
    report, scores = stored(tmp_path)
    nowhere = "--url=http://127.0.0.1:1"
    run = adap("report", "verify", "--report", report, "--scores", scores, nowhere)
    assert (run.code, run.err) == (0, "")
    (line,) = run.out.splitlines()
    files = ("--report", report, "--scores", scores)
    run = adap("report", "verify", *files, "--details", nowhere)
    *lines, last = run.out.splitlines()
    assert last == line == f"{len(lines) - 1} figures agree with the stored scores."
    assert re.split(r"\s{3,}", lines[0].strip()) == ["figure", "reported", "recomputed"]
    assert all(line.rstrip().endswith("ok") for line in lines[1:])

    changed = json.loads(report.read_text())
    changed["tasks"][0]["worst_case"]["ap"] += 0.1
    report.write_text(json.dumps(changed))
    run = adap("report", "verify", "--report", report, "--scores", scores, "--json", nowhere)
    assert run.code == 1
    assert run.json["ok"] is False
    bad = [line["figure"] for line in run.json["figures"] if not line["ok"]]
    assert bad == ["worst_case.ap"]
    total = len(run.json["figures"])
    assert run.err == (f"1 of {total} figures do not come from these scores: worst_case.ap\n")

    for half in (["--report", report], [f"job_{'0' * 26}", "--report", report, "--scores", scores]):
        assert adap("report", "verify", *half).code == 2


def test_an_audit_of_the_service_is_verified(adap: Adap, audited: str) -> None:
    run = adap("report", "verify", audited, "--json")
    assert (run.code, run.json["ok"]) == (0, True), run.err
    assert "worst_case.ap" in [line["figure"] for line in run.json["figures"]]
