"""A model as ONNX, for use where there is no PyTorch."""

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from adap.models import onnx_files
from adap.models.graphs import GRAPH
from adap.models.header import MANIFEST_KEY, Manifest
from adap.models.onnx_fitting import Original
from adap.models.wrappers import Scorer

OPSET = 18


class _Outputs(nn.Module):
    """Pixels in [0, 1] to logits: the normalisation is part of what is exported."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, images: Tensor) -> Tensor:
        return self.scorer.outputs(images)


def to_onnx(scorer: Scorer, manifest: Manifest, path: Path) -> float:
    """Write `images` (batch, C, H, W) in [0, 1] to `logits` (batch, K), all tensors inside.

    The metadata `adap` hold the manifest that the file would be uploaded with. Returns the largest
    relative difference to onnxruntime; raises ModelFileError where the export does not give it.
    """
    import onnx

    network = _Outputs(copy.deepcopy(scorer).cpu()).eval()
    spec = manifest.input
    images = torch.rand(2, spec.channels, spec.height, spec.width)
    with warnings.catch_warnings():
        # the exporter of before 2.9: a second instead of a quarter of a minute
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load_model(path, load_external_data=False)
    plain = spec.model_copy(
        update={
            "mean": [0.0] * spec.channels,
            "std": [1.0] * spec.channels,
            "value_range": "0..1",
        }
    )
    output = manifest.output
    if output.are_probabilities:  # they have become logits
        kind = "logit" if output.classes is None else "multiclass"
        output = output.model_copy(update={"kind": kind})
    declared = manifest.model_copy(update={"architecture": GRAPH, "input": plain, "output": output})
    onnx.helper.set_model_props(model, {MANIFEST_KEY: declared.as_json()})
    onnx.save_model(model, path)
    return onnx_files.compare(Original.of(path), network, spec)
