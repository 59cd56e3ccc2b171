"""Recognition of a file's architecture by the names and shapes of its tensors.

`signatures.txt` holds, for each architecture of torchvision and timm, a hash of the names of its
tensors; few architectures share one, and their shapes decide between those. What tensors cannot
tell: strides, padding, activations. So a guess is always said, and names what else it could be.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from torch import Tensor

from adap.models import catalogue, networks
from adap.models.errors import ModelFileError
from adap.models.fitting import OPTIONAL, Weights
from adap.models.header import Declaration, InputSpec, Manifest, OutputSpec

MAX_BUILT = 12  # architectures of the same names that are built to compare shapes


@dataclass(frozen=True)
class Difference:
    """How tensors differ in shape from those of the same names in an architecture."""

    outputs: int | None = None  # what the file's last layer answers, where it is another count
    channels: int | None = None  # what its first layer takes, where it is another count
    shapes: tuple[str, ...] = ()  # names of tensors of another shape

    @property
    def fits(self) -> bool:
        """Whether it is the architecture, apart from the counts of channels and outputs."""
        return not self.shapes


@dataclass(frozen=True)
class Guess:
    """An architecture whose tensors these are."""

    architecture: str
    prefix: str
    outputs: int | None  # of the file, where it is not what was declared
    channels: int | None


def signature(names: Iterable[str]) -> str:
    """A short hash of tensor names; counts of batches are no part of it."""
    kept = sorted(name for name in names if not name.endswith(OPTIONAL))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


@cache
def signatures() -> Mapping[str, tuple[str, ...]]:
    """The architectures of each signature: ours, then torchvision's, then timm's."""
    found: dict[str, list[str]] = {}
    for name in catalogue.ARCHITECTURES:
        manifest = Manifest(architecture=name, input=_plain(3), output=OutputSpec())
        found.setdefault(signature(networks.empty(manifest).state_dict()), []).append(name)
    for line in files("adap.models").joinpath("signatures.txt").read_text().splitlines():
        key, name = line.split()
        found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def guesses(weights: Weights, declared: Declaration) -> list[Guess]:
    """The architectures that the tensors behind some prefix are exactly those of, best first."""
    compared = (
        _compare(weights, prefix, name, declared)
        for prefix, names in _candidates(weights)
        for name in names[:MAX_BUILT]
    )
    made = [guess for guess in compared if guess is not None]
    # what fits as declared, before what has another count of outputs or channels
    return sorted(made, key=lambda g: (g.channels is not None) + (g.outputs is not None))


def difference(
    weights: Weights, prefix: str, expected: Mapping[str, Tensor], declared: Declaration
) -> Difference:
    """How the shapes behind a prefix differ from an architecture's, whose names are all there."""
    outputs, channels, others = set(), set(), []
    for name, wanted in expected.items():
        got = weights.tensors.get(prefix + name)
        if got is None or got.shape == wanted.shape:
            continue
        mine, theirs = tuple(wanted.shape), tuple(got.shape)
        if len(mine) == len(theirs) and mine[1:] == theirs[1:] and mine[0] == declared.output.count:
            outputs.add(theirs[0])
        elif (
            len(mine) == len(theirs) == 4
            and (mine[0], *mine[2:]) == (theirs[0], *theirs[2:])
            and mine[1] == declared.input.channels
        ):
            channels.add(theirs[1])
        else:
            others.append(name)
    if len(outputs) > 1 or len(channels) > 1:
        others.append("its first or last layers")
    return Difference(
        outputs=next(iter(outputs), None),
        channels=next(iter(channels), None),
        shapes=tuple(others),
    )


def _compare(weights: Weights, prefix: str, name: str, declared: Declaration) -> Guess | None:
    try:
        expected = networks.empty(declared.as_manifest(name)).state_dict()
    except ModelFileError:
        spec = declared.input
        if spec.channels == 3:
            return None
        # torchvision's take three channels: compare as if three were declared
        try:
            declared = declared.model_copy(update={"input": _plain(3, like=spec)})
            expected = networks.empty(declared.as_manifest(name)).state_dict()
        except ModelFileError:
            return None
    found = difference(weights, prefix, expected, declared)
    if not found.fits:
        return None
    return Guess(name, prefix, found.outputs, found.channels)


def _candidates(weights: Weights) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each prefix whose names are an architecture's, and those architectures."""
    behind: dict[str, list[str]] = {"": list(weights.tensors)}
    for name in weights.tensors:
        parts = name.split(".")
        for count in range(1, len(parts)):
            prefix = ".".join(parts[:count]) + "."
            behind.setdefault(prefix, []).append(name.removeprefix(prefix))
    known = signatures()
    for prefix, names in sorted(behind.items(), key=lambda item: len(item[0])):
        if len(names) > 3 and (found := known.get(signature(names))) is not None:
            yield prefix, found


def _plain(channels: int, *, like: InputSpec | None = None) -> InputSpec:
    size = (64, 64) if like is None else (like.height, like.width)
    return InputSpec(
        channels=channels,
        height=size[0],
        width=size[1],
        mean=[0.0] * channels,
        std=[1.0] * channels,
    )
