"""Where a training's random numbers come from: a seed for each use of them, of the run's own.

No two uses share a seed, and within a use no two epochs do, so that nothing is drawn twice and
what an epoch draws hangs on the seed of the run and on the epoch alone.
"""

from enum import IntEnum

import numpy as np
import torch


class Use(IntEnum):
    """What numbers are drawn for: part of their seed."""

    SAMPLING = 0
    AUGMENTING = 1
    ATTACKING = 2
    VALIDATING = 3


def seed(generator: torch.Generator, run: int, use: Use, *epoch: int) -> torch.Generator:
    """The generator, begun anew for this use in a run of this seed (and in an epoch, from 1)."""
    (state,) = np.random.SeedSequence((run, use, *epoch)).generate_state(1, np.uint64)
    return generator.manual_seed(int(state))


def attack_generator(device: torch.device, run: int, epoch: int) -> torch.Generator:
    """The random numbers of the attack on the images of one epoch, counted from 1."""
    return seed(torch.Generator(device), run, Use.ATTACKING, epoch)
