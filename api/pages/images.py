"""The page of a data set's images: what there is to choose from; a script shows the images."""

from fastapi import Response

from adap.api.pages import page
from adap.api.schemas import Dataset
from adap.core.config.base import SPLITS


def images_page(dataset: Dataset) -> Response:
    """The images of a data set that is ready."""
    assert dataset.summary is not None
    return page(
        "images",
        dataset=dataset,
        splits=[split for split in SPLITS if split in dataset.summary.splits],
        side=max(dataset.summary.height, dataset.summary.width),
    )
