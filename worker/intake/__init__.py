"""Data sets that somebody sent: opened, checked and turned into numbers, inside a sandboxed child.

    read_dataset -- archive   a zip whose members are checked before anything is unpacked
                 |- folders   zip of images: which class, split and group each belongs to
                 |- images    PNG, JPEG and WebP to pixels
                 `- arrays    NPZ of NumPy arrays, without pickles

Nothing is unpacked to disk, nothing is executed, no library opens a format that is not named here.
Everything that is wrong is told at once, as reasons that name files. Free of torch.
"""

from adap.worker.intake.limits import IntakeLimits, Rejected
from adap.worker.intake.reading import read_dataset, summarise

__all__ = ["IntakeLimits", "Rejected", "read_dataset", "summarise"]
