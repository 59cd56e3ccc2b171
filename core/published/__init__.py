"""Published data sets from a local folder in their publisher's own layout, all read alike.

    image_set = load("bdd100k", Path("/data/bdd100k"), labels="scene")
    image_set = hold_out(image_set, fraction=0.2, seed=0)           # adap.core.training.splitting

Images are uint8, in memory or mapped into it. `python -m adap.core.published cifar10 ROOT` packs
one for upload. Nothing is downloaded: a file that is missing is named, with where it comes from.
"""

from pathlib import Path

from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError
from adap.core.published import bdd100k, celeba, cifar, folders
from adap.core.published.base import OnProgress, Published, Reading

PUBLISHED: dict[str, Published] = {
    entry.name: entry
    for entry in (cifar.CIFAR10, cifar.CIFAR100, celeba.CELEBA, bdd100k.BDD100K, folders.FOLDER)
}
CACHE = ".adap"
"""Folder below the root where decoded images are kept, unless another is named."""


def load(
    name: str,
    root: Path,
    *,
    labels: str | None = None,
    size: int | None = None,
    cache: Path | None = None,
    on_progress: OnProgress = lambda _done, _total: None,
) -> ImageSet:
    """Read a data set with the splits that its publisher recommends.

    name: a key of `PUBLISHED`.  labels: which labelling of its images: `superclass` or `class` of
    CIFAR-100, an attribute of CelebA, `weather` or `scene` of BDD100K.  size: height and width
    that CelebA, BDD100K and folders are brought to.  on_progress: told (done, total) images.

    Raises MissingFileError for a file that is not there, DataError for one that is not as
    published, ConfigError for a name or a labelling that does not exist.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"expected a data set among {', '.join(PUBLISHED)}; got {name}")
    if size is not None and not 8 <= size <= 1024:
        raise ConfigError(f"expected a size from 8 to 1024 pixels, got {size}")
    if not root.exists():
        raise DataError(
            f"expected a folder in {root}, got nothing; it should hold {PUBLISHED[name].source}"
        )
    reading = Reading(
        labels=labels, size=size, cache=cache or root / CACHE, on_progress=on_progress
    )
    return PUBLISHED[name].read(root, reading)


def paper_tasks(name: str) -> list[tuple[str | None, Task]]:
    """The tasks of the paper on a data set: the labelling each needs, and the task itself."""
    return [(labels, Task(positive=[positive])) for labels, positive in PUBLISHED[name].tasks]
