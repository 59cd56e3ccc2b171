"""What a report holds for whoever signs it: statement, what was not assessed, clauses, origin."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from adap.core.audit.leakage import Leakage, audited_images
from adap.core.config.audits import AuditConfig, StatedAudit
from adap.core.errors import ConfigError
from adap.core.figures.clauses import CATALOGUE, WORDS, supported
from adap.core.figures.report import build_report
from adap.core.rendering.card import card
from adap.core.report import AuditedImages, Report
from adap.core.statement import Statement
from tests.core.pages import HOSTILE, Page
from tests.reports import config_of, report_of, scores_of, task_of

STATEMENT = {
    "purpose": "Decide whether the ranker may screen trucks at the gate.",
    "intended_use": "Still pictures of one camera, looked at by two people.",
    "threat_rationale": "8/255 is below what those people can see.",
    "attacker_goal": "Hide a truck among the pictures that nobody opens.",
    "attacker_knowledge": "The weights, which the maker publishes.",
    "tester": "R. Tester",
    "tested_on": "2026-11-29",
    "approver": "A. Prover",
    "approved_on": "2026-11-30",
}


@pytest.fixture(scope="module")
def scores():
    return scores_of()


@pytest.fixture(scope="module")
def task(scores):
    return task_of(scores)


def built(task: Any, *, images: AuditedImages | None = None, **asked: Any) -> Report:
    made = report_of([task])
    statement = asked.pop("statement", None)
    trust = asked.pop("trust", made.trust)
    config = config_of().model_copy(update=asked)
    return build_report(
        [task],
        config=config,
        provenance=made.provenance,
        trust=trust,
        images=images,
        statement=None if statement is None else Statement.model_validate(statement),
    )


# --- the statement --------------------------------------------------------------------------------


def test_a_statement_is_carried_as_it_is_and_changes_no_figure_and_no_hash(task):
    bare, stated = built(task), built(task, statement=STATEMENT)
    assert stated.statement is not None
    assert stated.statement.model_dump() == STATEMENT
    unstated = stated.model_dump(exclude={"statement", "clauses"})
    assert unstated == bare.model_dump(exclude={"statement", "clauses"})
    asked = StatedAudit.model_validate({"statement": STATEMENT})
    fields = {name: getattr(asked, name) for name in AuditConfig.model_fields}
    assert AuditConfig(**fields).sha256() == AuditConfig().sha256()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "expected at least one of purpose"),
        ({"purpose": "x" * 2001}, "at most 2000 characters"),
        ({"tester": "x" * 201}, "at most 200 characters"),
        ({"purpose": " "}, "expected text, got none"),
        ({"purpose": "up\u202edown"}, "got U+202E"),
        ({"approver": "a\x00b"}, "got U+0000"),
        ({"purpose": "two\nlines"}, "expected one paragraph"),
        ({"tester": 7}, "valid string"),
        ({"tested_on": "30.11.2026"}, "pattern"),
        ({"tested_on": "2026-02-30"}, "expected a date such as 2026-11-30, got '2026-02-30'"),
        ({"approved_on": "2026-11-30"}, "expected an approver beside approved_on"),
        (
            {"approver": "A", "tested_on": "2026-11-30", "approved_on": "2026-11-29"},
            "expected approved_on from 2026-11-30 on",
        ),
        ({"aproved_by": "A"}, "no such field; did you mean approved_on?"),
    ],
)
def test_a_statement_over_its_bounds_is_refused_in_a_sentence(fields, said):
    with pytest.raises(ValidationError) as refused:
        StatedAudit.model_validate({"statement": fields})
    assert said in str(refused.value)


def test_the_library_takes_a_statement_and_refuses_a_bad_one_before_it_attacks():
    import torch

    import adap

    def never(images: Any) -> Any:
        raise AssertionError("the model was asked")

    images, labels = torch.rand(8, 3, 4, 4), torch.tensor([0, 1] * 4)
    with pytest.raises(ConfigError, match=r"purpose: .* got U\+202E"):
        adap.audit(never, images, labels, statement={"purpose": "a\u202eb"})
    with pytest.raises(ConfigError, match=r"expected statement= as a mapping .* got str"):
        adap.audit(never, images, labels, statement="for the board")  # type: ignore[arg-type]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    audit = adap.audit(
        network, images, labels, attacks="noise", checks="off", statement=STATEMENT, progress=False
    )
    assert audit.report.statement == Statement.model_validate(STATEMENT)
    seen = audit.report.images
    assert seen is not None
    assert (seen.lowest, seen.highest) == (images.min().item(), images.max().item())
    assert audit.report.provenance.model.origin == "in process"


# --- what was not assessed ------------------------------------------------------------------------

ALWAYS = {"beyond_the_threat", "shift", "poisoning", "theft", "privacy", "availability", "system"}


def topics(report: Report) -> set[str]:
    return {it.topic for it in report.not_assessed}


def test_what_no_audit_looks_at_is_always_said(task):
    seen = AuditedImages(examples=60, lowest=0, highest=1, equal=0, seen_in_training=0)
    left = ALWAYS | {"corruptions"}
    assert topics(built(task, images=seen)) == left | {"attacks_not_run"}  # the floor lies below
    floor = task.certified_floor.model_copy(update={"ap": task.worst_case.ap})
    proven = task.model_copy(update={"certified_floor": floor})
    assert topics(built(proven, images=seen)) == left


def test_what_an_audit_leaves_out_is_added_to_what_it_says_nothing_about(task):
    bare = task.model_copy(update={"certified_floor": None, "groups": None})
    noise = AuditConfig.model_validate({"attacks": ["noise"]}).attacks
    report = built(bare, trust=None, sample=40, attacks=noise)
    assert topics(report) >= ALWAYS | {
        *("attacks_not_run", "white_box", "groups", "seen_in_training"),
        *("outside_the_sample", "the_audit_itself"),
    }
    said = {it.topic: it.what for it in report.not_assessed}
    assert "linf 0.1" in said["beyond_the_threat"]
    assert "sample of 40" in said["outside_the_sample"]


def test_a_floor_that_proves_nothing_leaves_stronger_attacks_unassessed(task):
    loose = task.certified_floor.model_copy(update={"proven_pairs": 0.0})
    report = built(task.model_copy(update={"certified_floor": loose}))
    assert "attacks_not_run" in topics(report)
    places = {it.where for clause in report.clauses for it in clause.supported_by}
    assert not any("certified_floor" in place for place in places)


# --- clauses --------------------------------------------------------------------------------------


def at(value: Any, place: str) -> list[Any]:
    """What stands at a place of the JSON, by its letters alone."""
    found = [value]
    for step in place.replace("[]", ".*").split("."):
        if step == "*":
            found = [inner for one in found for inner in one]
        else:
            found = [one[step] for one in found if isinstance(one, dict) and step in one]
    return found


def test_every_clause_points_at_evidence_that_is_there(task):
    seen = AuditedImages(
        examples=60, lowest=0, highest=1, equal=0, in_other_splits=1, seen_in_training=0
    )
    report = built(task, images=seen, statement=STATEMENT)
    value = json.loads(report.model_dump_json())
    clauses = {(it.document, it.clause) for it in report.clauses}
    assert clauses == {(asked.document, asked.clause) for asked in CATALOGUE}
    used = set()
    for clause in report.clauses:
        for support in clause.supported_by:
            found = at(value, support.where)
            assert found, support.where
            there = [one not in (None, [], {}, "") for one in found]
            # of the groups one has no positives, and so no figures
            assert any(there) if "groups[]" in support.where else all(there), support.where
            used.add(support.where)
    assert used <= set(WORDS)
    assert {place for asked in CATALOGUE for place in (*asked.places, *asked.beside)} == set(WORDS)


def test_a_clause_without_evidence_is_left_out(task):
    bare = built(task.model_copy(update={"certified_floor": None, "groups": None}))
    clauses = {(it.document.split()[0], it.clause) for it in bare.clauses}
    assert ("ISO/IEC", "6 Formal methods") not in clauses
    assert ("NIST", "MEASURE 2.11") not in clauses
    assert not any("Principle 4" in clause for _, clause in clauses)
    assert ("NIST", "MEASURE 2.7") in clauses


def supports(report: Report) -> dict[str, set[str]]:
    """The places that support each clause."""
    return {it.clause: {one.where for one in it.supported_by} for it in report.clauses}


ON_ATTACKS = {"Article 15(5)", 'Section "Cybersecurity", model evasion', "MEASURE 2.7"}


@pytest.mark.parametrize("control", ["noise alone", "no pixel may change"])
def test_what_attacks_nothing_is_no_evidence_about_attacks(task, control):
    others = ("certified_floor", "smallest_changes", "universal")
    bare = task.model_copy(update=dict.fromkeys(others))
    if control == "noise alone":
        figure = task.attacks["pgd"].model_copy(update={"attack": {"name": "noise"}})
        report = built(bare.model_copy(update={"attacks": {"noise": figure}}))
    else:
        made = report_of([bare])
        config = made.provenance.config | {"threat": {"norm": "linf", "epsilon": 0.0}}
        provenance = made.provenance.model_copy(update={"config": config})
        report = made.model_copy(update={"provenance": provenance})
        report = report.model_copy(update={"clauses": supported(report)})
    found = supports(report)
    assert not ON_ATTACKS & set(found)
    places = set().union(*found.values())
    assert not any("attacks" in place or "worst_case" in place for place in places)
    assert set(supports(built(bare))) >= ON_ATTACKS


def test_smallest_changes_are_evidence_at_any_epsilon_and_a_shared_perturbation_above_none(task):
    made = report_of([task])
    config = made.provenance.config | {"threat": {"norm": "linf", "epsilon": 0.0}}
    provenance = made.provenance.model_copy(update={"config": config})
    still = supported(made.model_copy(update={"provenance": provenance}))
    places = {one.where for it in still if it.clause == "Article 15(5)" for one in it.supported_by}
    assert "tasks[].smallest_changes.kept_at_epsilon" in places
    assert "tasks[].universal" not in places
    assert "tasks[].universal" in supports(made)["Article 15(5)"]


def test_groups_without_a_gap_are_no_evidence_of_fairness_and_are_not_assessed(task):
    assert task.groups is not None
    assert "tasks[].groups.clean_gap" in supports(built(task))["MEASURE 2.11"]
    alone = task.groups.model_copy(
        update={"groups": task.groups.groups[1:2], "clean_gap": None, "worst_case_gap": None}
    )
    report = built(task.model_copy(update={"groups": alone}))
    assert "MEASURE 2.11" not in supports(report)
    assert "tasks[].groups.groups[].clean" in supports(report)["Principle 8"]
    said = {it.topic: it.what for it in report.not_assessed}
    assert "fewer than two" in said["groups"]


def test_that_no_image_was_seen_in_training_is_evidence_of_independence(task):
    seen = AuditedImages(
        examples=60, lowest=0, highest=1, equal=0, in_other_splits=0, seen_in_training=0
    )
    assert supports(built(task, images=seen))["Principle 4"] == {
        "images.seen_in_training",
        "images.in_other_splits",
    }
    validation = 'Section "Validation"'
    assert validation in supports(built(task, images=seen))
    some = supports(built(task, images=seen.model_copy(update={"seen_in_training": 2})))
    assert "Principle 4" in some
    assert validation not in some, "images of development"
    unknown = supports(built(task, images=seen.model_copy(update={"seen_in_training": None})))
    assert not {"Principle 4", validation} & set(unknown)


def test_nothing_says_that_a_clause_is_met(task):
    report = built(task, statement=STATEMENT)
    for text in (report.model_dump_json(), card(report)):
        assert "compl" not in text.lower().replace("complete", "")


# --- what the images show -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_values_of_pixels_are_told_in_the_unit_of_epsilon(dtype):
    levels = np.random.default_rng(0).integers(13, 201, size=(2000, 1, 2, 2))
    levels[7, 0, 0, 0], levels[1999, 0, 1, 1] = 5, 250
    images = levels.astype(np.uint8) if dtype == np.uint8 else (levels / 255).astype(np.float32)
    found = audited_images(images, np.arange(2000), Leakage(2000, 3, None, equal=4))
    assert found.lowest == pytest.approx(5 / 255)
    assert found.highest == pytest.approx(250 / 255)
    assert (found.equal, found.in_other_splits, found.seen_in_training) == (4, 3, None)


# --- on paper and on screen -----------------------------------------------------------------------


def test_page_and_card_tell_all_of_it(scores, task):
    from adap.core.rendering.page import render

    seen = AuditedImages(examples=60, lowest=0.25, highest=0.75, equal=2, in_other_splits=1)
    report = built(task, images=seen, statement=STATEMENT)
    page = Page(render(report, [scores]))
    texts = (" ".join(page.one("main").words.split()), card(report).replace("\\", ""))
    for text in texts:
        for part in STATEMENT.values():
            assert part in text
        for it in report.not_assessed:
            assert it.what in text
        for clause in report.clauses:
            assert clause.clause in text
            assert clause.asks in text
        assert "epsilon is 20 % of that range" in text  # 0.1 of the half from 0.25 to 0.75
        assert "2 of 60 equal an earlier one" in text
    headings = [it.words for it in page.all("h2")]
    assert headings.count("What was not assessed") == 1
    assert headings.count("Statement") == 1


def test_a_hostile_statement_is_text(scores, task):
    from adap.core.rendering.page import render

    words = " ".join(HOSTILE).replace("\u202e", "")
    hostile = built(task, statement=dict.fromkeys(("purpose", "approver"), words[:200]))
    plain = built(task, statement=dict.fromkeys(("purpose", "approver"), "words"))
    pages = [Page(render(report, [scores])) for report in (hostile, plain)]
    assert [e.tag for e in pages[0].elements] == [e.tag for e in pages[1].elements]
    assert words[:200].split()[0] in pages[0].one("main").words
    assert "<script" not in card(hostile)
