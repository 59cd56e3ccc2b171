"""Limits on what a network may cost. Free of torch, so that requests can carry them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CostLimits:
    """What a network may cost, from the settings ADAP_MAX_MODEL_FLOPS, ADAP_MAX_MODEL_BYTES and
    ADAP_SCORING_MAX_BATCH."""

    flops: int = 10**12  # of one image; ViT-L at 518 pixels takes 7e11
    bytes: int = 2**28  # of the values of one image at one moment, weights excepted
    batch: int = 64  # the most images of a pass
