"""A model behind its deployment pipeline: attacked through it, scored behind it.

    deployed         a scorer with the pipeline in front of it
    followed         the same of an attacker's own model, by its mean where a step draws
    prepared         images as they come out of a pipeline

Whoever attacks a detector in use changes what the camera or the upload brings, not what the network
is given: in between the image is compressed, resized, rounded to 8 bits. So that is where the
change is made here, and both what a search follows and what is scored pass through it.

What comes out of a step is exact. Resizing and cropping have their own gradients; rounding to
levels has that of doing nothing (backward pass differentiable approximation, Athalye, Carlini &
Wagner, "Obfuscated gradients", ICML 2018, section 4.1), and JPEG that of soft rounding of its
coefficients (`adap.core.attacks.jpeg`). Where the quality of a JPEG varies, a score and a gradient
are means over draws, as in `adap.core.audit.drawing`: expectation over transformation (Athalye,
Engstrom et al., ICML 2018).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adap import rounding
from adap.core.attacks.jpeg import through_jpeg
from adap.core.audit.drawing import mean_of
from adap.core.config.deployment import (
    CropStep,
    JPEGStep,
    PipelineStep,
    QuantiseStep,
    ResizeStep,
    pipeline_draws,
)


def deployed(scorer: nn.Module, pipeline: Sequence[PipelineStep]) -> nn.Module:
    """The scorer behind a pipeline; itself behind none."""
    return Deployed(scorer, pipeline) if pipeline else scorer


def followed(surrogate: nn.Module, pipeline: Sequence[PipelineStep]) -> nn.Module:
    """The attacker's own model behind the pipeline, which whoever attacks through it knows.

    By its mean over draws where a step draws, as the audited model is attacked and scored.
    """
    return mean_of(deployed(surrogate, pipeline), pipeline_draws(pipeline))


class Deployed(nn.Module):
    """A scorer with a deployment pipeline in front of it: (B, C, H, W) in [0, 1] to (B,) logits."""

    def __init__(self, scorer: nn.Module, pipeline: Sequence[PipelineStep]) -> None:
        super().__init__()
        self.scorer = scorer
        self.pipeline = tuple(pipeline)
        self.rounds = any(isinstance(step, JPEGStep | QuantiseStep) for step in pipeline)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) logits of what the pipeline makes of the images."""
        logits: Tensor = self.scorer(prepared(x, self.pipeline))
        return logits

    def without_rounding(self) -> AbstractContextManager[None]:
        """Inside it answers what it would if nothing in it rounded: its gradient's own function."""
        return rounding.left_out()


def prepared(x: Tensor, pipeline: Sequence[PipelineStep]) -> Tensor:
    """(B, C, h, w) in [0, 1]: what a model behind the pipeline is given of images (B, C, H, W)."""
    for step in pipeline:
        x = _done(step, x)
    return x


def _done(step: PipelineStep, x: Tensor) -> Tensor:
    match step:
        case ResizeStep():
            return _resized(step, x)
        case CropStep():
            # as torchvision has it where what is left out is odd
            top, left = round((x.shape[2] - step.height) / 2), round((x.shape[3] - step.width) / 2)
            return x[:, :, top : top + step.height, left : left + step.width]
        case JPEGStep():
            least = step.quality if step.least_quality is None else step.least_quality
            drawn = torch.randint(least, step.quality + 1, (len(x),))
            return through_jpeg(x, drawn.tolist())
        case QuantiseStep():
            return rounding.round_half_even(x * (step.levels - 1)) / (step.levels - 1)


def _resized(step: ResizeStep, x: Tensor) -> Tensor:
    size = (step.height, step.width)
    if step.filter == "nearest":
        return F.interpolate(x, size, mode="nearest-exact")
    found = F.interpolate(x, size, mode=step.filter, antialias=step.antialias, align_corners=False)
    return found.clamp(0, 1)  # bicubic overshoots
