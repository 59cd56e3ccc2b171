"""One model that scores: its process, started on first use, ended by force, started again.

A pass that takes longer than its limit is ended with its process, and so is one that takes more
memory; the model's next request starts another. A model whose process has ended several times in a
row is refused for a while, or it would keep the machine busy with starting.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from adap.worker.scoring.process import (
    OUT_OF_MEMORY,
    EndedError,
    ModelProcess,
    PassError,
    Plan,
    Positive,
    Smallest,
)

log = logging.getLogger(__name__)

LOAD_LIMIT_S = 120.0  # on the clock, to start and to read the weights
ENDS = 3  # in a row, after which a model is refused
REST_S = 60.0  # for which it is

Answer = TypeVar("Answer")


class RefusedError(Exception):
    """A question that gets an error for an answer: a code of the API, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Network:
    """One model and its process, used from threads.

    plan: fetches the model's file. limit_s: of a pass.
    """

    def __init__(self, plan: Callable[[], Plan], limit_s: float) -> None:
        self.holders = 0  # requests
        self.process: ModelProcess | None = None  # changes whenever `_changing` is not held
        self._plan = plan
        self._limit_s = limit_s
        self._used_at = time.monotonic()
        self._users = 0  # threads
        self._ends = 0  # in a row
        self._refused_until = 0.0
        self._forgotten = False
        self._starting = threading.Lock()  # held for long
        self._changing = threading.Lock()

    @property
    def weights_bytes(self) -> int:
        """Of what is in memory."""
        process = self.process
        return 0 if process is None else process.weights_bytes

    @property
    def dispensable(self) -> bool:
        """Whether nothing is lost with it: no process, nobody's, and no ends to remember."""
        ended_of_late = self._ends > 0 and self.idle_s < 2 * REST_S
        return self.process is None and not self.holders and not ended_of_late

    @property
    def idle_s(self) -> float:
        """Since it was last used."""
        return time.monotonic() - self._used_at

    def batch(self, positive: Positive) -> int | None:
        """How many images to score in a pass, None where it is not loaded for these classes."""
        process = self.process
        return process.batch if process is not None and positive in process.loaded else None

    def load(self, positive: Positive) -> int:
        """How many images to score in a pass, once it is ready for these classes.

        Raises as `score` does, and what fetching the file does.
        """
        with self._used():
            return self._ask(positive, lambda process: process.batch)

    def score(
        self, positive: Positive, parts: Sequence[NDArray[Any]], /, *, cores: int
    ) -> NDArray[np.float64]:
        """(N,) logits of (N, C, H, W) images in parts, uint8 or float32 in [0, 1].

        Raises RefusedError.
        """
        with self._used():
            scores = self._ask(
                positive, lambda it: it.score(positive, parts, cores=cores, limit_s=self._limit_s)
            )
        self._ends = 0
        return scores

    def smallest(self, positive: Positive, image: NDArray[Any], *, below: float) -> Smallest:
        """The smallest change found by which the logit of (1, C, H, W) falls below this.

        Raises RefusedError.
        """
        try:
            with self._used():
                found = self._ask(
                    positive,
                    lambda it: it.smallest(positive, image, below=below, limit_s=self._limit_s),
                )
        except RefusedError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            self.leave()  # what is left of its memory may be in pieces
            raise RefusedError(
                "invalid_model",
                "expected a network whose gradient is computed within ADAP_SCORING_NETWORK_BYTES, "
                "got one that takes more memory to search the smallest change: it can be scored, "
                "and not searched",
            ) from error
        self._ends = 0
        return found

    def end_if_late(self) -> None:
        """End the process if an answer takes longer than its limit."""
        process = self.process
        if process is not None and process.is_late():
            process.end("late")

    def leave(self) -> bool:
        """End the process if nobody waits for it; whether it was there to be ended."""
        with self._changing:
            if self._users or self.process is None:
                return False
            self.process.end("left")
            self.process = None
            return True

    def forget(self) -> None:
        """End the process for good."""
        with self._changing:
            self._forgotten = True
            if self.process is not None:
                self.process.end("left")

    def _ask(
        self, positive: Positive, ask: Callable[[ModelProcess], Answer], *, again: bool = True
    ) -> Answer:
        """Ask a process that is ready; another one, once, if it was gone before it was asked."""
        try:
            return ask(self._ready(positive))
        except PassError as error:
            raise RefusedError(error.code, str(error)) from error
        except EndedError as error:
            bad = error.begun or not again
            self._note(error, bad=bad)
            if bad:
                raise self._refusal(error) from error
        return self._ask(positive, ask, again=False)

    def _ready(self, positive: Positive) -> ModelProcess:
        with self._starting:
            self._check()
            process = self.process or self._start()
            if positive not in process.loaded:
                process.load(positive, limit_s=max(LOAD_LIMIT_S, self._limit_s))
            return process

    def _start(self) -> ModelProcess:
        plan = self._plan()
        try:
            process = ModelProcess(plan)
        except OSError as error:
            raise RefusedError(
                "scoring_unavailable", f"No process for this model could be started: {error}."
            ) from error
        with self._changing:
            self.process = process
            if self._forgotten:
                process.end("left")
        return process

    def _check(self) -> None:
        if self._forgotten:
            raise _removed()
        left_s = self._refused_until - time.monotonic()
        if left_s > 0:
            raise RefusedError(
                "scoring_unavailable",
                f"The process of this model has ended {self._ends} times in a row, over a pass "
                f"that took too long or too much memory, or was killed; the model is refused for "
                f"{left_s:.0f} s more. Other models are scored meanwhile.",
            )

    def _note(self, error: EndedError, *, bad: bool) -> None:
        """A process has ended; several threads may say so."""
        with self._changing:
            if error.process is not self.process:
                return
            self.process.end("left")  # it may have closed its pipes and live
            self.process = None
            if bad and error.reason != "left":
                self._ends += 1
                if self._ends >= ENDS:
                    self._refused_until = time.monotonic() + REST_S
                log.warning("network.ended", extra={"reason": str(error), "in_a_row": self._ends})

    def _refusal(self, error: EndedError) -> RefusedError:
        if self._forgotten:
            return _removed()
        match error.reason:
            case "late":
                return RefusedError(
                    "timed_out",
                    f"Expected a pass of this model within {self._limit_s:g} s "
                    "(ADAP_SCORING_PASS_LIMIT_S), got none: its process was ended. Send fewer "
                    "images at a time, or use a smaller network.",
                )
            case "too large":
                return RefusedError(
                    "invalid_model",
                    "expected a network that computes within ADAP_SCORING_NETWORK_BYTES, got one "
                    "that takes more memory: its process was ended",
                )
        return RefusedError(
            "scoring_unavailable",
            "The process of this model ended while it computed: it was killed, or took more memory "
            "than there is. Nothing was kept; try again.",
        )

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._changing:
            self._users += 1
        try:
            yield
        finally:
            with self._changing:
                self._users -= 1
                self._used_at = time.monotonic()


def _removed() -> RefusedError:
    return RefusedError("not_found", "Expected a model, got one that was removed meanwhile.")
