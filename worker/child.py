"""The process that does the work of jobs, and how its parent talks to it.

A worker never computes: it hands each job to a child, which has no database, no broker and no
credentials. The child gets a request, the paths of its input files and an empty work folder; it
answers with progress, events, checkpoints and at last a result, whose files the worker publishes.
So a child may be killed at any moment, and nothing half-written is left behind.

Two kinds of child run the same loop. Work on what the service made itself starts from a fork
server that has torch loaded already (milliseconds). Files from outside are opened in a sandbox
(`adap.worker.sandbox`), started from nothing (seconds).
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, Pipe
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from adap.store import storage
from adap.store.settings import GIB, MIB
from adap.worker import devices
from adap.worker.pipelines.requests import AnyRequest, DatasetCheck, ModelCheck
from adap.worker.pipelines.results import RESULTS, AnyResult
from adap.worker.sandbox import Sandbox, limit_resources
from adap.worker.work import Message, Reporter, Work, decode

log = logging.getLogger(__name__)

_context = get_context("forkserver")
_context.set_forkserver_preload(["adap.worker.pipelines.table", "torchvision"])


DATASET_HEAP_BYTES = 768 * MIB
MODEL_HEAP_BYTES = 2 * GIB  # of which torch and onnxruntime take one
REPORT_LIMIT_S = 10.0  # in which the fork server tells that a child has ended
_NO_MEMORY = (
    "The work needs more memory than the service grants it; "
    "a smaller batch_size or a smaller data set may help."
)
_UNEXPECTED = "The service met an error that it did not expect"


class ChildFailedError(Exception):
    """The work failed for a reason that the child could name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class DeviceLostError(ChildFailedError):
    """The device failed, and not the work."""


class ChildDiedError(Exception):
    """The child ended without an answer: a crash, the out-of-memory killer, or `kill -9`."""


class Child:
    """A child process that runs one piece of work after another."""

    def __init__(self, *, sandbox: Sandbox | None = None, threads: int | None = None) -> None:
        self._sandbox = sandbox
        self._threads = threads
        self._connection: Connection | None = None
        self._process: BaseProcess | subprocess.Popen[bytes] | None = None

    def run(
        self,
        work: Work[AnyRequest],
        *,
        on_message: Callable[[Message], None],
        check: Callable[[], None],
        poll_s: float = 0.1,
    ) -> AnyResult:
        """Do a piece of work; returns its result.

        `on_message` gets progress, events and checkpoints as they come; `check` is called a few
        times a second and stops the work by raising. Whatever ends this call with an exception
        other than ChildFailedError has killed the child.

        Raises ChildFailedError with the pipeline's own reason, DeviceLostError if that is its
        device, ChildDiedError if the child ended.
        """
        try:
            if self._process is None:
                self._start(work, check=check, poll_s=poll_s)
            assert self._connection is not None
            self._connection.send_bytes(work.encode())
            while True:
                check()
                if not self._connection.poll(poll_s):
                    continue
                message: Message = json.loads(self._connection.recv_bytes())
                match message["type"]:
                    case "result":
                        return RESULTS.validate_python(message["result"])
                    case "failure":
                        lost = message["code"] == devices.CODE
                        failed = DeviceLostError if lost else ChildFailedError
                        raise failed(message["code"], message["message"])
                    case _:
                        on_message(message)
        except ChildFailedError:
            raise
        except (EOFError, ConnectionError) as error:
            code = self._exit_code()
            self.kill()
            raise ChildDiedError(f"the process ended with exit code {code}") from error
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the child and everything it started, at once. Nothing of it needs a clean end."""
        process, self._process = self._process, None
        if process is not None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if isinstance(process, subprocess.Popen):
                process.wait()
            else:
                process.join(REPORT_LIMIT_S)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self, work: Work[AnyRequest], *, check: Callable[[], None], poll_s: float) -> None:
        self._connection, theirs = Pipe(duplex=True)
        if self._sandbox is None:
            self._process = self._fork(theirs, check=check, poll_s=poll_s)
        else:
            fd = theirs.fileno()
            self._process = self._sandbox.start(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "adap.worker.child",
                    str(fd),
                    str(self._sandbox.memory_bytes),
                    str(self._sandbox.heap_bytes(_heap_bytes(work))),
                ],
                pass_fd=fd,
                folder=work.folder,
                inputs=work.inputs.values(),
            )
            theirs.close()

    def _fork(self, theirs: Connection, *, check: Callable[[], None], poll_s: float) -> BaseProcess:
        """A child of the fork server, which may be loading torch for a while yet.

        Where `check` raises meanwhile, the child will find its pipe closed when it is born.
        """
        process = _context.Process(target=_forked, args=(theirs, self._threads), daemon=True)

        def start() -> None:
            with theirs, contextlib.suppress(EOFError, OSError):  # the fork server ended
                process.start()

        starting = Thread(target=start, daemon=True)
        starting.start()
        while starting.is_alive():
            starting.join(poll_s)
            check()
        if process.pid is None:
            raise ChildDiedError("the process could not be started")
        return process

    def _exit_code(self) -> int | None:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            process = self._process
            assert process is not None
            code = process.poll() if isinstance(process, subprocess.Popen) else process.exitcode
            if code is not None:
                return int(code)
            time.sleep(0.02)
        return None


def _heap_bytes(work: Work[Any]) -> int:
    """Memory for opening an upload: pixels go to a mapped file, weights are as large as theirs."""
    if work.request.pipeline == "validate_dataset":
        return DATASET_HEAP_BYTES
    return MODEL_HEAP_BYTES + 8 * sum(path.stat().st_size for path in work.inputs.values())


def serve(connection: Connection) -> None:
    """The child's loop: work, answer, until the worker is gone."""
    from adap.core.errors import AdapError
    from adap.models.errors import ModelFileError

    reporter = Reporter(connection)
    while True:
        try:
            work = decode(connection.recv_bytes())
        except EOFError:
            return
        try:
            result = _pipeline(work.request)(work, reporter)
        except (AdapError, ModelFileError) as error:
            reporter.send({"type": "failure", "code": error.code, "message": str(error)})
        except Exception as error:
            code, message = "internal_error", f"{_UNEXPECTED}: {error!r}"
            if devices.is_out_of_memory(error):
                code, message = "out_of_memory", _NO_MEMORY
            elif (trouble := storage.trouble(error)) is not None:
                code, message = trouble.code, trouble.message
            elif devices.is_lost(error):
                code, message = devices.CODE, f"The device {work.device!r} failed: {error}"
            if code != "out_of_memory":
                log.exception("pipeline.failed", extra={"pipeline": work.request.pipeline})
            reporter.send({"type": "failure", "code": code, "message": message})
        else:
            reporter.send({"type": "result", "result": result.model_dump(mode="json")})


def _pipeline(request: AnyRequest) -> Callable[[Work[Any], Reporter], AnyResult]:
    """The function of a pipeline; what opens a file imports no more than it needs."""
    if isinstance(request, DatasetCheck):
        from adap.worker.intake.pipeline import validate_dataset

        return validate_dataset
    if isinstance(request, ModelCheck):
        from adap.worker.pipelines.models import validate_model

        return validate_model
    from adap.worker.pipelines.table import PIPELINES

    return PIPELINES[type(request)]


def warm_up() -> None:
    """Start the fork server and let it load torch, before the first job needs it."""
    forkserver.ensure_running()


def cool_down() -> None:
    """End the fork server and wait for that: by itself it loads torch to the end, or unloads it."""
    server: Any = forkserver._forkserver  # whose way to stop it waits for that
    pid = server._forkserver_pid
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        server._stop()


def _forked(connection: Connection, threads: int | None) -> None:
    """Entry of a child that came from the fork server."""
    os.setsid()
    die_with_the_worker(connection)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    serve(connection)


def die_with_the_worker(connection: Connection) -> None:
    """End this process group when the worker does, also while it computes.

    The worker's end of the pipe closes with it, even after `kill -9`; waiting for that takes no
    byte that `serve` will read.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)
        poll.poll()
        # of a sandbox the leader is outside, and no signal leaves it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _main() -> None:
    """Entry of a child that was started inside a sandbox: the pipe is an inherited descriptor."""
    limit_resources(memory_bytes=int(sys.argv[2]), heap_bytes=int(sys.argv[3]))
    connection: Connection = Connection(int(sys.argv[1]))
    die_with_the_worker(connection)
    serve(connection)


if __name__ == "__main__":
    _main()
