"""Models to files and back: safetensors with the manifest in the metadata, nothing executable.

A file is opened only if its tensors are exactly those of the architecture that the manifest names,
or of a graph of known operations (`adap.models.graphs`) that it brings: a stranger chooses numbers
and their order, never code.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file as write_tensors
from torch import Tensor, nn

from adap.models import catalogue, networks
from adap.models.errors import ModelFileError
from adap.models.fitting import OPTIONAL
from adap.models.graphs import GRAPH, GRAPH_TENSOR, decode
from adap.models.header import (
    MANIFEST_KEY,
    MAX_HEADER_BYTES,
    Header,
    Manifest,
    ProbeResult,
    embedded_manifest,
    read_header,
    shown,
)
from adap.models.onnx_files import GraphNetwork
from adap.models.wrappers import Scorer
from adap.reading import Level

_DTYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}

_GRAPH_DTYPES = {"F32", "I64", "I32", "BOOL", "I8", "U8"}

_Kind = tuple[str, tuple[int, ...]]  # dtype by its safetensors name, shape


def save(model: nn.Module, path: Path, manifest: Manifest) -> None:
    """Write a network, or the network of a scorer, with its manifest; equal input, equal bytes.

    The tensors keep the names of the architecture, so that PyTorch alone can load them. Raises
    ModelFileError for what `load` would refuse.
    """
    if isinstance(model, Scorer):
        for name, own in (("input", model.input_spec), ("output", model.output)):
            declared = getattr(manifest, name)
            if own != declared:
                raise ModelFileError(
                    f"expected a manifest with the scorer's {name} {own!r}, got {declared!r}"
                )
        model = model.network
    catalogue.check(manifest)
    if isinstance(model, GraphNetwork):
        write(graph_tensors(model), path, manifest)
        return
    tensors = model.state_dict()
    _check_names(
        {
            name: (_DTYPE_NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape))
            for name, value in tensors.items()
        },
        manifest=manifest,
    )
    _check_finite(tensors)
    write(tensors, path, manifest)


def write(tensors: Mapping[str, Tensor], path: Path, manifest: Manifest) -> None:
    """Write tensors as they are, with a manifest that is not compared with them."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # one metadata key only: the library writes several in an order of its own choosing
    write_tensors(dict(tensors), path, metadata={MANIFEST_KEY: manifest.as_json()})
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > MAX_HEADER_BYTES:  # a thousand long names, each character escaped
        path.unlink()
        raise ModelFileError(
            f"expected a manifest that fits a header of {MAX_HEADER_BYTES} bytes, "
            f"got one of {header_bytes}"
        )


def graph_tensors(network: GraphNetwork) -> dict[str, Tensor]:
    """What is kept of a network that brings its own graph: the graph as bytes, and its tensors."""
    graph = torch.frombuffer(bytearray(network.graph.encode()), dtype=torch.uint8)
    return {GRAPH_TENSOR: graph, **network.tensors()}


def load(
    path: Path,
    manifest: Manifest | None = None,
    *,
    device: torch.device | str,
    positive: Sequence[str] | None = None,
) -> tuple[Scorer, Manifest]:
    """The scorer in a file, in eval mode on `device`, and the manifest it was loaded by.

    manifest: what the caller declares; by default the one inside the file.
    positive: the classes to score, for a model with a logit for each class; see `Scorer`.
    Raises ModelFileError where the file is not sound safetensors, its tensors are not those of the
    architecture, or a value is not finite; TaskError for classes that the model cannot score.
    """
    header = read_header(path)
    manifest = manifest or embedded_manifest(header)
    if manifest is None:
        raise ModelFileError(
            "expected an architecture and an input declaration with the model: "
            f"its file carries no manifest (metadata {MANIFEST_KEY!r})"
        )
    catalogue.check(manifest)
    if manifest.architecture == GRAPH:
        _check_graph_names(header)
    else:
        _check_names(
            {name: (tensor.dtype, tensor.shape) for name, tensor in header.tensors.items()},
            manifest=manifest,
        )
    try:
        # read, not mapped: a mapped file that shrinks later would kill the process
        tensors = read_tensors(path.read_bytes())
    except SafetensorError as error:
        raise ModelFileError(f"expected a sound safetensors file, got {error}") from error
    _check_finite(tensors)
    network = _network(tensors, manifest)
    scorer = Scorer(network, manifest.input, output=manifest.output, positive=positive)
    return scorer.to(device).eval(), manifest


def _network(tensors: dict[str, Tensor], manifest: Manifest) -> nn.Module:
    """The network that these tensors, found to be the right ones, belong to."""
    if manifest.architecture == GRAPH:
        graph = decode(tensors.pop(GRAPH_TENSOR).numpy().tobytes())
        graph.check(set(tensors))
        return GraphNetwork(graph, tensors)
    network = networks.fillable(manifest)
    absent = network.state_dict().keys() - tensors.keys()  # optional counts, if any
    counts = {name: torch.zeros((), dtype=torch.int64) for name in absent}
    state = network.state_dict()  # with the versions of its modules, which MNASNet asks for
    state.clear()
    state.update({**tensors, **counts})
    network.load_state_dict(state, strict=True, assign=True)
    return network


def probe(scorer: Scorer) -> ProbeResult:
    """Run the scorer on a few images and say whether its scores can be ranked and attacked.

    It must be in eval mode, and needs no task: every logit of the network is looked at. Checked: it
    runs, as many finite logits as declared, not the same for every image, independent of the rest
    of the batch, and with a gradient to the pixels.
    """
    images = _probe_images(scorer)
    try:
        with torch.no_grad():
            together = torch.cat([scorer.outputs(pair) for pair in torch.split(images, 2)])
        single = [_with_gradients(scorer, image[None]) for image in images]
        alone = torch.cat([logits for logits, _ in single])
        gradients = [norm for _, norms in single for norm in norms]
    except (RuntimeError, ValueError) as error:
        problem = f"the model does not run on images of the declared size: {str(error)[:300]}"
        return ProbeResult(images=len(images), problems=[problem], warnings=[])
    if not torch.isfinite(together).all() or not torch.isfinite(alone).all():
        bad = int((~torch.isfinite(together)).sum())
        problem = (
            f"expected finite logits, got {bad} of {together.numel()} that are NaN or infinite"
        )
        return ProbeResult(images=len(images), problems=[problem], warnings=[])

    problems, warnings = [], []
    blind = sum(not (math.isfinite(norm) and norm > 0) for norm in gradients)
    lowest, highest = float(together.min()), float(together.max())
    difference = float((together - alone).abs().max())
    same = (together == together[0]).all(dim=0).tolist()  # K times: whether for every image
    if all(same):
        got = ", ".join(f"{logit:g}" for logit in together[0, :5].tolist())
        problems.append(f"expected logits that depend on the image, got {got} for each")
    elif any(same):
        names = compress(scorer.output.classes or [], same)
        warnings.append(
            f"{sum(same)} of {len(same)} logits are the same for every probe image: "
            f"{_first(list(names))}"
        )
    # float32 sums in another order for another batch size; a real dependence is far larger
    if difference > 1e-3 * max(1.0, abs(lowest), abs(highest)):
        problems.append(
            "expected scores that do not depend on the rest of the batch, got a logit that moves "
            f"by {difference:.3g} when its image is scored alone"
        )
    if scorer.output.are_probabilities:
        with torch.no_grad():
            problems += _not_probabilities(scorer.raw_outputs(images), scorer)
        warnings.append(
            "the network answers with probabilities, which in float32 are all 1 above 1 - 6e-8: "
            "images there tie in AP and have no gradient to attack; prefer the network without its "
            f"last {'sigmoid' if scorer.output.classes is None else 'softmax'}"
        )
    elif together.min() >= 0 and together.max() <= 1:
        with torch.no_grad():
            found, level = _like_probabilities(together, scorer)
        {"fault": problems, "caution": warnings, "info": []}[level].append(found)
    elif scorer.output.one_is_true and (total := _constant_sum(together)) is not None:
        problems.append(
            f"expected logits as declared, got outputs that add up to {total:.6g} for every image, "
            "as probabilities in percent do: send the network without its last softmax and what "
            "scales it"
        )
    if blind:
        warnings.append(
            f"{blind} of {len(images)} probe images have no finite, non-zero gradient: attacks "
            "that follow gradients may see nothing, and a high robust AP would mean little"
        )
    return ProbeResult(
        images=len(images),
        lowest=lowest,
        highest=highest,
        batch_difference=difference,
        blind_images=blind,
        smallest_gradient=_finite(min(gradients)),
        largest_gradient=_finite(max(gradients)),
        problems=problems,
        warnings=warnings,
    )


def _like_probabilities(outputs: Tensor, scorer: Scorer) -> tuple[str, Level]:
    """What to say of (B, K) outputs in [0, 1] that are declared to be logits.

    A softmax adds up to 1. A sigmoid stays in [0, 1], and reaches its ends, however far from an
    image its input is; logits do not stay.
    """
    if outputs.shape[1] > 1 and float((outputs.sum(dim=1) - 1).abs().max()) < 1e-3:
        return (
            "expected logits as declared, got probabilities: outputs from 0 to 1 that add up to 1; "
            "declare them (--probabilities, kind probabilities), or send the network without its "
            "last softmax"
        ), "fault"
    generator = torch.Generator().manual_seed(1)
    spec = scorer.input_spec
    far = torch.randn(8, spec.channels, spec.height, spec.width, generator=generator)
    far = far * torch.logspace(0, 3, 8).view(-1, 1, 1, 1)
    answers = scorer.raw_outputs(far.to(scorer.mean.device))
    answers = answers[torch.isfinite(answers)]
    if len(answers) == 0 or answers.min() < 0 or answers.max() > 1:
        return "", "info"
    said = "outputs that stay between 0 and 1 whatever the image"
    if answers.min() < 0.05 and answers.max() > 0.95:
        instead = (
            "declare them (--probabilities, kind probability), or send the network without its "
            "last sigmoid"
            if outputs.shape[1] == 1
            else "send the network without its last sigmoid"
        )
        return f"expected logits as declared, got probabilities: {said}; {instead}", "fault"
    return (
        f"declared are logits, and came {said}: where they are probabilities, declare them "
        "(--probabilities), as attacks on a saturated output find less than there is"
    ), "caution"


def _constant_sum(outputs: Tensor) -> float | None:
    """What (B, K) outputs of 0 and more add up to, where that stays as they move."""
    sums = outputs.sum(dim=1)
    total = float(sums.mean())
    moved = float((outputs - outputs[0]).abs().max())
    if outputs.min() < 0 or moved < 1e-3 * total or float((sums - total).abs().max()) > moved / 1e3:
        return None
    return total


def _not_probabilities(outputs: Tensor, scorer: Scorer) -> list[str]:
    """What is wrong with (B, K) outputs that are declared to be probabilities."""
    low, high = float(outputs.min()), float(outputs.max())
    if low < -1e-6 or high > 1 + 1e-6:
        return [
            f"expected probabilities from 0 to 1, got outputs from {low:g} to {high:g}: where they "
            "are logits, declare them so (without --probabilities)"
        ]
    off = float((outputs.sum(dim=1) - 1).abs().max())
    if scorer.output.classes is not None and off > 1e-3:
        return [f"expected probabilities that add up to 1, got a sum that is off by {off:.3g}"]
    return []


def _check_names(got: Mapping[str, _Kind], *, manifest: Manifest) -> None:
    """Names, dtypes and shapes must be the architecture's, apart from optional counts."""
    network = networks.empty(manifest)
    expected: dict[str, _Kind] = {
        name: (_DTYPE_NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for name, value in network.state_dict().items()
    }
    findings = {
        "missing": [name for name in expected if name not in got and not name.endswith(OPTIONAL)],
        "unexpected": [shown(name) for name in got if name not in expected],
        "of another shape or dtype": [
            f"{name} (expected {_text(expected[name])}, got {_text(kind)})"
            for name, kind in got.items()
            if name in expected and kind != expected[name]
        ],
    }
    told = [f"{len(names)} {what}: {_first(names)}" for what, names in findings.items() if names]
    if told:
        raise ModelFileError(
            f"expected exactly the tensors of {manifest.architecture} for "
            f"{manifest.input.channels} channels and {_logits(manifest)}, got {'; '.join(told)}"
        )


def _check_graph_names(header: Header) -> None:
    """A graph and tensors of it; whether they fit each other shows when it is built."""
    graph = header.tensors.get(GRAPH_TENSOR)
    if graph is None or graph.dtype != "U8" or len(graph.shape) != 1:
        raise ModelFileError(
            f"expected an ONNX file, or one with a graph (tensor {GRAPH_TENSOR!r} of bytes), "
            f"got {_first([shown(name) for name in header.tensors]) or 'no tensors'}"
        )
    wrong = [
        f"{shown(name)} ({tensor.dtype})"
        for name, tensor in header.tensors.items()
        if name != GRAPH_TENSOR
        and not (re.fullmatch(r"w\d{1,6}", name) and tensor.dtype in _GRAPH_DTYPES)
    ]
    if wrong:
        raise ModelFileError(
            f"expected tensors w0, w1, ... of {', '.join(sorted(_GRAPH_DTYPES))} beside the graph, "
            f"got {_first(wrong)}"
        )


def _logits(manifest: Manifest) -> str:
    count = manifest.output.count
    return "one logit (no other `output` is declared)" if count == 1 else f"{count} logits"


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelFileError(
            f"expected finite weights, got NaN or infinity in {len(bad)} tensors: {_first(bad)}"
        )


def _text(kind: _Kind) -> str:
    return f"{kind[0]} {list(kind[1])}"


def _first(names: Sequence[str], *, count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _probe_images(scorer: Scorer) -> Tensor:
    """(4, C, H, W) in [0, 1]: noise, coarse blocks of noise, a ramp, and plain white."""
    spec = scorer.input_spec
    generator = torch.Generator().manual_seed(0)
    shape = (spec.channels, spec.height, spec.width)
    noise = torch.rand(shape, generator=generator)
    coarse = torch.rand((1, spec.channels, 4, 4), generator=generator)
    blocks = nn.functional.interpolate(coarse, shape[1:])[0]
    ramp = torch.linspace(0, 1, spec.width).expand(shape)
    images = torch.stack([noise, blocks, ramp, torch.ones(shape)])  # (4, C, H, W)
    return images.to(scorer.mean.device)


def _with_gradients(scorer: Scorer, images: Tensor) -> tuple[Tensor, list[float]]:
    """The (B, K) logits, and the L1 norm of the gradient to the pixels, image by image.

    A norm may be infinite or NaN.
    """
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = scorer.outputs(images)
    if not logits.requires_grad:
        return logits, [0.0] * len(images)
    # weights that differ: the plain sum of logits that add up to a constant has no gradient
    weights = torch.linspace(1, 2, logits.shape[1], device=logits.device, dtype=logits.dtype)
    gradient, *_ = torch.autograd.grad(
        (logits * weights).sum(), images, allow_unused=True, materialize_grads=True
    )
    return logits.detach(), [float(norm) for norm in gradient.flatten(1).abs().sum(dim=1)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
