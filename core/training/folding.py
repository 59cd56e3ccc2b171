"""The network as a training attack may see it: BatchNorm folded into the convolutions, once a step.

While a batch is attacked the weights stand still and BatchNorm, in eval mode, is a scale and a
shift: so it goes into the convolution before it, and the passes of the attack have a third fewer
kernels. In bfloat16 the weights are cast here as well, once a step instead of once a pass. Logits
and gradients are the network's own up to rounding, along whose signs PGD steps: a training so
attacked ends in other bits. It is the copy that an audit attacks on a CPU (`attacks.acceleration`),
without what hangs on the shape of the images.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from adap.core.attacks.acceleration import PROBES, TOLERANCE, Observed, convolution_of
from adap.core.attacks.holding import in_eval_mode
from adap.core.config.training import Precision
from adap.core.errors import ConfigError
from adap.core.precision import Forward, cast_once, forward_in


class Folded:
    """A copy of a network, in eval mode and frozen, that is brought up to date for every step.

    Up to date are parameters, and by reference buffers, kept in checkpoints or not, and what
    modules hold as plain tensors and numbers. What they keep in lists or dicts is as it was copied.
    """

    def __init__(
        self, network: nn.Module, probes: Tensor, *, precision: Precision, device: torch.device
    ) -> None:
        """probes: (B, C, H, W) images of the shape to come, of which a few are tried.

        Raises ConfigError for a network that cannot be copied, whose layers say nothing of what
        they do, or whose copy answers otherwise.
        """
        probes = probes[:PROBES].detach()
        try:
            self._copy = copy.deepcopy(network).requires_grad_(False).eval()
        except Exception as error:
            raise ConfigError(f"{_WANTED} that can be copied, got {error!r}: {_ELSE}") from error
        with torch.no_grad(), in_eval_mode(network):
            expected = network(probes)
            with Observed(self._copy) as seen:
                self._copy(probes)
            names = seen.pairs()
            self._pairs = [_Pair.of(network, self._copy, *pair) for pair in names]
            for _, norm_name in names:
                self._copy.set_submodule(norm_name, nn.Identity())
            if precision == "bfloat16":
                cast_once(self._copy, probes)
            other = {name for pair in names for name in pair}
            self._same = [
                (own, network.get_submodule(name))
                for name, own in self._copy.named_modules()
                if name not in other
            ]
            self._forward = forward_in(precision, self._copy, device=device)
            off, largest = (self.settle()(probes) - expected).abs().max(), expected.abs().max()
        if not off <= TOLERANCE[precision] * largest:
            raise ConfigError(
                f"{_WANTED} that answers alike when it is folded, got a logit off by {off:.2g} "
                f"where the largest is {largest:.2g}: {_ELSE}"
            )

    def settle(self) -> Forward:
        """Its forward pass, by the weights as they are now; good until they move."""
        with torch.no_grad():
            for own, live in self._same:
                _settle(own, live)
            for pair in self._pairs:
                pair.settle()
        return self._forward


def _settle(own: nn.Module, live: nn.Module) -> None:
    """Let one module, without those in it, be as the other one; by name, as a network may put
    another tensor in the place of one."""
    copied = dict(own.named_parameters(recurse=False))
    for name, weight in live.named_parameters(recurse=False):
        copied[name].copy_(weight)
    for name, buffer in live.named_buffers(recurse=False):
        setattr(own, name, buffer)
    for name, value in vars(live).items():
        if isinstance(value, Tensor | int | float) and name not in _TORCHS:
            vars(own)[name] = value


@dataclass(frozen=True)
class _Pair:
    """A convolution with the BatchNorm that follows it, and the one convolution for both."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d

    @classmethod
    def of(cls, network: nn.Module, copied: nn.Module, name: str, norm_name: str) -> "_Pair":
        norm, folded = network.get_submodule(norm_name), convolution_of(copied, name)
        assert isinstance(norm, nn.BatchNorm2d)
        bias = folded.weight.new_zeros(folded.out_channels)  # its own, which it may not have had
        folded.bias = nn.Parameter(bias, requires_grad=False)
        return cls(convolution_of(network, name), norm, folded)

    def settle(self) -> None:
        layer, norm = self.convolution, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            layer.weight,
            layer.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        assert self.folded.bias is not None
        self.folded.weight.copy_(weight)
        self.folded.bias.copy_(bias)


_TORCHS = vars(nn.Module()).keys()
"""What every module has, its mode among them."""
_WANTED = "expected a network for folded_attack"
_ELSE = "leave folded_attack out to attack the network itself"
