"""A network held in eval mode, or frozen as well, by any number of threads at once.

Whoever holds it sees the same; who lets go last puts back what the first one found. Frozen, because
a step of an attack then costs one forward and one backward to the input; eval, because BatchNorm in
train mode would let images of a batch influence each other and would learn from attacked images.
A thread that itself sets modes or flags meanwhile is not kept from it.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@contextmanager
def attacking(network: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters inside; both exactly as before outside."""
    parameters = list(network.parameters())
    with in_eval_mode(network), _FLAGS.held(parameters):
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside each module is in the mode that it was in."""
    with _MODES.held(list(network.modules())):
        network.eval()  # by its own method, as some keep a layer in train mode
        yield


def mode_outside(module: nn.Module) -> bool:
    """Whether a module is in train mode, or was so before it was held."""
    return _MODES.before(module)


@dataclass
class _Held:
    part: Any  # so that nothing else gets its id meanwhile
    before: bool
    holders: int = 0


class _Attribute:
    """An attribute, true or false, of objects that are held: what it was is put back at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._held: dict[int, _Held] = {}
        self._lock = threading.Lock()

    @contextmanager
    def held(self, parts: Sequence[Any]) -> Iterator[None]:
        """Inside it may be set, as long as every holder sets the same."""
        with self._lock:
            for part in parts:
                found = _Held(part, getattr(part, self._name))
                self._held.setdefault(id(part), found).holders += 1
        try:
            yield
        finally:
            with self._lock:
                for part in parts:
                    held = self._held[id(part)]
                    held.holders -= 1
                    if held.holders == 0:
                        del self._held[id(part)]
                        setattr(part, self._name, held.before)

    def before(self, part: Any) -> bool:
        """What it is, or was before the part was held."""
        with self._lock:
            held = self._held.get(id(part))
            return bool(getattr(part, self._name) if held is None else held.before)


_MODES, _FLAGS = _Attribute("training"), _Attribute("requires_grad")
