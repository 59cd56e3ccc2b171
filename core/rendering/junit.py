"""A report as JUnit XML: a test case a threshold and a check, so that a pipeline can gate a model.

A threshold that is not met and a check that failed are failures; a check that calls for caution
passes and says so in its output. The properties carry every figure, and the hashes, seeds and
versions that reproduce them. The form is the one that Jenkins validates (junit-10.xsd of its xunit
plugin), which GitLab, GitHub and pytest share.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from xml.etree import ElementTree

from adap.core.figures.gate import got_text, measured
from adap.core.report import Check, Provenance, Report, ThresholdResult

# XML 1.0 has no way to write these, not even as references.
_UNWRITABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The XML, with one test suite. Ids and names come from strangers; all of it is escaped."""
    found = measured(report)
    cases = [_threshold_case(result, found) for result in report.thresholds]
    cases += [_check_case(check) for check in ([] if report.trust is None else report.trust.checks)]
    provenance = report.provenance
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
    }
    suites = ElementTree.Element("testsuites", {"name": "adap", **counts})
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        {
            "name": _text(f"audit of {provenance.model.name} on {provenance.dataset.name}"),
            **counts,
            "skipped": str(sum(case.find("skipped") is not None for case in cases)),
            "time": "0",
            # The schemas that check it at all want no offset.
            "timestamp": datetime.fromisoformat(provenance.created_at)
            .astimezone(UTC)
            .strftime("%Y-%m-%dT%H:%M:%S"),
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in [*_origin(provenance), *((name, repr(found[name])) for name in found)]:
        pair = {"name": _text(name), "value": _text(value)}
        ElementTree.SubElement(properties, "property", pair)
    suite.extend(cases)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _threshold_case(result: ThresholdResult, found: dict[str, float]) -> ElementTree.Element:
    case = _case("adap.thresholds", result.threshold)
    if not result.passed:
        got = (
            f"got {got_text(result)}" if result.figure in found else "the report has no such figure"
        )
        _failure(case, f"expected {result.threshold}, {got}", kind="threshold")
    return case


def _check_case(check: Check) -> ElementTree.Element:
    case = _case("adap.trust", check.name)
    if check.status == "fail":
        _failure(case, check.message, kind="check")
    elif check.status == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": _text(check.message)})
    else:
        lines = [f"{check.status}: {check.message}"]
        lines += [f"{name} {value!r}" for name, value in check.figures.items()]
        ElementTree.SubElement(case, "system-out").text = _text("\n".join(lines))
    return case


def _case(classname: str, name: str) -> ElementTree.Element:
    attributes = {"classname": classname, "name": _text(name), "time": "0"}
    return ElementTree.Element("testcase", attributes)


def _failure(case: ElementTree.Element, message: str, *, kind: str) -> None:
    failure = ElementTree.SubElement(case, "failure", {"message": _text(message), "type": kind})
    failure.text = _text(message)


def _origin(provenance: Provenance) -> Iterator[tuple[str, str]]:
    """What reproduces the figures, under the paths that they have in the JSON report."""
    for name in ("model", "dataset", "surrogate"):
        part = getattr(provenance, name)
        if part is not None:
            for key, value in part.model_dump(exclude={"reading"}).items():
                if value is not None:
                    yield f"{name}.{key}", str(value)
            if part.reading is not None:
                yield f"{name}.reading", part.reading.summary
    for name in ("config_sha256", "scores_sha256", "seed", "device", "created_at"):
        yield name, str(getattr(provenance, name))
    for name, value in provenance.versions.items():
        yield f"versions.{name}", value


def _text(value: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value)
