"""The errors of this package; it imports nothing of ours, so any package may catch them."""

from typing import ClassVar


class ModelFileError(Exception):
    """A model that is not what it should be: the message says what was expected and what came."""

    code: ClassVar[str] = "invalid_model"


class TaskError(ModelFileError):
    """A sound model that has no score for the classes asked for; the message names those it has."""

    code = "invalid_config"
