"""The work on stored models: checking an upload, exporting, trying a device."""

import torch

from adap.models import conversion, exporting, loading
from adap.models.costs import check_cost
from adap.models.errors import ModelFileError
from adap.models.wrappers import Scorer
from adap.worker.pipelines.inputs import device
from adap.worker.pipelines.requests import DeviceTrial, Export, ModelCheck
from adap.worker.pipelines.results import (
    DeviceTried,
    Exported,
    ExportSummary,
    ModelOpened,
    Rejected,
)
from adap.worker.work import Reporter, Work


def validate_model(work: Work[ModelCheck], reporter: Reporter) -> ModelOpened | Rejected:
    """Load an uploaded model into its architecture, try it, and store it with its manifest."""
    declared = work.request.declared
    try:
        reporter.progress("loading", 0, 2, "steps")
        limits = work.request.limits
        converted = conversion.to_safetensors(
            work.inputs["upload"], declared, folder=work.folder, limits=limits
        )
        if converted.network is not None and converted.manifest is not None:
            manifest = converted.manifest  # its cost was looked at before it was first run
            scorer = Scorer(converted.network, manifest.input, output=manifest.output).eval()
        else:
            scorer, manifest = loading.load(converted.path, converted.manifest, device="cpu")
            check_cost(scorer.network, manifest.input, limits)
        reporter.progress("probing", 1, 2, "steps")
        findings = loading.probe(scorer)
        if findings.problems:
            return Rejected(reasons=findings.problems)
        reading = converted.reading(manifest, findings.warnings)
        findings = findings.model_copy(
            update={
                "format": converted.format,
                "onnx_difference": converted.onnx_difference,
                "reading": reading,
                "warnings": [fact.message for fact in reading.cautions],
            }
        )
        content = work.folder / "content.safetensors"
        if converted.network is not None:  # it was written as it is kept
            converted.path.rename(content)
        else:
            loading.save(scorer, content, manifest)
    except ModelFileError as error:
        return Rejected(reasons=[str(error)])
    reporter.progress("probing", 2, 2, "steps")
    return ModelOpened(
        manifest=manifest, findings=findings, files={"content": "content.safetensors"}
    )


def export(work: Work[Export], reporter: Reporter) -> Exported:
    """Write a stored model as ONNX, and see that onnxruntime gives its logits."""
    reporter.progress("exporting", 0, 1, "models")
    scorer, manifest = loading.load(work.inputs["model"], None, device="cpu")
    difference = exporting.to_onnx(scorer, manifest, work.folder / "model.onnx")
    reporter.progress("exporting", 1, 1, "models")
    return Exported(summary=ExportSummary(onnx_difference=difference), files={"onnx": "model.onnx"})


def try_device(work: Work[DeviceTrial], _reporter: Reporter) -> DeviceTried:
    """Compute something on the device."""
    total = torch.ones(8, 8, device=device(work)).sum().item()
    return DeviceTried(works=total == 64)
