"""Messages on the pipe between a worker and its child: the work, progress, events."""

import json
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from adap.worker.pipelines.requests import REQUESTS, AnyRequest

Message = dict[str, Any]

Asked = TypeVar("Asked", bound=AnyRequest, covariant=True)


@dataclass(frozen=True)
class Work(Generic[Asked]):
    """One piece of work: a request, its input files and an empty folder."""

    request: Asked
    inputs: dict[str, Path]
    folder: Path
    device: str = "cpu"

    def encode(self) -> bytes:
        """The form in which it crosses the pipe."""
        fields = {
            "request": self.request.model_dump_json(),
            "inputs": {name: str(path) for name, path in self.inputs.items()},
            "folder": str(self.folder),
            "device": self.device,
        }
        return json.dumps(fields).encode()


def decode(data: bytes) -> Work[AnyRequest]:
    """Read what `Work.encode` wrote."""
    fields = json.loads(data)
    return Work(
        request=REQUESTS.validate_json(fields["request"]),
        inputs={name: Path(path) for name, path in fields["inputs"].items()},
        folder=Path(fields["folder"]),
        device=fields["device"],
    )


class Reporter:
    """The child's end of the pipe, as the pipelines see it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_progress = 0.0

    def send(self, message: Message) -> None:
        """Send any message to the worker."""
        self._connection.send_bytes(json.dumps(message).encode())

    def progress(self, phase: str, completed: int, total: int, unit: str) -> None:
        """Say how far the work is; at most five times a second, but always at the end."""
        if completed < total and time.monotonic() - self._last_progress < 0.2:
            return
        self._last_progress = time.monotonic()
        self.send(
            {
                "type": "progress",
                "phase": phase,
                "completed": completed,
                "total": total,
                "unit": unit,
            }
        )

    def event(self, name: str, data: dict[str, Any]) -> None:
        """Append an event to the job, for example an epoch's figures."""
        self.send({"type": "event", "name": name, "data": data})

    def checkpoint(self, file: Path, *, epoch: int) -> None:
        """Hand over a file in the work folder from which a training can go on after this epoch."""
        self.send({"type": "checkpoint", "file": file.name, "epoch": epoch})
