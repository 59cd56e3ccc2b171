"""The number format of passes: float32, TF32, or bfloat16 with a float32 last layer.

A training's passes may be in any of them, those of an audit's search in float32 or bfloat16.
bfloat16 is entered pass by pass. Under one autocast context for a whole training, its cache would
keep the weights of the first step: the loss stays at ln 2 and nothing is learned. The last layer
is computed in float32 from what comes before it: where the logits of a clean and an attacked image
round alike, the gradient of their difference is exactly 0, and such an image would never move.
So every logit, loss and estimator is float32; weights and the optimiser always are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.config.training import Precision
from adap.core.errors import ConfigError

Forward = Callable[[Tensor], Tensor]
"""(B, C, H, W) images to float32 logits."""


def refuse_unsupported(precision: Precision, device: torch.device) -> None:
    """Raise ConfigError for a format that the device does not compute in."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            f"expected precision float32 or bfloat16 on {device.type}, got tf32, which is a format "
            "of NVIDIA GPUs"
        )
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "expected precision float32 or tf32, got bfloat16, which this GPU does not compute in"
        )


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """TF32 in products of float32 numbers where it was asked for, and nowhere else."""
    found = formats_of_products()
    try:
        set_formats_of_products(["tf32" if precision == "tf32" else "ieee"] * len(found))
        yield
    finally:
        set_formats_of_products(found)


def formats_of_products() -> list[str]:
    """How torch multiplies float32 numbers on a GPU now: matrices, in convolutions, in RNNs."""
    return [part.fp32_precision for part in _PRODUCTS]


def set_formats_of_products(formats: Sequence[str]) -> None:
    """Multiply so from now on."""
    # The older flag of cuDNN says the same: where it does not, torch raises for whoever reads it,
    # as `torch.backends.cudnn.flags` does.
    torch.backends.cudnn.allow_tf32 = "tf32" in formats[1:]
    for part, wanted in zip(_PRODUCTS, formats, strict=True):
        part.fp32_precision = wanted


_PRODUCTS: list[Any] = [
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,
]


def forward_in(precision: Precision, network: nn.Module, *, device: torch.device) -> Forward:
    """The network's forward pass in this format.

    Weights are read anew by every pass, and the mode of the network is its caller's.
    """
    if precision != "bfloat16":
        return network
    last: list[nn.Module] = []  # found by the first pass, as only running tells the order

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            if not last:
                last.append(last_layer(network, x))
            with _in_float32(last[0], device):
                logits: Tensor = network(x)
        return logits.float()

    return forward


def cast_once(network: nn.Module, x: Tensor) -> None:
    """Cast the weights that a pass in bfloat16 would cast each time: of all convolutions and linear
    layers but the last.

    network: whose weights stand still.  x: (B, C, H, W) images that it takes.
    """
    last = last_layer(network, x)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not last:
            layer.to(torch.bfloat16)


def last_layer(network: nn.Module, x: Tensor) -> nn.Module:
    """The layer with weights that runs last, seen on one image in eval mode and without gradients.

    Raises ConfigError for a network that runs none.
    """
    ran: list[nn.Module] = []
    layers = [
        module
        for module in network.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    hooks = [
        layer.register_forward_hook(lambda module, _, __: ran.append(module)) for layer in layers
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()  # a pass in train mode would move the statistics of BatchNorm
        with torch.no_grad():
            network(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not ran:
        raise ConfigError("expected a network with layers that have weights, got one without any")
    return ran[-1]


@contextmanager
def _in_float32(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """Within this context the layer takes float32 and computes in it, whatever surrounds it."""
    off = torch.autocast(device.type, enabled=False)

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        off.__enter__()  # type: ignore[no-untyped-call]
        return tuple(
            value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in inputs
        )

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        off.__exit__(None, None, None)

    hooks = (
        layer.register_forward_pre_hook(enter),
        layer.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
