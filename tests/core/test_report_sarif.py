"""The SARIF form of a report, held against the rules of the standard.

The judge of its structure is sarif-schema-2.1.0.json of OASIS, whose rules are written out here as
far as they concern what we write, closed against everything else.
"""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator, FormatChecker

from adap.core.rendering.sarif import sarif
from adap.core.report import Report
from tests.reports import CHECKS, report_of, scores_of, task_of


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def many(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


TEXT = {"type": "string"}
MESSAGE = closed("text", text={"type": "string"})
INDEX = {"type": "integer", "minimum": 0}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
URI = {"type": "string", "format": "uri-reference", "pattern": r"^[!#-;=?-Z_a-z~]+$"}
LOCATION = closed("uri", uri=URI, index=INDEX)
DATE = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}  # 3.9: in UTC, with Z
SCHEMA = closed(
    "version runs $schema",
    **{"$schema": {"type": "string", "format": "uri"}, "version": {"const": "2.1.0"}},
    runs=many(
        closed(
            "tool results",
            tool=closed(
                "driver",
                driver=closed(
                    "name",
                    name=TEXT,
                    version=TEXT,
                    rules=many(closed("id", id=TEXT, shortDescription=MESSAGE), uniqueItems=True),
                ),
            ),
            invocations=many(
                closed(
                    "executionSuccessful",
                    executionSuccessful={"type": "boolean"},
                    endTimeUtc=DATE,
                    toolExecutionNotifications=many(
                        closed(
                            "message",
                            level=LEVEL,
                            message=MESSAGE,
                            associatedRule=closed("", id=TEXT, index=INDEX),
                        )
                    ),
                )
            ),
            artifacts=many(
                closed(
                    "",
                    location=LOCATION,
                    description=MESSAGE,
                    hashes={"type": "object", "additionalProperties": TEXT},
                ),
                uniqueItems=True,
            ),
            results=many(
                closed(
                    "message",
                    ruleId=TEXT,
                    ruleIndex=INDEX,
                    level=LEVEL,
                    message=MESSAGE,
                    locations=many(
                        closed(
                            "",
                            physicalLocation=closed("artifactLocation", artifactLocation=LOCATION),
                            logicalLocations=many(
                                closed("", name=TEXT, kind=TEXT), uniqueItems=True
                            ),
                        )
                    ),
                    partialFingerprints={"type": "object", "additionalProperties": TEXT},
                )
            ),
            properties={"type": "object"},
        )
    ),
)


def run_of(report: Report) -> dict[str, Any]:
    """The run, after its structure was held against the schema and its indices followed."""
    log = json.loads(sarif(report))
    Draft7Validator(SCHEMA, format_checker=FormatChecker()).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
    for note in run["invocations"][0]["toolExecutionNotifications"]:
        assert rules[note["associatedRule"]["index"]] == note["associatedRule"]["id"]
    found: dict[str, Any] = run
    return found


@pytest.fixture(scope="module")
def task():
    return task_of(scores_of())


def test_what_is_not_met_is_a_result_and_what_is_met_is_none(task):
    asked = ["worst_case_ap >= 0.1", "worst_case_ap >= 0.9", "trust >= caution"]
    report = report_of([task], required=asked)
    run = run_of(report)
    rules = [
        (rule["id"], rule["shortDescription"]["text"]) for rule in run["tool"]["driver"]["rules"]
    ]
    assert [text for _, text in rules[:3]] == asked
    assert [name for name, _ in rules[3:]] == [f"trust/{check.name}" for check in CHECKS]
    said = {it["ruleId"]: (it["level"], it["message"]["text"]) for it in run["results"]}
    assert said == {
        "threshold/2": ("error", f"Expected worst_case_ap >= 0.9, got {task.worst_case.ap!r}."),
        "threshold/3": ("error", "Expected trust >= caution, got not trustworthy."),
        "trust/monotone": ("warning", "It rises once."),
        "trust/repeatable": ("error", "The scores differ."),
    }
    (invocation,) = run["invocations"]
    assert invocation["endTimeUtc"] == "2026-09-03T12:12:08Z", "in UTC"
    notes = [it["message"]["text"] for it in invocation["toolExecutionNotifications"]]
    assert notes == ["There is no surrogate."]
    assert run["properties"]["figures"]["worst_case_ap"] == task.worst_case.ap
    hashes = [artifact["hashes"]["sha-256"] for artifact in run["artifacts"]]
    provenance = report.provenance
    assert hashes == [provenance.model.sha256, provenance.dataset.sha256]


def test_an_alert_stays_the_same_when_only_the_figure_moves(task):
    worse = task.model_copy(
        update={"worst_case": task.worst_case.model_copy(update={"ap": task.worst_case.ap / 2})}
    )
    asked = ["worst_case_ap >= 0.9", "clean_ap >= 1"]
    prints = [
        [it["partialFingerprints"] for it in run_of(report_of([one], required=asked))["results"]]
        for one in (task, worse)
    ]
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[0][1]


def test_where_all_is_met_there_is_a_run_without_results(task):
    run = run_of(report_of([task], required=["clean_ap >= 0"], trust=None))
    assert run["results"] == []


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("</script>\x00\u202e", "</script>\x00\u202e"),
        ('"}],"results":[{"', r'"}}\],"results":\[{{"'),
        (r"{0} [x](http://e) \[", r"{{0}} \[x\](http://e) \\\["),
    ],
)
def test_names_of_strangers_are_neither_json_nor_placeholders_nor_links(name: str, written: str):
    report = report_of([task_of(scores_of(), positive=[name])], name=name)
    run = run_of(report)
    assert run["artifacts"][0]["description"]["text"] == f"model {written}"
    assert len(run["results"]) == 3
