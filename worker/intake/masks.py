"""Segmentation masks among the images of folders, which are no examples of any class.

    benign/1.png, benign/1_mask.png         beside its image, as in BUSI
    images/1.jpg, masks/1.png               in a folder of its own; also train_images/, train_masks/
    JPEGImages/1.jpg, SegmentationClass/    as in Pascal VOC
    benign/1.png, benign/masks/1.png        below its image

A mask is known by the word in its name and by the image that it belongs to: a class `mask` whose
files are called as no others are is a class.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from adap.worker.intake.limits import Rejected
from adap.worker.intake.notes import listed

_ENDS = (
    *("mask", "masks", "segmentation", "segmentations", "seg", "gt", "trimap", "trimaps"),
    *("groundtruth", "ground_truth", "ground-truth", "ground truth"),
    *("annotation", "annotations", "label", "labels"),
)
_BETWEEN = "-_. "
_NUMBER = f"0123456789{_BETWEEN}"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_OF_MASKS = {"mask", "masks", "segmentation", "segmentations", "seg", "gt", "groundtruth", "ground"}
_OF_MASKS |= {"truth", "annotation", "annotations", "label", "labels", "trimap", "trimaps"}
_OF_IMAGES = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"}
_OF_IMAGES |= {"original", "originals", "input", "inputs", "rgb", "raw"}
_ANY = {"jpeg", "jpg", "png", "class", "object", "data", "folder", "set"}  # beside either of them
_LEVELS = 8  # of folders that are looked at

_Place = tuple[tuple[str, ...], tuple[str, ...], str]
"""Folders above one of masks or images, other words of its name, a stem from there, lower case."""


def refuse_masks(names: Sequence[str]) -> None:
    """Raise Rejected where some of these files are masks of others."""
    masks = _beside(names) or _in_folders(names)
    if not masks:
        return
    first, image = next(iter(masks.items()))
    raise Rejected(
        f"expected images alone, got {len(masks):,} that look like segmentation masks of others, "
        f"such as {listed([first])} of {listed([image])}: leave the masks out of the archive, or, "
        "if they are examples, say the label of each image in a metadata.csv"
    )


def _beside(names: Sequence[str]) -> dict[str, str]:
    """The images of masks that lie in the same folder, by mask."""
    stems = {_stem(name).lower(): name for name in names}
    found = {}
    for name in names:
        folder, slash, base = _stem(name).lower().rpartition("/")
        called = _image_of(base)
        if called and (image := stems.get(f"{folder}{slash}{called}")):
            found[name] = image
    return found


def _image_of(stem: str) -> str:
    """What the image of `1_mask` or `1_mask_2` would be called, empty where it is no such name."""
    trimmed = stem.rstrip(_NUMBER)
    if not trimmed.endswith(_ENDS):
        return ""
    word = max((end for end in _ENDS if trimmed.endswith(end)), key=len)
    called = trimmed.removesuffix(word)
    return called.rstrip(_BETWEEN) if called.endswith(tuple(_BETWEEN)) else ""


def _in_folders(names: Sequence[str]) -> dict[str, str]:
    """The images of masks that lie in folders of their own, by mask."""
    above = {name.rpartition("/")[0] for name in names}
    kinds = {folder: _kind(folder) for path in above for folder in path.split("/")[:_LEVELS]}
    if all(kind != "mask" for kind, _ in kinds.values()):
        return {}
    images: dict[_Place, str] = {}
    masks: dict[str, list[_Place]] = defaultdict(list)
    for name in names:
        *folders, base = _stem(name).split("/")
        parents = tuple(folders)
        images.setdefault((parents, (), base.lower()), name)
        for i, folder in enumerate(folders[:_LEVELS]):
            kind, rest = kinds[folder]
            inner = "/".join([*folders[i + 1 :], base]).lower()
            if kind == "image":
                images.setdefault((parents[:i], rest, inner), name)
            elif kind == "mask":
                masks[name].append((parents[:i], rest, inner))
                if called := _image_of(inner):
                    masks[name].append((parents[:i], rest, called))
    found = {}
    for name, keys in masks.items():
        image = next((images[key] for key in keys if key in images), None)
        if image is not None:
            found[name] = image
    return found


def _kind(folder: str) -> tuple[str | None, tuple[str, ...]]:
    """What a folder's name says it holds, and the words of the name that say something else."""
    words = [word.lower() for word in _WORDS.findall(folder)]
    rest = tuple(
        word for word in words if word not in _OF_MASKS | _OF_IMAGES | _ANY and not word.isdecimal()
    )
    if _OF_MASKS & set(words):
        return "mask", rest
    return ("image" if _OF_IMAGES & set(words) else None), rest


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.rpartition('.')[0] or base}"
