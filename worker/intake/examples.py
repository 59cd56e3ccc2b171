"""The images of a zip and what is known of each, whoever said it: folders or a table."""

from dataclasses import dataclass

# what lies beside images and is none; a file of another suffix, or none, is taken for an image
_OTHER_SUFFIXES = {
    *(".txt", ".md", ".rst", ".pdf", ".doc", ".docx", ".rtf", ".html", ".htm", ".tex", ".log"),
    *(".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf"),
    *(".csv", ".tsv", ".xls", ".xlsx", ".mat", ".db", ".sqlite", ".h5", ".hdf5", ".lst", ".names"),
    *(".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".onnx", ".safetensors"),
    *(".py", ".ipynb", ".sh", ".bat", ".m", ".r", ".js", ".css", ".bib", ".url", ".lnk", ".tmp"),
    *(".mp4", ".avi", ".mov", ".mkv", ".wav", ".mp3", ".svg", ".psd", ".part", ".cls"),
}
_OTHER_NAMES = {"readme", "license", "licence", "changelog", "authors", "notice", "citation"}
_OTHER_NAMES |= {"dicomdir"}


@dataclass(frozen=True)
class Example:
    """One image of the archive and what is known of it."""

    name: str  # in the archive
    example_id: str  # the same without the folder that wraps everything
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    cluster: str | None = None


def suffix_of(name: str) -> str:
    """`.png` of `cat/1.PNG`, empty where there is none."""
    base = name.rpartition("/")[2]
    return f".{base.rpartition('.')[2].lower()}" if "." in base else ""


def is_no_image(name: str) -> bool:
    """Whether a file's name says that it is something else than an image."""
    base = name.rpartition("/")[2].lower()
    return suffix_of(name) in _OTHER_SUFFIXES or base in _OTHER_NAMES
