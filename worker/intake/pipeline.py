"""The pipeline that checks an uploaded data set. Free of torch, so that it starts in no time."""

from collections import Counter
from typing import Any

from adap.core.datasets import Draft
from adap.core.resolve import DatasetSummary
from adap.worker.intake.decoding import Sizes
from adap.worker.intake.limits import Rejected
from adap.worker.intake.reading import read_dataset, summarise
from adap.worker.pipelines.requests import DatasetCheck
from adap.worker.work import Reporter, Work


def validate_dataset(work: Work[DatasetCheck], reporter: Reporter) -> dict[str, Any]:
    """Open an uploaded data set and convert it to the stored form, or say all that is wrong."""
    sizes: Sizes = Counter()
    draft = Draft(work.folder / "content.safetensors")
    resize = work.request.resize
    try:
        image_set = read_dataset(
            work.inputs["upload"],
            limits=work.request.limits,
            resize=resize,
            sizes=sizes,
            room=draft.room,
            on_progress=lambda done, total: reporter.progress("reading", done, total, "images"),
        )
    except Rejected as rejected:
        draft.discard()
        return {"rejected": rejected.reasons}
    draft.finish(image_set)
    summary = summarise(image_set, sizes=sizes, resize=resize)
    summary["splits"] = summary["splits"] or {}
    return {
        "summary": DatasetSummary.model_validate(summary).model_dump(mode="json"),
        "files": {"content": "content.safetensors"},
    }
