"""Going on from a checkpoint, if it is of the same configuration, network and data."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from adap.core.config.training import TrainingConfig
from adap.core.errors import ConfigError
from adap.core.training.schedule import learning_rate


def refuse_other_config(checkpoint: Mapping[str, Any], config: TrainingConfig) -> None:
    """Raise ConfigError, with the fields that differ, unless a run would have begun just so.

    Another number of epochs is the same run for as long as the learning rates are the same.
    """
    if checkpoint["config_sha256"] == config.sha256():
        return
    if "config" not in checkpoint:
        raise ConfigError(
            f"expected a checkpoint of configuration {config.sha256()[:12]}, "
            f"got one of {checkpoint['config_sha256'][:12]}"
        )
    saved, own = _flat(checkpoint["config"]), _flat(config.as_json())
    differing = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    why = ""
    if differing == ["epochs"]:
        done, rates = checkpoint["epoch"], config.optimizer
        why = f": {done} are done"
        if config.epochs >= done:
            lr = {
                record["epoch"]: learning_rate(
                    rates, done=record["epoch"] - 1, epochs=config.epochs
                )
                for record in checkpoint["history"]
            }
            moved = [r for r in checkpoint["history"] if r["lr"] != lr[r["epoch"]]]
            if not moved:
                return
            epoch = moved[0]["epoch"]
            why = (
                f": of {own['epochs']} epochs number {epoch} has a learning rate of {lr[epoch]:g}, "
                f"not {moved[0]['lr']:g}, as optimizer.milestones are shares of them and a cosine "
                "ends with them (without either a training can be lengthened)"
            )
    told = "; ".join(
        f"{name} {own.get(name, 'not given')!r} instead of {saved.get(name, 'not given')!r}"
        for name in differing
    )
    raise ConfigError(
        f"expected a checkpoint of this configuration, got one of another: {told}{why}"
    )


def _flat(fields: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        inner = isinstance(value, Mapping)
        found.update(_flat(value, f"{before}{name}.") if inner else {f"{before}{name}": value})
    return found


def refuse_other_tensors(what: str, saved: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raise ConfigError, with the first that differs, for tensors of other names or shapes."""
    own = {name: tuple(value.shape) for name, value in _tensors(module.state_dict())}
    theirs = {name: tuple(value.shape) for name, value in _tensors(saved)}
    for name in {**own, **theirs}:
        if own.get(name) != theirs.get(name):
            raise ConfigError(
                f"expected a checkpoint of the same {what}, with {name} {own.get(name, 'absent')}, "
                f"got one with {theirs.get(name, 'absent')}"
            )


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module these tensors by their names, as written by the module as it is now.

    A plain mapping says nothing of the versions of layers that a `state_dict` carries; some, as
    torchvision's MNASNet, refuse tensors of a version that they are not told.
    """
    state = module.state_dict()
    state.clear()
    state.update(tensors)
    module.load_state_dict(state)


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))
