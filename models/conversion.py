"""Files of other formats to the form in which models are kept: safetensors, before anything runs.

For the sandboxed child alone. What a file is, its bytes tell; its name is never asked. Every
decision on the way is written into the reading of the upload.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import nn

from adap.models import (
    catalogue,
    diagnosis,
    fitting,
    guessing,
    networks,
    onnx_files,
    onnx_fitting,
    onnx_kinds,
    packed,
    state_dicts,
)
from adap.models.costs import Cost, check_cost
from adap.models.errors import ModelFileError
from adap.models.fitting import Weights
from adap.models.formats import EDGE_BYTES, is_checkpoint, is_onnx
from adap.models.graphs import GRAPH, GRAPH_TENSOR
from adap.models.header import (
    VALUE_RANGES,
    Declaration,
    InputSpec,
    Manifest,
    embedded_manifest,
    manifest_in,
    read_header,
)
from adap.models.limits import CostLimits
from adap.models.loading import graph_tensors, write
from adap.models.onnx_files import GraphNetwork
from adap.reading import Fact, Reading

Format = Literal["safetensors", "onnx", "state dict"]
_TITLES: dict[Format, str] = {
    "safetensors": "safetensors",
    "onnx": "ONNX",
    "state dict": "checkpoint",
}

DEFAULT_LIMITS = CostLimits()
COMPARED_BYTES = 2**28  # of values at once, by onnxruntime and by PyTorch


@dataclass(frozen=True)
class Converted:
    """A file in the form that `adap.models.loading.load` opens, and what was seen on the way."""

    path: Path
    format: Format
    manifest: Manifest | None  # what the file is to be loaded by; None: the one inside
    onnx_difference: float | None = None  # relative, to onnxruntime on random images
    network: GraphNetwork | None = None  # of an ONNX file, as it was compared and written
    steps: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def reading(self, manifest: Manifest, warnings: Sequence[str] = ()) -> Reading:
        """How the file was read, by which manifest it is used, what trying it warned of."""
        tried = [Fact(level="caution", code="probe", message=text) for text in warnings]
        return Reading(
            summary=f"{_TITLES[self.format]}: {'; '.join(self.steps) or 'as it is'}",
            steps=[*self.steps, *_said(manifest.input)],
            facts=[*self.facts, *_odd_scale(manifest.input), *tried],
        )


def _said(spec: InputSpec) -> list[str]:
    """What the declaration decides about pixels, in words."""
    order = {"rgb": "red, green, blue", "bgr": "blue, green, red"}[spec.channel_order]
    channels = f", channels in the order {order}" if spec.channels >= 3 else ""
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (spec.mean, spec.std))
    return [f"pixels in {spec.value_range}{channels}, minus {mean}, divided by {std}"]


def _check_scale(spec: InputSpec) -> None:
    """A mean outside of the pixels' range is that of another range: no image would be seen."""
    low, high = VALUE_RANGES[spec.value_range]
    if min(spec.mean) < low or max(spec.mean) > high:
        raise ModelFileError(
            f"expected mean within the range of the pixels, {spec.value_range}, got "
            f"{', '.join(f'{value:g}' for value in spec.mean)}: declare the range that it is meant "
            "for (--pixels 0..255, `value_range`)"
        )


def _odd_scale(spec: InputSpec) -> list[Fact]:
    if spec.value_range != "0..255" or not 0 < max(spec.mean) <= 1 or max(spec.std) > 1:
        return []
    message = (
        "mean and std look like those of pixels in 0..1, and 0..255 is declared: the network then "
        "sees values in the hundreds"
    )
    return [Fact(level="caution", code="scale_of_another_range", message=message)]


def to_safetensors(
    path: Path, declared: Declaration | None, *, folder: Path, limits: CostLimits = DEFAULT_LIMITS
) -> Converted:
    """The file itself where nothing has to be changed; else what it was converted to.

    folder: where a converted file is written.  declared: what the upload says about the file.
    limits: what a network that brings its own graph may cost, before it is first run.
    Raises ModelFileError where the content cannot be used, with what was expected instead.
    """
    target = folder / "converted.safetensors"
    if declared is not None:
        _check_scale(declared.input)
    head, tail = _edges(path)
    steps = []
    if (inside := packed.unpacked(path, head, tail, folder=folder)) is not None:
        path, steps = inside.path, [inside.step]
        head, tail = _edges(path)
    converted = _converted(path, head, tail, declared, target, limits)
    return replace(converted, steps=[*steps, *converted.steps])


def _edges(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - EDGE_BYTES))
        return head, file.read()


def _converted(
    path: Path,
    head: bytes,
    tail: bytes,
    declared: Declaration | None,
    target: Path,
    limits: CostLimits,
) -> Converted:
    if is_onnx(head):
        return _from_onnx(path, declared, target, limits)
    if is_checkpoint(head, tail):
        return _from_state_dict(path, declared, target)
    return _from_safetensors(path, declared, target)


def _from_onnx(
    path: Path, declared: Declaration | None, target: Path, limits: CostLimits
) -> Converted:
    steps = []
    if declared is None:  # an export of ours brings its own
        inside = onnx_files.embedded_manifest(path)
        if inside is None:
            raise ModelFileError(
                "expected an input declaration (`input`, --size) with an ONNX file, got none"
            )
        known = manifest_in(inside)
        positive = known.positive if known.output.classes is None else None
        declared = Declaration(input=known.input, output=known.output, positive=positive)
        steps = ["declared by the manifest in its metadata `adap`"]
    if declared.architecture not in (None, GRAPH):
        raise ModelFileError(
            f"expected the architecture {GRAPH!r} with an ONNX file, got {declared.architecture!r}"
        )
    spec = declared.input
    one = Cost(0, 0)

    def check(network: nn.Module) -> None:
        nonlocal one
        one = check_cost(network, spec, limits)

    read = onnx_files.take_in(path, spec, declared.output, check=check)
    fit = read.fit
    if declared.positive is None and read.manifest is not None:  # what an earlier training has said
        declared = declared.model_copy(update={"positive": manifest_in(read.manifest).positive})
    made = {"input": fit.spec, "output": fit.output}
    manifest = declared.model_copy(update=made).as_manifest(GRAPH)
    network = read.network
    together = 3 if 3 * one.bytes <= COMPARED_BYTES else 2
    tolerance = onnx_files.TOLERANCE_QUANTISED if fit.quantised else onnx_files.TOLERANCE
    difference = None
    if fit.computed_in:  # closely in float32, and as it came with what onnxruntime rounds
        exact = onnx_fitting.made_fit(fit)
        onnx_files.compare(exact, network, manifest.input, tolerance=tolerance, together=together)
    if fit.runs:
        difference = onnx_files.compare(
            read.original,
            network,
            manifest.input,
            ending=fit.ending,
            tolerance=onnx_files.TOLERANCE_WIDENED if fit.computed_in else tolerance,
            together=together,
        )
    if fit.computed_in:
        fit.facts.append(onnx_kinds.widened_fact(fit.computed_in, difference, most=tolerance))
    write(graph_tensors(network), target, manifest)
    steps += fit.steps
    return Converted(target, "onnx", manifest, difference, network, steps, fit.facts)


def _from_state_dict(path: Path, declared: Declaration | None, target: Path) -> Converted:
    state_dicts.check(path)  # what it is comes before what is missing beside it
    if declared is None or declared.architecture == GRAPH:
        raise ModelFileError(
            "expected an input declaration (`input`, --size) with a state dict, and the "
            f"architecture that the tensors belong to where it cannot be told, got {_got(declared)}"
        )
    return _from_tensors(state_dicts.read(path), declared, target, "state dict")


def _got(declared: Declaration | None) -> str:
    return "none" if declared is None else f"the architecture {declared.architecture!r}"


def _from_safetensors(path: Path, declared: Declaration | None, target: Path) -> Converted:
    header = read_header(path)
    if declared is None:
        return Converted(path, "safetensors", None)
    inside = embedded_manifest(header) if declared.architecture is None else None
    if inside is not None:
        known = declared.positive or inside.positive  # what an earlier training has said
        declared = declared.model_copy(
            update={"architecture": inside.architecture, "positive": known}
        )
    if declared.architecture == GRAPH or GRAPH_TENSOR in header.tensors:
        return Converted(path, "safetensors", declared.as_manifest(GRAPH))
    try:
        # read, not mapped: a mapped file that shrinks later would kill the process
        weights = Weights(read_tensors(path.read_bytes()))
    except SafetensorError as error:
        raise ModelFileError(f"expected a sound safetensors file, got {error}") from error
    return _from_tensors(weights, declared, target, "safetensors")


def _from_tensors(
    weights: Weights, declared: Declaration, target: Path, file_format: Format
) -> Converted:
    """The tensors of the declared architecture, or of the one that they tell of."""
    guesses: list[guessing.Guess] = []
    steps: list[str] = []
    facts: list[Fact] = []
    name = declared.architecture
    if name is None:
        guesses = guessing.guesses(weights, declared)
        name, facts = _told(guesses)
        for _, plain in fitting.renamed(weights):
            if name is None:
                name, facts = _told(guessing.guesses(plain, declared))
        if name is not None:
            steps.append(f"architecture told from the tensors: {name}")
    expected = None
    if name is not None:
        manifest = declared.as_manifest(name)
        catalogue.check(manifest)
        expected = networks.empty(manifest).state_dict()
        fitted = fitting.fit(weights, expected, manifest.input, chosen=declared.weights)
        if fitted is not None:
            write(fitted.tensors, target, manifest)
            return Converted(
                target,
                file_format,
                manifest,
                steps=[*steps, *fitted.steps],
                facts=[*facts, *fitted.facts, *_unsaid(manifest)],
            )
        guesses = guessing.guesses(weights, declared)
    raise ModelFileError(diagnosis.explain(weights, expected, declared, guesses))


def _unsaid(manifest: Manifest) -> list[Fact]:
    """What these architectures do with images that no tensor tells of."""
    halves = [[0.5] * 3, [0.5] * 3]
    if manifest.architecture not in ("torchvision/googlenet", "torchvision/inception_v3") or (
        [manifest.input.mean, manifest.input.std] == halves
    ):
        return []
    message = (
        f"{manifest.architecture} is run with transform_input=False, which its tensors do not "
        "tell; torchvision's pretrained weights and what is trained from them have True, and "
        "then score otherwise: for those declare mean 0.5 and std 0.5 of pixels in 0..1 "
        "(--input), which is what True makes of ImageNet's normalisation"
    )
    return [Fact(level="caution", code="transform_input", message=message)]


def _told(guesses: list[guessing.Guess]) -> tuple[str | None, list[Fact]]:
    """The architecture to take of those that fit as declared, and what must be said about it."""
    fitting_ones = [guess for guess in guesses if guess.outputs is None and guess.channels is None]
    names = list(dict.fromkeys(guess.architecture for guess in fitting_ones))
    if not names:
        return None, []
    others = [name for name in names[1:] if name.split("/")[-1] != names[0].split("/")[-1]]
    if len(names) > 1 and names[0].startswith("timm/"):
        listed = ", ".join(names[:5])
        raise ModelFileError(
            f"expected the architecture, got tensors that fit {len(names)}: {listed}"
            f"{', …' if len(names) > 5 else ''}, whose answers may differ; "
            "choose with --architecture"
        )
    if not others:
        return names[0], []
    message = (
        f"the architecture {names[0]} was told from the tensors, which fit {', '.join(others[:3])} "
        "too, variants whose answers differ: if yours is one, send it again with --architecture"
    )
    # the usual one of them: of most uploads it would be a caution that nobody can do away with
    return names[0], [Fact(level="info", code="architecture_told", message=message)]
