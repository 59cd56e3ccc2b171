"""The errors of the science: each says in one sentence what was expected and what came.

    AdapError
    |- ConfigError      a parameter that no run could honour
    |- DataError        examples that cannot be used for what was asked
    |- ModelError       a network that cannot be loaded, or whose outputs cannot be ranked
    `- TrainingError    training that went wrong after it had started

`code` is stable: it is what an API client or a script branches on. Nothing here knows HTTP.
"""

from typing import ClassVar


class AdapError(Exception):
    """Base of every expected failure."""

    code: ClassVar[str] = "adap_error"


class ConfigError(AdapError):
    """A parameter that no run could honour."""

    code = "invalid_config"


class DataError(AdapError):
    """Examples that cannot be used for what was asked."""

    code = "invalid_data"


class ModelError(AdapError):
    """A network that cannot be loaded, or whose outputs cannot be ranked."""

    code = "invalid_model"


class TrainingError(AdapError):
    """Training that went wrong after it had started, for example a loss that is not finite."""

    code = "training_failed"
