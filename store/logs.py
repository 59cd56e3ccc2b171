"""Structured logs: one line an event, JSON where no person is watching."""

import logging
import os
import sys
from contextlib import AbstractContextManager

import structlog

from adap.store.settings import Settings

MAX_CHARACTERS = 500  # of one value in a line


def log_about(**ids: str) -> AbstractContextManager[None]:
    """Name these ids in every line that is logged in this block, by whatever library."""
    return structlog.contextvars.bound_contextvars(**ids)


def _cut(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Cut long texts of an event, the event's own among them; exceptions are ours and stay."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            event[name] = f"{value[:MAX_CHARACTERS]}… ({len(value)} characters)"
    return event


def configure_logging(settings: Settings) -> None:
    """Send every library's records through one format, with what was passed as `extra`.

    Files that the process makes from then on are its user's alone. Long values are cut: whoever
    sends a request does not choose how long a line is.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _cut,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    os.umask(0o077)  # what the service writes is its user's alone
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for chatty in ("alembic", "httpx", "kombu", "amqp"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
