"""Headers of model files, read without torch and without touching the weights.

A model is a safetensors file and a manifest: the architecture that the tensors belong to, and how
images become its input. The manifest may travel inside the file, under the metadata key `adap`.

The header is parsed here, by the published layout (8 bytes of length, a JSON object, the data), so
that a stranger's file meets our limits before any library opens it. What this does NOT check: that
the tensors fit the architecture, and their values; `adap.models.loading` does.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adap.faults import NamedFields, explain
from adap.models.errors import ModelFileError, TaskError
from adap.models.formats import EDGE_BYTES, refusal
from adap.reading import Reading
from adap.wording import hidden, is_name

MANIFEST_KEY = "adap"

MAX_HEADER_BYTES = 1024 * 1024  # the format itself allows 100 MB
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**40
MAX_NAME_CHARACTERS = 200

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


ValueRange = Literal["0..1", "0..255", "-1..1"]
VALUE_RANGES: dict[ValueRange, tuple[float, float]] = {
    "0..1": (0.0, 1.0),
    "0..255": (0.0, 255.0),
    "-1..1": (-1.0, 1.0),
}


ChannelOrder = Literal["rgb", "bgr"]


class InputSpec(NamedFields):
    """How images become the network's input: (x - mean) / std, channel by channel.

    x: the pixels in `value_range`, black being its lower end and white its upper end, their
    channels in `channel_order`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=1024)
    width: int = Field(ge=1, le=1024)
    mean: list[float] = Field(description="one value a channel", examples=[[0.485, 0.456, 0.406]])
    std: list[float] = Field(description="one value a channel", examples=[[0.229, 0.224, 0.225]])
    value_range: ValueRange = Field(
        "0..1",
        description="of the pixels that mean and std are meant for",
        # left out where it is the usual one: a manifest says what is special
        exclude_if=lambda value: value == "0..1",
    )
    channel_order: ChannelOrder = Field(
        "rgb",
        description="of the network's input, and of mean and std: red, green, blue; or `bgr` "
        "(blue, green, red) for a network trained on images as OpenCV and Caffe read them",
        exclude_if=lambda value: value == "rgb",
    )

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> "InputSpec":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"expected {self.channels} values in {name}, one a channel, got {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"expected std above 0, got {self.std}")
        if self.channel_order == "bgr" and self.channels < 3:
            raise ValueError(f"expected 3 channels for the order bgr, got {self.channels}")
        return self

    def for_unit_range(self) -> tuple[list[float], list[float]]:
        """Mean and std that do the same to pixels in [0, 1]."""
        low, high = VALUE_RANGES[self.value_range]
        width = high - low
        return [(mean - low) / width for mean in self.mean], [std / width for std in self.std]


Class = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]


SMALLEST_PROBABILITY = 2.0**-126  # the smallest normal float32: a score of -87.3
LARGEST_PROBABILITY = 1 - 2.0**-24  # the largest float32 below 1: a score of 16.6


class OutputSpec(NamedFields):
    """What the network answers for an image, and what that says about a class.

    logit: one logit, higher for the positive side, whichever classes that is.
    multiclass: a logit a class, of which one is true (softmax). The score of some positive classes
    is the log of their odds, logsumexp(theirs) - logsumexp(the others): it orders images as their
    softmax probability p does, being log(p / (1 - p)), and does not saturate where p rounds to 1.
    multilabel: a logit a class, each of which may be true (a sigmoid each). The score of a class is
    its own logit; several have no joint score, as nothing says how they depend on each other.
    probability: p of the positive side, a sigmoid's. The score is log(p) - log(1 - p).
    probabilities: p of each class, a softmax's. Scored as multiclass, log(p) being the logits.

    Probabilities are held to [`SMALLEST_PROBABILITY`, `LARGEST_PROBABILITY`] before the logarithm.
    In float32 all above 1 - 6e-8 are 1: their images tie, and have no gradient. Logits have neither
    flaw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["logit", "multiclass", "multilabel", "probability", "probabilities"] = Field(
        "logit",
        description="one logit; or a logit a class, where one class is true (multiclass; two "
        "logits are two classes) or each may be (multilabel); or one probability, or one a class "
        "that add up to 1 (probabilities)",
    )
    classes: list[Class] | None = Field(
        None,
        min_length=2,
        max_length=1000,
        description="names of the classes in the order of the outputs; for multiclass, "
        "multilabel and probabilities only",
        examples=[["cat", "dog", "other"]],
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="of an ONNX file with several outputs: which of its values is meant",
        exclude_if=lambda value: value is None,
    )

    @model_validator(mode="after")
    def _classes_of_many_logits(self) -> "OutputSpec":
        single = self.kind in ("logit", "probability")
        if single != (self.classes is None):
            raise ValueError(
                f"expected {'no classes' if single else 'classes'} for the kind {self.kind}"
            )
        for name in self.classes or []:
            if not is_name(name):
                raise ValueError(f"expected classes of printable characters, got {shown(name)}")
        if len(set(self.classes or [])) < len(self.classes or []):
            raise ValueError("expected each class once")
        return self

    @property
    def are_probabilities(self) -> bool:
        """Whether the network ends in a sigmoid or a softmax."""
        return self.kind in ("probability", "probabilities")

    @property
    def one_is_true(self) -> bool:
        """Whether exactly one of several classes is true of an image."""
        return self.kind in ("multiclass", "probabilities")

    @property
    def count(self) -> int:
        """How many logits the network answers for an image."""
        return 1 if self.classes is None else len(self.classes)

    def columns(self, positive: Sequence[str] | None) -> list[int]:
        """Where the logits of the positive classes are, rising; of one logit, the one there is.

        Raises TaskError where these classes have no score.
        """
        if self.classes is None:
            return [0]
        known = f"{', '.join(self.classes[:20])}{', …' if len(self.classes) > 20 else ''}"
        if not positive:
            raise TaskError(
                f"expected positive classes, as the model has a logit for each of {known}; got none"
            )
        unknown = [shown(name) for name in positive if name not in self.classes]
        if unknown:
            raise TaskError(
                f"expected positive classes that the model has a logit for ({known}), "
                f"got {', '.join(unknown[:20])}"
                + (
                    ": its classes are numbers; add the model again with their names in the order "
                    f"of its outputs, --classes {','.join(positive[:3])},…"
                    if all(name.isdecimal() for name in self.classes)
                    else ""
                )
            )
        found = [i for i, name in enumerate(self.classes) if name in positive]
        if self.one_is_true and len(found) == len(self.classes):
            raise TaskError(f"expected a class against the positive ones, got all of {known}")
        if self.kind == "multilabel" and len(found) > 1:
            raise TaskError(
                "expected one positive class for a multilabel model, whose classes have no joint "
                f"score, got {', '.join(self.classes[i] for i in found[:20])}"
            )
        return found


ONE_LOGIT = OutputSpec()


def logit_a_class(classes: Sequence[str]) -> OutputSpec:
    """The output of a network that was trained on each class against the rest.

    That is `multilabel`, also where every image has one class: training and attack look at a class
    through its own logit, and so must whoever attacks the model afterwards. Raises TaskError for
    classes that no model can declare.
    """
    try:
        return OutputSpec(kind="multilabel", classes=list(classes))
    except ValidationError as error:
        raise TaskError(
            f"expected 2 to 1000 classes of printable names, got {len(classes)}: "
            f"{explain(error.errors()[0])}"
        ) from error


class Manifest(BaseModel):
    """Everything that loading a model's tensors needs, and where the model comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: str = Field(max_length=64)
    input: InputSpec
    output: OutputSpec = ONE_LOGIT
    positive: list[str] | None = Field(
        None, description="classes that the model was trained to rank first, where known"
    )
    training: dict[str, Any] | None = Field(
        None, description="how the service trained it: configuration and figures"
    )

    @field_validator("training")
    @classmethod
    def _survives_json(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        # an uploaded file may hold 1e999 or half a surrogate pair here, which no answer could carry
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected plain JSON values in training: {error}") from error
        return value

    def as_json(self) -> str:
        """The text that travels in a model file: equal manifests, equal text.

        One logit goes without saying.
        """
        value = self.model_dump(mode="json")
        if self.output == ONE_LOGIT:
            del value["output"]
        return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Declaration(BaseModel):
    """What an upload says about a file: the manifest, as far as whoever sends it knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    architecture: str | None = Field(
        None, max_length=64, description="None: told from the file itself"
    )
    input: InputSpec
    output: OutputSpec = ONE_LOGIT
    weights: str | None = Field(
        None,
        max_length=MAX_NAME_CHARACTERS,
        description="which of several weights in a checkpoint: the name that holds them",
    )
    positive: list[Class] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="classes that a single logit ranks first, where they are known",
    )

    @model_validator(mode="after")
    def _positive_of_one_logit(self) -> "Declaration":
        if self.positive is not None and self.output.classes is not None:
            raise ValueError(
                "expected positive for a model of one logit alone: where each class has an "
                "output, an audit or a ranking says which it asks for"
            )
        return self

    def as_manifest(self, architecture: str) -> Manifest:
        """The manifest, once the architecture is known."""
        return Manifest(
            architecture=architecture,
            input=self.input,
            output=self.output,
            positive=self.positive if self.output.classes is None else None,
        )


class ProbeResult(BaseModel):
    """What `adap.models.loading.probe` saw when it ran a model on a few images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["safetensors", "onnx", "state dict"] = Field(
        "safetensors", description="what the file was, before it became what is kept"
    )
    onnx_difference: float | None = Field(
        None,
        description="of an ONNX file: largest difference of an output to onnxruntime on random "
        "images, relative to the largest output",
    )
    images: int = Field(description="probe images shown to the model")
    lowest: float | None = Field(None, description="lowest logit, where all were finite")
    highest: float | None = Field(None, description="highest logit, where all were finite")
    batch_difference: float | None = Field(
        None, description="largest change of a logit when its image is scored alone"
    )
    smallest_gradient: float | None = Field(
        None,
        description="L1 norm of the gradient to the pixels, of the image where it is smallest; "
        "None where it is not finite",
    )
    largest_gradient: float | None = Field(None, description="and where it is largest")
    blind_images: int | None = Field(
        None, description="images at which no pixel moves the logit: gradient attacks see nothing"
    )
    reading: Reading | None = Field(None, description="how the upload was understood")
    problems: list[str] = Field(description="reasons why the model cannot be used")
    warnings: list[str] = Field(description="what to know before trusting its figures")


@dataclass(frozen=True)
class TensorInfo:
    """One line of the header: dtype by its safetensors name, and where the bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes, counted from the end of the header
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a sound safetensors file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a model file, once it is known to be a sound safetensors file.

    At most `MAX_HEADER_BYTES` are read, and the weights are not. Raises ModelFileError for
    everything else; the message says what the file is and what to send instead.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(EDGE_BYTES)
        # a header begins with its length in 8 little-endian bytes, then a JSON object
        if len(head) < 9 or head[8:9] != b"{" or head[4:8] != bytes(4):
            raise ModelFileError(refusal(head, _tail(file, size)))
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise _unsound(f"a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
        if 8 + length > size:
            raise _unsound(f"a header of {length} bytes, got a file of {size}: it is cut short")
        file.seek(8)
        text = file.read(length)
    entries = _parse_object(text)
    metadata = _metadata(entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise _unsound(f"at most {MAX_TENSORS} tensors, got {len(entries)}")
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    _check_layout(tensors.values(), data_bytes=size - 8 - length)
    return Header(tensors=tensors, metadata=metadata)


def embedded_manifest(header: Header) -> Manifest | None:
    """The manifest that travels inside the file, or None where there is none.

    Raises ModelFileError for one that is not valid.
    """
    text = header.metadata.get(MANIFEST_KEY)
    return None if text is None else manifest_in(text)


def manifest_in(text: str) -> Manifest:
    """The manifest that the metadata of a file hold. Raises ModelFileError for an invalid one."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'manifest'}: {explain(item)}"
            for item in error.errors(include_url=False)[:5]
        )
        raise ModelFileError(
            f"expected a valid manifest in the metadata {MANIFEST_KEY!r}, got {problems}"
        ) from error


def shown(name: str) -> str:
    """A stranger's name as it may stand in a message: quoted, escaped, not too long."""
    short = name if len(name) <= 80 else name[:77] + "..."
    return ascii(short) if hidden(short) else repr(short)


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - EDGE_BYTES))
    return file.read(EDGE_BYTES)


def _unsound(expected_and_got: str) -> ModelFileError:
    return ModelFileError(f"damaged safetensors file: expected {expected_and_got}")


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _unsound(f"a header in JSON, got text that is not: {str(error)[:200]}") from error
    assert isinstance(value, dict)  # the first byte is a brace
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may choose differently between repeated names, so there must be none."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _unsound("metadata made of names and texts, got something else")
    return value


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise _unsound(
            f"printable tensor names of at most {MAX_NAME_CHARACTERS} characters, got {shown(name)}"
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _unsound(f"dtype, shape and data_offsets for {shown(name)}, got something else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if (
        isinstance(dtype, str)
        and re.fullmatch(r"[FC]\d+(_E\d+M\d+\w*)?", dtype)
        and (dtype not in DTYPE_BYTES)
    ):
        raise ModelFileError(
            f"expected weights that can be made float32, got {dtype} in {shown(name)}: send the "
            "network in float32, as it was before it was quantised or cast"
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _unsound(f"a dtype among {', '.join(DTYPE_BYTES)} for {shown(name)}, got another")
    if not _are_counts(shape, most=MAX_DIMENSION) or len(shape) > MAX_DIMENSIONS:
        raise _unsound(
            f"a shape of at most {MAX_DIMENSIONS} dimensions from 0 to {MAX_DIMENSION} for "
            f"{shown(name)}, got something else"
        )
    strides = math.prod(max(size, 1) for size in shape)
    if strides * DTYPE_BYTES[dtype] >= 2**63:  # of no numbers, where one size is 0
        raise _unsound(f"sizes for {shown(name)} that a tensor can have, got {shape}")
    if not _are_counts(offsets, most=2**63) or len(offsets) != 2:
        raise _unsound(f"two data_offsets for {shown(name)}, got something else")
    start, end = offsets
    wanted = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != wanted:
        raise _unsound(f"{wanted} bytes for {shown(name)}, got {end - start}")
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _are_counts(value: Any, *, most: int) -> bool:
    """Whether this is a list of whole numbers from 0 to `most`; True and False are not numbers."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= most for n in value)


def _check_layout(tensors: Iterable[TensorInfo], *, data_bytes: int) -> None:
    """The tensors must cover the data once: a gap or a tail could hide a second file."""
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise _unsound(
                f"the next tensor at byte {position} of the data, got one at {tensor.start}"
            )
        position = tensor.end
    if position != data_bytes:
        raise _unsound(f"{position} bytes of data, got {data_bytes}")
