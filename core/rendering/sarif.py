"""A report as SARIF 2.1.0, so that code scanning shows what a model does not keep.

A result is what somebody must look at: a threshold that is not met and a check that failed are
errors, a check that calls for caution is a warning. What was met and what passed is no result, as
viewers show each result as an alert; a check that was skipped is a note of the run. Rules name all
that was asked, and properties hold every figure.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, 27 March 2020.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from adap.core.figures.gate import got_text, in_json, measured
from adap.core.report import Check, Report, ThresholdResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"

_LEVELS: dict[str, Literal["error", "warning"]] = {"fail": "error", "caution": "warning"}

_LITERALLY = str.maketrans({"{": "{{", "}": "}}", "\\": r"\\", "[": r"\[", "]": r"\]"})


@dataclass(frozen=True)
class _Asked:
    """One thing that was asked, and what is to be said about it, if anything."""

    rule: str
    describes: str
    level: Literal["error", "warning", "note"] | None
    message: str


def sarif(report: Report) -> str:
    """The JSON, with one run. Names come from strangers and stay text."""
    provenance = report.provenance
    asked = [*_thresholds(report.thresholds, measured(report)), *_checks(report)]
    ended = datetime.fromisoformat(provenance.created_at).astimezone(UTC)
    run = {
        "tool": {
            "driver": {
                "name": "AdAP",
                "version": provenance.versions.get("adap", "unknown"),
                "rules": [
                    {"id": it.rule, "shortDescription": _message(it.describes)} for it in asked
                ],
            }
        },
        "invocations": [
            {
                "executionSuccessful": True,
                "endTimeUtc": ended.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "toolExecutionNotifications": [
                    {
                        "level": "note",
                        "message": _message(it.message),
                        "associatedRule": {"id": it.rule, "index": index},
                    }
                    for index, it in enumerate(asked)
                    if it.level == "note"
                ],
            }
        ],
        "artifacts": [
            {
                "location": {"uri": provenance.model.id},
                "description": _message(f"model {provenance.model.name}"),
                "hashes": {"sha-256": provenance.model.sha256},
            },
            {
                "location": {"uri": provenance.dataset.id},
                "description": _message(f"data set {provenance.dataset.name}"),
                "hashes": {"sha-256": provenance.dataset.sha256},
            },
        ],
        "results": [
            _result(it, index, report)
            for index, it in enumerate(asked)
            if it.level in ("error", "warning")
        ],
        "properties": {
            "figures": in_json(measured(report)),
            "config_sha256": provenance.config_sha256,
            "scores_sha256": provenance.scores_sha256,
            "seed": provenance.seed,
            "versions": provenance.versions,
        },
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _result(asked: _Asked, index: int, report: Report) -> dict[str, Any]:
    """The fingerprint is of what was asked of which model, so that an alert stays the same one."""
    model = report.provenance.model
    same = f"{asked.rule}\n{asked.describes}\n{model.name}\n{report.provenance.dataset.name}"
    return {
        "ruleId": asked.rule,
        "ruleIndex": index,
        "level": asked.level,
        "message": _message(asked.message),
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": model.id, "index": 0}},
                "logicalLocations": [{"name": model.name, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"asked/v1": hashlib.sha256(same.encode()).hexdigest()},
    }


def _message(text: str) -> dict[str, str]:
    """A message in which nothing is a placeholder (3.11.5) or a link (3.11.6)."""
    return {"text": text.translate(_LITERALLY)}


def _thresholds(results: Sequence[ThresholdResult], found: dict[str, float]) -> Iterator[_Asked]:
    for number, result in enumerate(results, 1):
        got = (
            f"got {got_text(result)}" if result.figure in found else "the report has no such figure"
        )
        yield _Asked(
            rule=f"threshold/{number}",
            describes=result.threshold,
            level=None if result.passed else "error",
            message=f"Expected {result.threshold}, {got}.",
        )


def _checks(report: Report) -> Iterator[_Asked]:
    checks: Sequence[Check] = [] if report.trust is None else report.trust.checks
    for check in checks:
        yield _Asked(
            rule=f"trust/{check.name}",
            describes=f"Check of the audit itself: {check.name.replace('_', ' ')}",
            level="note" if check.status == "skipped" else _LEVELS.get(check.status),
            message=check.message,
        )
