"""The JUnit form of a report, read back by the standard library's parser.

The judge of its structure is junit-10.xsd of Jenkins' xunit plugin, whose rules are written out
here as far as they concern what we write.
"""

import re
from xml.etree import ElementTree

import pytest

from adap.core.rendering.junit import junit
from adap.core.report import Report
from tests.reports import CHECKS, report_of, scores_of, task_of

# element: required attributes, optional attributes, children
SCHEMA = {
    "testsuites": ((), ("name", "time", "tests", "failures", "errors"), ("testsuite",)),
    "testsuite": (
        ("name", "tests", "failures", "errors"),
        *(("group", "time", "skipped", "timestamp", "hostname", "id", "package"),),
        ("testsuite", "properties", "testcase", "system-out", "system-err"),
    ),
    "properties": ((), (), ("property",)),
    "property": (("name", "value"), (), ()),
    "testcase": (
        *(("name",), ("time", "classname", "group")),
        ("skipped", "error", "failure", "system-out", "system-err"),
    ),
    "failure": ((), ("type", "message"), ()),
    "skipped": ((), ("type", "message"), ()),
    "system-out": ((), (), ()),
}
SUREFIRE_TIME = r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?"
HOSTILE = [
    "]]><script>&lt;'\"",
    "<![CDATA[ x ]]> -->",
    "a\x00b\x08c\x1bd\ufffe\nnew\tline",
    "&#0; &unknown; %entity;",
    "\u202egnp.exe \U0001f431",
]


def parsed(report: Report) -> ElementTree.Element:
    """The test suite, after its structure was held against the schema."""
    root = ElementTree.fromstring(junit(report).encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, children = SCHEMA[element.tag]
        assert set(required) <= set(element.attrib) <= {*required, *optional}, element.tag
        assert {child.tag for child in element} <= set(children), element.tag
        assert re.fullmatch(SUREFIRE_TIME, element.get("time", "0"))
        if element.tag not in ("failure", "skipped", "system-out"):
            assert not (element.text or "").strip()
    (suite,) = root
    cases = suite.findall("testcase")
    for holder in (root, suite):
        assert holder.get("tests") == str(len(cases))
        assert holder.get("failures") == str(len(suite.findall("testcase/failure")))
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    return suite


@pytest.fixture(scope="module")
def task():
    return task_of(scores_of())


def test_every_threshold_and_every_check_is_a_test_case(task):
    asked = ["worst_case_ap >= 0.1", "worst_case_ap >= 0.9", "trust >= caution"]
    suite = parsed(report_of([task], required=asked))
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [*asked, *(check.name for check in CHECKS)]
    outcome = {name: [child.tag for child in case] for name, case in cases.items()}
    assert outcome == {
        "worst_case_ap >= 0.1": [],
        "worst_case_ap >= 0.9": ["failure"],
        "trust >= caution": ["failure"],
        "converged": ["system-out"],
        "monotone": ["system-out"],
        "transfer": ["skipped"],
        "repeatable": ["failure"],
    }
    said = {name: [child.get("message") for child in case] for name, case in cases.items()}
    assert said["worst_case_ap >= 0.9"] == [
        f"expected worst_case_ap >= 0.9, got {task.worst_case.ap!r}"
    ]
    assert said["trust >= caution"] == ["expected trust >= caution, got not trustworthy"]
    assert said["repeatable"] == ["The scores differ."]
    assert cases["monotone"].findtext("system-out") == "caution: It rises once.\nrise 0.06"
    assert suite.get("timestamp") == "2026-09-03T12:12:08", "in UTC"


def test_a_figure_that_the_report_lacks_is_said_to_be_absent(task):
    bare = task.model_copy(update={"certified_floor": None})
    suite = parsed(report_of([bare], required=["certified_floor <= 1"]))
    failure = suite.find("testcase/failure")
    assert failure.get("message") == (
        "expected certified_floor <= 1, the report has no such figure"
    )


def test_the_properties_hold_what_reproduces_the_figures(task):
    report = report_of([task])
    suite = parsed(report)
    found = {item.get("name"): item.get("value") for item in suite.iter("property")}
    provenance = report.provenance
    assert found["model.sha256"] == provenance.model.sha256
    assert found["dataset.sha256"] == provenance.dataset.sha256
    assert found["config_sha256"] == provenance.config_sha256
    assert found["scores_sha256"] == provenance.scores_sha256
    assert (found["seed"], found["versions.torch"]) == ("7", "2.14.1")
    assert float(found["worst_case_ap"]) == task.worst_case.ap
    assert float(found["truck.certified_floor"]) == task.certified_floor.ap


def test_without_thresholds_and_checks_there_is_still_a_suite(task):
    assert len(parsed(report_of([task], required=[])).findall("testcase")) == len(CHECKS)
    assert parsed(report_of([task], required=[], trust=None)).findall("testcase") == []


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_text(name: str):
    task = task_of(scores_of(), positive=[name])
    checks = [check.model_copy(update={"message": name}) for check in CHECKS]
    report = report_of([task], name=name)
    trust = report.trust.model_copy(update={"checks": checks})
    suite = parsed(report.model_copy(update={"trust": trust}))
    shown = re.sub(r"[\x00\x08\x1b\ufffe]", "\ufffd", name)
    found = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert found["model.name"] == shown
    assert f"{shown}.drop" in found
    assert suite.findall("testcase")[-1].find("failure").text == shown
