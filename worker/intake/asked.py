"""Settings of one upload's reading: limits, the sender's options, where everything goes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config.data import DatasetOptions
from adap.worker.intake.limits import IntakeLimits
from adap.worker.intake.notes import Notes

Shape = tuple[int, int, int, int]
"""N, C, H, W."""

Room = Callable[[NDArray[Any], Shape], NDArray[np.uint8]]
"""Gives room for the images of these labels: in memory, or mapped from where they end."""


@dataclass(frozen=True)
class Asked:
    """What every reader of a form is given."""

    limits: IntakeLimits
    options: DatasetOptions
    notes: Notes
    room: Room
    on_progress: Callable[[int, int], None]  # images done, of how many
    scratch: Path | None = None  # a folder for what has to lie on disk meanwhile
