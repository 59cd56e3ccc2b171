"""Data sets that somebody sent: opened, checked and turned into numbers, inside a sandboxed child.

    read_dataset -- archive   a zip whose members are checked before anything is unpacked
                 |- tars      the same of tars, which are read where they lie
                 |- folders   zip of images: which class and split each belongs to, by folders
                 |- tables    the same, and groups and clusters, by metadata.csv and its like
                 |- samples   the same, by files beside each image (WebDataset)
                 |- parquet   one file, or several in a zip
                 |- images    image files to pixels
                 |- dicom     the same of DICOM, without who it shows
                 |- arrays    NPZ of NumPy arrays, without pickles
                 |- values    which of the 256 values the pixels use
                 |- similar   images that look alike in two splits
                 `- notes     how all of it was understood, and what to know of it

Only Parquet files and tars in a zip, and compressed tars, are unpacked to disk, for as long as it
takes; nothing is executed, no library opens a format that is not named here. Everything that is
wrong is told at once, as reasons that name files. Free of torch.
"""

from adap.worker.intake.limits import IntakeLimits, Rejected
from adap.worker.intake.reading import read_dataset, summarise

__all__ = ["IntakeLimits", "Rejected", "read_dataset", "summarise"]
