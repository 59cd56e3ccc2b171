"""A detector as a ranker of images: is there a pedestrian in it, and which image is it surest of?

    Detector         an nn.Module that answers boxes, wrapped: one logit an image, with gradients
    largest_score    the same of the answers of any detector, for a function of images

The score of an image is the largest score of one class over its boxes. So an audit asks per image,
as always; precision and recall over boxes (mAP) is another problem, which a worst case per image
does not answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.errors import ConfigError, ModelError

# As of probabilities everywhere in the house: the smallest normal float32, the largest below 1.
SMALLEST, LARGEST = 2.0**-126, 1 - 2.0**-24


class Detector(nn.Module):
    """(B, C, H, W) floats in [0, 1] to (B,) logits: of the surest box of one class in each image.

    model: what answers, for a list of (C, H, W) images, a list of {"scores": (n,), "labels": (n,)},
    as the detectors of torchvision do in eval mode; scores are probabilities.  label: the class.

    An image without any box of the class scores as low as a probability can be, ties with all
    others of its kind, and gives no gradient. Detectors leave out boxes below a threshold of their
    own (`box_score_thresh=0` of torchvision keeps them all): the lower it is, the fewer images tie.

    Raises ConfigError for what is no detector or no label, ModelError for answers that are none.
    Source: none; the largest score is the usual reading of a detection as a classification.

    >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large as ssd
    >>> network = ssd(weights=None, weights_backbone=None, num_classes=2, score_thresh=0).eval()
    >>> adap.Detector(network, label=1)(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1])
    """

    def __init__(self, model: nn.Module, *, label: int) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"expected a detector as an nn.Module, got {type(model).__name__}: of a function "
                "adap.largest_score makes scores"
            )
        if isinstance(label, bool) or not isinstance(label, int):
            raise ConfigError(f"expected label as the number of a class, got {label!r:.80}")
        self.model = model
        self.label = label
        self.eval()  # in train mode detectors answer losses, and want boxes

    def forward(self, images: Tensor) -> Tensor:
        """(B,) logits."""
        found = self.model(list(images))
        if not isinstance(found, list | tuple) or len(found) != len(images):
            raise ModelError(
                f"expected a list of the boxes of {len(images)} images, got "
                f"{type(found).__name__}: detectors of torchvision answer so in eval mode"
            )
        lowest = images.new_zeros(())
        tops = [_top(_answer(one), self.label, lowest) for one in found]
        held = torch.stack(tops).clamp(SMALLEST, LARGEST)
        return held.log() - (-held).log1p()

    def decided(self) -> list[str]:
        """What a reader of a report must know."""
        return [
            "A detector is audited as a ranker of images: an image scores as its surest box of "
            f"class {self.label}. Boxes, and precision and recall over them (mAP), are not judged."
        ]


def largest_score(found: Sequence[Mapping[str, Any]], *, label: int) -> NDArray[np.float64]:
    """(B,) the largest score of one class over the boxes of each image, 0 where it has none.

    found: for each image "scores" (n,) and "labels" (n,), as arrays, tensors or lists.

    Raises ModelError for answers that are none.  Source: none; see `Detector`.

    >>> adap.largest_score([{"scores": [0.2, 0.9, 0.8], "labels": [1, 2, 1]}], label=1)
    array([0.8])
    """
    lowest = torch.zeros((), dtype=torch.float64)
    tops = [_top(_answer(one), label, lowest) for one in found]
    return np.array([float(top.detach()) for top in tops], dtype=np.float64)


def _answer(one: Any) -> tuple[Tensor, Tensor]:
    """Scores and labels of the boxes of one image."""
    if not isinstance(one, Mapping) or not {"scores", "labels"} <= one.keys():
        held = f"{sorted(one)[:10]}" if isinstance(one, Mapping) else type(one).__name__
        raise ModelError(f'expected "scores" and "labels" for each image, got {held}')
    scores, labels = (
        one[name] if isinstance(one[name], Tensor) else torch.from_numpy(np.asarray(one[name]))
        for name in ("scores", "labels")
    )
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ModelError(
            f"expected a score and a label for each box, got {tuple(scores.shape)} scores and "
            f"{tuple(labels.shape)} labels"
        )
    return scores, labels


def _top(answer: tuple[Tensor, Tensor], label: int, lowest: Tensor) -> Tensor:
    scores, labels = answer
    own = scores[labels == label]
    return own.max().to(lowest.dtype) if len(own) else lowest
