"""One shape for every model: images in [0, 1] to one logit of the positive side of a task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adap.models.header import (
    LARGEST_PROBABILITY,
    ONE_LOGIT,
    SMALLEST_PROBABILITY,
    InputSpec,
    OutputSpec,
)


class Scorer(nn.Module):
    """A network with its normalisation inside, so that attacks and callers know pixels only.

    (B, C, H, W) float in [0, 1] -> (B,) logits, higher for the positive classes. `state_dict` holds
    the network's tensors only: mean and std belong to the manifest. `train()` and `eval()` reach
    the network, as for any module.

    output: what the network answers; one logit may come as (B,) or (B, 1).
    positive: the classes to score, for a network with a logit for each; `OutputSpec` says how.
    Without them such a network has its `outputs` and no score. One logit is the score whatever is
    positive. Raises TaskError for classes that have no score.
    """

    mean: Tensor
    std: Tensor
    ours: Tensor
    theirs: Tensor

    def __init__(
        self,
        network: nn.Module,
        input_spec: InputSpec,
        *,
        output: OutputSpec = ONE_LOGIT,
        positive: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.input_spec = input_spec
        self.output = output
        for name, numbers in zip(("mean", "std"), input_spec.for_unit_range(), strict=True):
            values = torch.tensor(numbers, dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        # columns of the positive classes, none where no task is given, and of all the others
        ours = [] if positive is None else output.columns(positive)
        theirs = [i for i in range(output.count) if i not in ours]
        for name, columns in (("ours", ours), ("theirs", theirs)):
            values = torch.tensor(columns, dtype=torch.int64)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,) logits of the task; raises ValueError for images or outputs of another shape."""
        logits = self.outputs(images)
        if self.output.classes is None:
            return logits.reshape(len(images))
        if len(self.ours) == 0:
            self.output.columns(None)  # raises, as there is no score without a task
        score = logits[:, self.ours].logsumexp(dim=1)  # of one class: its logit, bit for bit
        if self.output.one_is_true:
            score = score - logits[:, self.theirs].logsumexp(dim=1)
        return score

    def outputs(self, images: Tensor) -> Tensor:
        """(B, K) logits, one a class, or K = 1; raises as `forward` does.

        The network's own, or those of its probabilities, as `OutputSpec` says.
        """
        raw = self.raw_outputs(images)
        if not self.output.are_probabilities:
            return raw
        held = raw.clamp(SMALLEST_PROBABILITY, LARGEST_PROBABILITY)
        if self.output.kind == "probability":
            return held.log() - (-held).log1p()
        return held.log()

    def raw_outputs(self, images: Tensor) -> Tensor:
        """(B, K) what the network answers, logits or probabilities; raises as `forward` does."""
        spec, count = self.input_spec, self.output.count
        if images.shape[1:] != (spec.channels, spec.height, spec.width):
            raise ValueError(
                f"expected images (B, {spec.channels}, {spec.height}, {spec.width}), "
                f"got {tuple(images.shape)}"
            )
        if spec.channel_order == "bgr":
            images = images[:, [2, 1, 0, *range(3, spec.channels)]]
        logits: Tensor = self.network((images - self.mean) / self.std)
        if logits.shape == (len(images), count):
            return logits
        if count == 1 and logits.shape == (len(images),):
            return logits[:, None]
        wanted = "one logit an image, (B,) or (B, 1)" if count == 1 else f"logits (B, {count})"
        raise ValueError(f"expected {wanted} with B = {len(images)}, got {tuple(logits.shape)}")


class EveryLogit(Scorer):
    """A scorer of all classes at once, as training on each of them needs: (B, K) logits."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits; raises as `Scorer` does."""
        return self.outputs(images)
