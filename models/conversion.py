"""Files of other formats to the form in which models are kept: safetensors, before anything runs.

For the sandboxed child alone. What a file is, its bytes tell; its name is never asked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from adap.models import onnx_files, state_dicts
from adap.models.errors import ModelFileError
from adap.models.formats import EDGE_BYTES, is_checkpoint, is_onnx
from adap.models.graphs import GRAPH
from adap.models.header import Manifest
from adap.models.loading import graph_tensors, write


@dataclass(frozen=True)
class Converted:
    """A file in the form that `adap.models.loading.load` opens, and what was seen on the way."""

    path: Path
    format: Literal["safetensors", "onnx", "state dict"]
    onnx_difference: float | None = None  # relative, to onnxruntime on random images


def to_safetensors(path: Path, manifest: Manifest | None, *, folder: Path) -> Converted:
    """The file itself where it is safetensors or nothing known; else what it was converted to.

    folder: where a converted file is written.  manifest: what the upload declares.
    Raises ModelFileError where the content cannot be used, with what was expected instead.
    """
    target = folder / "converted.safetensors"
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - EDGE_BYTES))
        tail = file.read()
    if is_onnx(head):
        return _from_onnx(path, manifest, target)
    if is_checkpoint(head, tail):
        return _from_state_dict(path, manifest, target)
    return Converted(path, "safetensors")


def _from_onnx(path: Path, manifest: Manifest | None, target: Path) -> Converted:
    if manifest is None or manifest.architecture != GRAPH:
        got = "none" if manifest is None else manifest.architecture
        raise ModelFileError(
            f"expected the architecture {GRAPH!r} and an input declaration with an ONNX file, "
            f"got {got}"
        )
    graph, arrays = onnx_files.read(path, manifest.input)
    # copied: onnx hands out views of the file's own bytes
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    network = onnx_files.GraphNetwork(graph, tensors).eval()
    difference = onnx_files.compare(path, network, manifest.input)
    write(graph_tensors(network), target, manifest)
    return Converted(target, "onnx", difference)


def _from_state_dict(path: Path, manifest: Manifest | None, target: Path) -> Converted:
    if manifest is None or manifest.architecture == GRAPH:
        raise ModelFileError(
            "expected the architecture that the tensors belong to, and an input declaration, with "
            "a state dict"
        )
    write(state_dicts.read(path), target, manifest)
    return Converted(target, "state dict")
