"""The network that a manifest names, whoever wrote it: ours, torchvision's or timm's."""

from torch import nn

from adap.models import catalogue, foreign
from adap.models.architectures import build_empty
from adap.models.header import Manifest


def empty(manifest: Manifest) -> nn.Module:
    """It without memory behind its tensors, for their names, shapes and dtypes.

    Raises ModelFileError where the library does not build it for such images.
    """
    if catalogue.is_foreign(manifest.architecture):
        return foreign.build(manifest, empty=True)
    return build_empty(
        manifest.architecture, channels=manifest.input.channels, outputs=manifest.output.count
    )


def fillable(manifest: Manifest) -> nn.Module:
    """It, ready to be given all its tensors; some of the libraries' hold tensors of no file."""
    if catalogue.is_foreign(manifest.architecture):
        return foreign.build(manifest, empty=False)
    return empty(manifest)
