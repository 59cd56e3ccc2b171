"""`adap report verify` on reports that the service's own functions made, whole and tampered with.

The verifier shares no code with them: that the two agree on every figure is what is tested, and
that it notices whatever was changed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.verify import Line, NotAReportError, greedy, verify
from core.ranking import average_precision
from core.scores import load_scores, save_scores
from tests.client.conftest import Adap
from tests.reports import stored

pytestmark = pytest.mark.xdist_group("service")

REQUIRED = (
    *("worst_case_ap >= 0.1", "worst_case_ap >= 0.9", "class 0.strong_ap < 0.5"),
    *("trust >= caution", "certified_floor > 0", "group_gap < 0.5", "clean_ap_low > 0.1"),
    *("worst_case_ap_at_prevalence > 0", "drop < 1", "chance > 0"),
)
# What the scores cannot tell: names and hashes of others, and what only the model can show.
TAKEN_AS_REPORTED = re.compile(
    r"tasks/\d/(positive|resamples|certified_floor/method|no_certified_floor|"
    r"epsilon_curve/attack|groups/groups/\d/(clean|worst_case)/(interval|tied)|"
    r"groups/\w+_gap/difference/interval)"
    r"|warnings|trust/checks|version|thresholds/\d/figure"
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


@pytest.fixture(scope="module", params=[1, 2], ids=["one task", "two tasks"])
def audit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report and the bytes of its scores."""
    folder = tmp_path_factory.mktemp("audit")
    report, scores = stored(folder, tasks=request.param, required=REQUIRED)
    return json.loads(report.read_text()), scores.read_bytes()


def test_a_report_of_our_own_functions_is_borne_out(audit: Any) -> None:
    report, content = audit
    lines = verify(report, content)
    assert wrong(lines) == []
    figures = [line.figure.rpartition(": ")[2] for line in lines]
    for path in ("clean.ap", "attacks.strong.drop.value", "worst_case.won", "certified_floor.ap"):
        assert figures.count(path) == len(report["tasks"])
    assert "budget_curve.3.both" in figures
    assert "operating.worst_case.tpr_at_fpr" in figures
    assert "groups.night.worst_case_at_prevalence" in figures


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
            holder[key] = value + (0.25 if "interval" in path else 1e-6)
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


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_attacker_takes_what_trying_everything_would_take(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = np.arange(14) % 2
    clean = random.integers(0, 6, 14).astype(np.float64)  # many ties
    worst = clean - (2 * targets - 1) * random.integers(0, 5, 14)
    logits, expected = clean.copy(), [average_precision(clean, targets)]
    while True:
        tried = []
        for i in range(14):
            changed = logits.copy()
            changed[i] = worst[i]
            tried.append((average_precision(changed, targets), i))
        lowest, chosen = min(tried)
        if lowest >= expected[-1] - 1e-12:
            break
        logits[chosen] = worst[chosen]
        expected.append(lowest)
    left = greedy(clean, worst, targets, steps=14)
    # Images of equal cost may be taken in another order: each step is the best one all the same.
    assert left[1] == pytest.approx(expected[1])
    assert left[-1] == pytest.approx(average_precision(worst, targets)) or len(left) == 15
    assert len(left) >= 3


# --- the command ----------------------------------------------------------------------------------


def test_the_command_verifies_files_without_a_service(adap: Adap, tmp_path: Path) -> None:
    report, scores = stored(tmp_path)
    nowhere = "--url=http://127.0.0.1:1"
    run = adap("report", "verify", "--report", report, "--scores", scores, nowhere)
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
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
