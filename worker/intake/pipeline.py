"""The pipeline that checks an uploaded data set. Free of torch, so that it starts in no time."""

from typing import Any

from adap.core.datasets import Draft
from adap.core.resolve import DatasetSummary
from adap.worker.intake import limits
from adap.worker.intake.notes import Notes
from adap.worker.intake.reading import read_dataset, summarise
from adap.worker.pipelines.requests import DatasetCheck
from adap.worker.pipelines.results import DatasetOpened, Rejected
from adap.worker.work import Reporter, Work


def validate_dataset(work: Work[DatasetCheck], reporter: Reporter) -> DatasetOpened | Rejected:
    """Open an uploaded data set and convert it to the stored form, or say all that is wrong."""
    notes = Notes()
    draft = Draft(work.folder / "content.safetensors")
    options = work.request.options
    try:
        image_set = read_dataset(
            work.inputs["upload"],
            limits=work.request.limits,
            options=options,
            notes=notes,
            room=draft.room,
            scratch=work.folder,
            on_progress=lambda done, total: reporter.progress("reading", done, total, "images"),
        )
    except limits.Rejected as rejected:
        draft.discard()
        return Rejected(reasons=rejected.reasons)
    draft.finish(image_set)
    summary = summarise(image_set, notes=notes)
    summary["splits"] = summary["splits"] or {}
    summary["resize"] = options.resize
    note_repeated(summary, notes)
    summary["reading"] = reading = notes.reading()
    summary["warnings"] = [fact.message for fact in reading.facts]
    return DatasetOpened(
        summary=DatasetSummary.model_validate(summary), files={"content": "content.safetensors"}
    )


def note_repeated(summary: dict[str, Any], notes: Notes) -> None:
    """Note images that are there twice with other labels, or in two splits."""
    count = summary["examples"]
    if summary["conflicting"]:
        notes.fact(
            "caution",
            "conflicting_duplicates",
            f"{summary['conflicting']:,} duplicates have other labels than the image that they "
            "equal: no ranking can get both right",
            duplicates=summary["conflicting"],
            share=summary["conflicting"] / count,
        )
    if summary["across_splits"]:
        notes.fact(
            "caution",
            "duplicates_across_splits",
            f"{summary['across_splits']:,} of {count:,} images equal one in another split: a model "
            "trained on one of the splits has seen them; leave them out of the test split",
            duplicates=summary["across_splits"],
            share=summary["across_splits"] / count,
        )
