"""The architectures that can be asked for, described without torch for the web process.

`adap.models.architectures` builds them; a test holds the two lists equal, and the figures true.
Those of torchvision and timm (`adap.models.foreign`) can be uploaded but not trained here; their
names are the closed lists in the text files beside this one, which a test holds equal to the
libraries' own.
"""

from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from adap.models.errors import ModelFileError
from adap.models.graphs import GRAPH
from adap.models.header import Manifest


class ArchitectureInfo(BaseModel):
    """What a client needs to know to choose an architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    minimum_size: int = Field(description="smallest height and width of an image, in pixels")
    parameters: int = Field(description="trainable parameters for 3 channels and one logit")


ARCHITECTURES: dict[str, ArchitectureInfo] = {
    info.name: info
    for info in (
        ArchitectureInfo(
            name="small_cnn",
            description="Three 3x3 convolutions and a mean over the image. Trains in seconds on a "
            "CPU; for small images and for trying things out.",
            minimum_size=8,
            parameters=93_601,
        ),
        ArchitectureInfo(
            name="resnet18",
            description="torchvision's ResNet-18 with its ImageNet stem, as in the paper. For "
            "images of 64 pixels and more; the paper uses it at 32.",
            minimum_size=32,
            parameters=11_177_025,
        ),
        ArchitectureInfo(
            name="resnet18_3x3",
            description="ResNet-18 with a 3x3 stem of stride 1 and no max pooling, which keeps "
            "the detail of small images such as CIFAR's 32x32.",
            minimum_size=8,
            parameters=11_169_345,
        ),
        ArchitectureInfo(
            name="thin_cnn",
            description="Two 3x3 convolutions and a hidden layer over a 4x4 grid, without "
            "BatchNorm. So thin that what no attack can break may be proven of it.",
            minimum_size=8,
            parameters=37_985,
        ),
    )
}

SMALLEST = {info.name: info.minimum_size for info in ARCHITECTURES.values()}

LIBRARIES = ("torchvision", "timm")


@cache
def foreign_names(library: str) -> frozenset[str]:
    """The names of the architectures of torchvision or timm."""
    return frozenset(files("adap.models").joinpath(f"{library}.txt").read_text().split())


def is_foreign(name: str) -> bool:
    """Whether this is an architecture of torchvision or timm, as `torchvision/resnet50`."""
    library, _, own = name.partition("/")
    return library in LIBRARIES and own in foreign_names(library)


def is_known(name: str) -> bool:
    """Whether weights of this architecture can be uploaded."""
    return name == GRAPH or name in ARCHITECTURES or is_foreign(name)


def known() -> str:
    """What can be uploaded, for a message."""
    libraries = ", ".join(f"{library}/NAME" for library in LIBRARIES)
    return f"{', '.join(ARCHITECTURES)}, {GRAPH}, {libraries}"


def check(manifest: Manifest) -> ArchitectureInfo | None:
    """The architecture that a manifest names, once it is known to take such images.

    None for one that the file itself describes. Raises ModelFileError for an unknown architecture,
    or images that are too small for it.
    """
    if not is_known(manifest.architecture):
        raise ModelFileError(
            f"expected an architecture among {known()}, got {manifest.architecture!r}"
        )
    info = ARCHITECTURES.get(manifest.architecture)
    if info is None:
        return None
    if min(manifest.input.height, manifest.input.width) < info.minimum_size:
        raise ModelFileError(
            f"expected images of at least {info.minimum_size}x{info.minimum_size} pixels for "
            f"{info.name}, got {manifest.input.width}x{manifest.input.height}"
        )
    return info
