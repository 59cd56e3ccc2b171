"""Several trainings in one process, a step of each in turn: a sweep or a table of seeds on one GPU.

A training of small images leaves most of a large GPU idle: its kernels are many and short, each
waits for the one before, and few fill the card. Here each training has a stream of its own, on
which its graphs are replayed; none waits for another, so their kernels run side by side, and the
host has only to keep all streams supplied. On a CPU they take turns, and nothing is gained.

Each training ends in the bits that it would end in alone, whatever the others are: they share no
tensor that is written, and what torch keeps once for a process (its own random numbers, the format
of products) is put in place for each turn. docs/decisions/0024 says why they are not stacked into
one network.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar, get_args

import torch

from adap.core.errors import ConfigError, TrainingError
from adap.core.precision import formats_of_products, set_formats_of_products

MOST_AT_ONCE = 16
"""Of torch's 32 streams a GPU each takes two. A stream twice would be a workspace of cuBLAS twice,
which what runs side by side would spoil for one another."""

P = ParamSpec("P")
Result = TypeVar("Result")

Turns = Generator[None, None, Result]
"""Work that stops again and again, holding nothing of torch that the others need."""


def to_the_end(work: Callable[P, Turns[Result]], *, name: str) -> Callable[P, Result]:
    """The same work, done at once, as a function of this name."""

    @wraps(work)
    def whole(*args: P.args, **kwargs: P.kwargs) -> Result:
        turns = work(*args, **kwargs)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                result: Result = end.value
                return result

    *_, ends_in = get_args(signature(work).return_annotation)
    whole.__name__ = whole.__qualname__ = name
    whole.__annotations__ = {**work.__annotations__, "return": ends_in}
    shown = signature(work).replace(return_annotation=ends_in)
    whole.__signature__ = shown  # type: ignore[attr-defined]  # inspect reads it; typeshed has none
    return whole


def together(
    works: Sequence[Turns[Result]], *, device: torch.device
) -> list[Result | TrainingError]:
    """What each of these ends in, in their order.

    A training that fails (a loss that is not finite) leaves the others alone, and its error is its
    result, without traceback: that would hold its network, images and graphs. Whatever else is
    raised, by one of them or by what it tells, ends all of them: each has then the checkpoint of
    its last epoch. Raises ConfigError for more than `MOST_AT_ONCE`.
    """
    if len(works) > MOST_AT_ONCE:
        raise ConfigError(f"expected at most {MOST_AT_ONCE} trainings at once, got {len(works)}")
    found: dict[int, Result | TrainingError] = {}
    waiting = {number: (work, _Place(device)) for number, work in enumerate(works)}
    try:
        while waiting:
            for number, (work, place) in list(waiting.items()):
                try:
                    with place.taken():
                        next(work)
                    continue
                except StopIteration as end:
                    found[number] = end.value
                except TrainingError as error:
                    error.__cause__ = error.__context__ = None
                    found[number] = error.with_traceback(None)
                del waiting[number]
                place.wait()
    finally:
        for work, place in waiting.values():
            with place.taken():
                work.close()
            place.wait()
    return [found[number] for number in range(len(works))]


class _Place:
    """What one of several works has for itself: a stream, and what torch keeps once a process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._own = self._kept()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, torch is as this work has left it; outside as it was found."""
        found = self._kept()
        self._put(self._own)
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                yield
        finally:
            self._own = self._kept()
            self._put(found)

    def wait(self) -> None:
        """Let what comes next on the device find all of this work done."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _kept(self) -> tuple[list[torch.Tensor], list[str]]:
        draws = [torch.get_rng_state()]
        if self._device.type == "cuda":
            draws.append(torch.cuda.get_rng_state(self._device))
        return draws, formats_of_products()

    def _put(self, kept: tuple[list[torch.Tensor], list[str]]) -> None:
        (here, *there), formats = kept
        torch.set_rng_state(here)
        for state in there:
            torch.cuda.set_rng_state(state, self._device)
        set_formats_of_products(formats)
