"""Rounding that a search can follow: values exact, gradients straight through.

A quantised network, or one with Round, Floor, Sign or Cast in it, is constant almost everywhere:
its gradient is zero, and an attack that follows gradients stands still and finds the network
robust. So whatever rounds in a network of ours goes through `straight_through`: what it answers is
exactly what was rounded (scores are the network's own), and its gradient is that of the values
before (Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons"; for
attacks: Athalye et al. 2018, backward pass differentiable approximation, section 4.1).

Whether such a gradient says what it should is asked of the network without its rounding: inside
`left_out` nothing rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_LEFT_OUT: ContextVar[bool] = ContextVar("left_out", default=False)


@contextmanager
def left_out() -> Iterator[None]:
    """What goes through `straight_through` inside answers the values that it would have rounded."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def is_left_out() -> bool:
    """Whether what goes through `straight_through` here answers the values before it."""
    return _LEFT_OUT.get()


def straight_through(exact: Tensor, values: Tensor) -> Tensor:
    """`exact`, bit for bit, with the gradient of `values`; both of the same floating shape.

    `values - values.detach()` is zero for every finite number, so nothing is added to `exact`.
    """
    if is_left_out():
        return values
    if not values.requires_grad:
        return exact
    return exact.detach() + (values - values.detach())


def round_half_even(values: Tensor) -> Tensor:
    """To the nearest whole number, halves to the even one (ONNX Round, torch.round)."""
    return straight_through(values.round(), values)


def floor(values: Tensor) -> Tensor:
    """Down to the next whole number."""
    return straight_through(values.floor(), values)


def ceil(values: Tensor) -> Tensor:
    """Up to the next whole number."""
    return straight_through(values.ceil(), values)


def sign(values: Tensor) -> Tensor:
    """-1, 0 or 1; its gradient is that of the values clipped to [-1, 1], as in binary networks."""
    return straight_through(values.sign(), values.clamp(-1, 1))


def less_remainder(values: Tensor, remainder: Tensor) -> Tensor:
    """Down to a multiple of what `remainder` is left from a division by: values - remainder."""
    exact = values - remainder
    return straight_through(exact, values.expand_as(exact))


def at_the_walls(clipped: Tensor, values: Tensor) -> Tensor:
    """`clipped`, bit for bit, with the gradient of `values` wherever it left them as they were.

    PyTorch gives none to a value that lies on a bound itself, as black and white pixels do on
    those of [0, 1], and a search would leave them alone. Beyond the bounds it stays zero.
    """
    if not values.requires_grad:
        return clipped
    return torch.where(clipped == values, values, clipped)
