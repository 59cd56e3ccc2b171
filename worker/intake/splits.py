"""Names of splits, in the spellings that folders, files and columns have.

`train`, `Training_Set`, `seg_train`, `train2017` and `trainset` are the train split; `val`,
`valid`, `validation` and `dev` validation; `test`, `testing`, `holdout` test. `eval` is the test
split, or validation where something else is called test.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from adap.core.config.base import SPLITS, Split
from adap.models.header import shown
from adap.worker.intake.limits import Rejected
from adap.worker.intake.notes import listed

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "validation": "validation",
    "validate": "validation",
    "validating": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "devel": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
}
_EVALUATION = {"eval", "evaluation"}
_GENERIC = {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder", "part"}
_GENERIC |= {"photos", "pictures", "files", "the", "my", "final", "full", "of", "public", "private"}
# One letter from a split's name, and words themselves: classes, or what else an array is called.
_NO_SLIPS = {"rain", "brain", "drain", "grain", "strain", "twain", "trail", "trait"}
_NO_SLIPS |= {"raining", "braining", "draining", "graining"}
_NO_SLIPS |= {"straining", "trailing"}
_NO_SLIPS |= {"rest", "best", "west", "pest", "nest", "vest", "zest", "jest", "fest", "lest"}
_NO_SLIPS |= {"gest", "text", "tent", "teat"}
_NO_SLIPS |= {"resting", "nesting", "besting", "jesting", "vesting", "westing"}
_NO_SLIPS |= {"tasting", "texting", "tenting"}
_NO_SLIPS |= {"vapid", "level", "revel", "bevel", "devil", "devils", "foldout"}
MOST_DIFFERENT = 6  # values of a column of splits
_CHOOSING = {"is", "in", "idx", "idxs", "ind", "inds", "index", "indexes", "indices", "id", "ids"}
_CHOOSING |= {"mask", "masks", "flag", "flags"}  # beside the split, in the name of an array
_CODE = re.compile(r"-?\d+(?:\.0+)?|true|false|yes|no|t|f", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_SUFFIX = re.compile(r"(?:[-_ ]?(?:set|data|dataset|images|imgs))+$")


def splits_of(names: Iterable[str]) -> dict[str, Split]:
    """The splits that these names name together; a name without one is not among the keys."""
    found: dict[str, Split] = {}
    evaluations = []
    for name in names:
        words = _words(name)
        known = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
        if known:
            # train_val is both, and is trained on
            found[name] = "train" if "train" in known else known[0]
        elif _EVALUATION & set(words):
            evaluations.append(name)
    for name in evaluations:
        found[name] = "validation" if "test" in found.values() else "test"
    return found


def refuse_misspelt(names: Sequence[str]) -> None:
    """Raise Rejected where all folders seem to be splits, each another, and some are misspelt.

    A name is misspelt that is a letter more, less or other than a split's, or two that are swapped:
    classes would be made of `trian` and `tset` in silence.
    """
    known = splits_of(names)
    shared = set.intersection(*(set(_words(name)) for name in names)) if len(names) > 1 else set()
    meant = {name: known.get(name) or meant_split(name, beside=shared) for name in names}
    odd = [name for name in names if name not in known]
    if not odd or None in meant.values() or len(set(meant.values())) < max(len(names), 2):
        return
    told = " and ".join(f"{shown(name)} like {meant[name]}" for name in odd)
    raise Rejected(
        f"expected names of splits, or of classes, got {told}, as if misspelt: rename "
        f"{'it' if len(odd) == 1 else 'them'}, or, if {listed(names)} are the classes, send "
        "`folders` (--folders class)"
    )


def meant_split(name: str, *, beside: Collection[str] = ()) -> Split | None:
    """The split that this name is one slip of the hand away from, if it names none.

    beside: words of it that say something else. With another one it is no split: `rain_forest`.
    """
    if splits_of([name]):
        return None
    whole = [word.lower() for word in _WORDS.findall(name)]  # of `tset` no `set` is taken off
    for words in (whole, _words(name)):
        left = [word for word in words if word not in {*_GENERIC, *beside} and not word.isdecimal()]
        if len(left) != 1 or left[0] in _NO_SLIPS:
            continue
        for known, split in SPLIT_NAMES.items():
            if len(known) > 3 and _one_slip(left[0], known):
                return split
    return None


def _one_slip(got: str, meant: str) -> bool:
    """Whether a letter is missing, added or another, or two neighbours are swapped."""
    if len(got) == len(meant):
        off = [i for i, (a, b) in enumerate(zip(got, meant, strict=True)) if a != b]
        if len(off) != 2:
            return len(off) == 1
        first, second = off
        return second == first + 1 and got[first] + got[second] == meant[second] + meant[first]
    short, long = sorted((got, meant), key=len)
    return any(short == long[:i] + long[i + 1 :] for i in range(len(long)))


def names_a_split_alone(name: str) -> bool:
    """Whether a name says which split it is and nothing else, as `Training_Set` or `train2017`."""
    rest = [word for word in _words(name) if word not in _GENERIC and not word.isdecimal()]
    return bool(rest) and all(word in SPLIT_NAMES or word in _EVALUATION for word in rest)


def rest_of(name: str) -> str:
    """What a name says beside its split: `x` of `trainX` and `x_train`."""
    return "_".join(word for word in _words(name) if word not in SPLIT_NAMES)


def split_problem(split: str) -> str | None:
    """Why a value of a column cannot be the name of a split, if it cannot."""
    if names_a_split_alone(split):
        return None
    return f"expected a split among {', '.join(SPLITS)}, got {shown(split)}"


def refuse_codes(column: str, values: Iterable[str]) -> None:
    """Raise Rejected, once for all rows, where numbers or truth values stand for splits."""
    codes = sorted(filter(is_code, set(values)))
    if codes:
        raise Rejected(
            f"the column {shown(column)} holds {listed(codes)}, which could be any "
            f"splits: write {', '.join(SPLITS)} in a column `split`, or leave the column out"
        )


def is_code(value: str) -> bool:
    """Whether a value is a number or a truth value."""
    return _CODE.fullmatch(value) is not None


def chooses_a_split(array: str) -> bool:
    """Whether an array says by its name that it tells examples of splits: `is_train`, `val_idx`."""
    words = [word for word in _words(array) if word not in _CHOOSING]
    return bool(words) and names_a_split_alone("_".join(words))


def is_called_a_split(column: str) -> bool:
    """Whether a column says by its name that its values choose a split, as `is_valid` does."""
    return names_a_split_alone(column.lower().removeprefix("is_").removeprefix("is"))


def _words(name: str) -> list[str]:
    words = [word.lower() for word in _WORDS.findall(name)]
    return [_SUFFIX.sub("", word) or word for word in words]
