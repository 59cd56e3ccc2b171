"""One shape for every model: images in [0, 1] to one logit of the positive class."""

import torch
from torch import Tensor, nn

from models.header import InputSpec


class Scorer(nn.Module):
    """A network with its normalisation inside, so that attacks and callers know pixels only.

    (B, C, H, W) float in [0, 1] -> (B,) logits, higher for the positive class. The network may
    answer (B,) or (B, 1). `state_dict` holds the network's tensors only: mean and std belong to the
    manifest. `train()` and `eval()` reach the network, as for any module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, input_spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        self.input_spec = input_spec
        for name in ("mean", "std"):
            values = torch.tensor(getattr(input_spec, name), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,) logits; raises ValueError for images or outputs of another shape."""
        spec = self.input_spec
        if images.shape[1:] != (spec.channels, spec.height, spec.width):
            raise ValueError(
                f"expected images (B, {spec.channels}, {spec.height}, {spec.width}), "
                f"got {tuple(images.shape)}"
            )
        logits: Tensor = self.network((images - self.mean) / self.std)
        if logits.shape not in ((len(images),), (len(images), 1)):
            raise ValueError(
                f"expected one logit an image, (B,) or (B, 1) with B = {len(images)}, "
                f"got {tuple(logits.shape)}"
            )
        return logits.reshape(len(images))
