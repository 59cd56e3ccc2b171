"""What a page and a card tell whoever signs, in words: statement, origin, clauses."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from pydantic import TypeAdapter

from adap.core.config.deployment import PipelineStep, pipeline_in_words
from adap.core.config.threats import Threat
from adap.core.report import Clause, Report

_NAMES = {
    "purpose": "Purpose",
    "intended_use": "Intended use",
    "threat_rationale": "Why this threat",
    "attacker_goal": "Goal of the attacker",
    "attacker_knowledge": "Knowledge of the attacker",
    "tester": "Tested by",
    "tested_on": "Tested on",
    "approver": "Approved by",
    "approved_on": "Approved on",
}
_ORIGINS = {
    "trained here": "trained by this service",
    "uploaded": "uploaded",
    "in process": "handed over in the memory of the process that made the audit",
}
_STEPS: TypeAdapter[list[PipelineStep]] = TypeAdapter(list[PipelineStep])
NOTHING_SAID = "nothing says"


def stated(report: Report) -> list[tuple[str, str]]:
    """The statement, field by field, in the order in which it is read."""
    if report.statement is None:
        return []
    fields = report.statement.model_dump()
    return [(name, fields[key]) for key, name in _NAMES.items() if fields[key] is not None]


def pipeline(report: Report) -> str | None:
    """What images went through on their way to the model, in words; None where nothing."""
    steps = _STEPS.validate_python(report.provenance.config.get("pipeline", []))
    return pipeline_in_words(steps) if steps else None


def origin(report: Report) -> Iterator[tuple[str, str]]:
    """Where the model came from, and what the images show of themselves."""
    model = report.provenance.model
    yield "Model", _ORIGINS[model.origin] if model.origin else NOTHING_SAID
    images = report.images
    if images is None:
        return
    threat = Threat.model_validate(report.provenance.config["threat"])
    values = f"pixels from {images.lowest:.3g} to {images.highest:.3g}, in 0 to 1"
    spread = images.highest - images.lowest
    if threat.norm == "linf" and spread > 0:
        values += f"; epsilon is {100 * threat.epsilon / spread:.3g} % of that range"
    yield "Value range", values
    of = f"of {images.examples:,}"
    yield "Repeated images", f"{images.equal:,} {of} equal an earlier one"
    yield "In another split", _counted(images.in_other_splits, of, "no split was audited")
    yield "Seen in training", _counted(images.seen_in_training, of, NOTHING_SAID)
    if images.chose_the_epoch is not None:
        yield "Chose the epoch", _counted(images.chose_the_epoch, of, NOTHING_SAID)


def documents(report: Report) -> list[tuple[str, Sequence[Clause]]]:
    """The clauses of each document, both in their order."""
    return [
        (document, list(clauses))
        for document, clauses in groupby(report.clauses, key=lambda clause: clause.document)
    ]


def support(clause: Clause) -> str:
    """What supports an answer to it, in words."""
    return ", ".join(it.what for it in clause.supported_by)


def _counted(images: int | None, of: str, unknown: str) -> str:
    return unknown if images is None else f"{images:,} {of}"
