"""The one error of this package; it imports nothing of ours, so any package may catch it."""

from typing import ClassVar


class ModelFileError(Exception):
    """A model that is not what it should be: the message says what was expected and what came."""

    code: ClassVar[str] = "invalid_model"
