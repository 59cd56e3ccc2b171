"""The pipeline that checks an uploaded data set. Free of torch, so that it starts in no time."""

from typing import Any

from core.resolve import DatasetSummary
from worker.intake.limits import IntakeLimits, Rejected
from worker.intake.reading import read_dataset, summarise
from worker.work import Reporter, Work


def validate_dataset(work: Work, reporter: Reporter) -> dict[str, Any]:
    """Open an uploaded data set and convert it to the stored form, or say all that is wrong."""
    try:
        image_set = read_dataset(
            work.inputs["upload"],
            limits=IntakeLimits(**work.request.get("limits", {})),
            on_progress=lambda done, total: reporter.progress("reading", done, total, "images"),
        )
    except Rejected as rejected:
        return {"rejected": rejected.reasons}
    image_set.save(work.folder / "content.safetensors")
    summary = summarise(image_set)
    summary["splits"] = summary["splits"] or {}
    return {
        "summary": DatasetSummary.model_validate(summary).model_dump(mode="json"),
        "files": {"content": "content.safetensors"},
    }
