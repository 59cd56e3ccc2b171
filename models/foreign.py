"""torchvision's and timm's architectures by name, untrained: somebody's weights come into them.

The names are a closed list (`adap.models.catalogue`); nothing is ever downloaded.
"""

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from adap.models.catalogue import ARCHITECTURES
from adap.models.errors import ModelFileError
from adap.models.header import Manifest


def build(manifest: Manifest, *, empty: bool) -> nn.Module:
    """The network that a manifest names as `torchvision/NAME` or `timm/NAME`, in training mode.

    empty: without memory behind its tensors, for their names, shapes and dtypes.
    Raises ModelFileError where the library does not build it for such images.
    """
    library, _, name = manifest.architecture.partition("/")
    make = {"torchvision": _torchvision, "timm": _timm}[library]
    # torch's layers draw from the process-wide generator: put it back afterwards
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about weights that are not asked for
        try:
            if empty:
                with suppress(NotImplementedError), torch.device("meta"):
                    return make(name, manifest)
            with torch.device("cpu"):  # RegNet computes its widths with tensors: it needs memory
                return make(name, manifest)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ModelFileError(
                f"expected images that {manifest.architecture} can be built for, got "
                f"{manifest.input.width}x{manifest.input.height} (width x height): "
                f"{str(error)[:200]}"
            ) from error


def _torchvision(name: str, manifest: Manifest) -> nn.Module:
    from torchvision.models import get_model  # takes more than a second: only where it is used

    spec = manifest.input
    if spec.channels != 3:
        own = f", and so does the architecture {name} of this service" * (name in ARCHITECTURES)
        raise ModelFileError(
            f"expected 3 channels for {manifest.architecture}, got {spec.channels}; as ONNX a "
            f"network may take any number{own}"
        )
    size: dict[str, int | tuple[int, int]] = {}  # of those that are made for one size of image
    if name.startswith("vit_"):
        size = {"image_size": spec.height}
    elif name.startswith("maxvit"):
        size = {"input_size": (spec.height, spec.width)}
    network: nn.Module = get_model(name, weights=None, num_classes=manifest.output.count, **size)
    return network


def _timm(name: str, manifest: Manifest) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"expected an architecture that is installed here, got {manifest.architecture}: the "
            "service needs its extra `timm`"
        ) from error
    spec = manifest.input
    known = timm.models.get_pretrained_cfg(name)
    fixed = known is not None and known.fixed_input_size
    size: dict[str, Any] = {"img_size": (spec.height, spec.width)} if fixed else {}
    network: nn.Module = timm.create_model(
        name,
        pretrained=False,
        num_classes=manifest.output.count,
        in_chans=spec.channels,
        **size,
    )
    return network
