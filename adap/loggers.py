"""Epochs of a training in TensorBoard or MLflow, of one's own process or of the service.

    with loggers.tensorboard("runs/first") as log:
        adap.fit(model, images, labels, on_epoch=log.on_epoch)   # in one's own process
        client.jobs.wait(run.id, on_event=log.on_event)          # in the service

The extras `adap-audit[tensorboard]` and `adap-audit[mlflow]` bring the tools. Imports no torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import Any, Protocol

Draw = Callable[[dict[str, float], int], object]
"""Figures by their names, and the epoch that they are of."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """What is drawn of an epoch, whose record is JSON: each figure that there is, by its name."""
    told = {name: record[name] for name in ("lr", "loss")} | record["metrics"]
    told |= {name: record[name] for name in ("clean_ap", "robust_ap")}
    return {name: value for name, value in told.items() if value is not None}


class Epoch(Protocol):
    """Of a training in one's own process, as `adap.fit` tells it."""

    @property
    def epoch(self) -> int:
        """Counted from 1."""
        ...

    def scalars(self) -> dict[str, float]:
        """The figures that are drawn."""
        ...


class Event(Protocol):
    """Of a job of the service, as the client tells it."""

    @property
    def type(self) -> str:
        """What happened."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """Of `epoch` its record."""
        ...


class Logger:
    """Hands the figures of each epoch to a tool."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def on_epoch(self, record: Epoch) -> None:
        """For `adap.fit(..., on_epoch=...)`."""
        self._draw(record.scalars(), record.epoch)

    def on_event(self, event: Event) -> None:
        """For `client.jobs.wait(..., on_event=...)`; events that are no epoch are let by."""
        if event.type == "epoch":
            self._draw(scalars(event.data), event.data["epoch"])


@contextmanager
def tensorboard(folder: str | PathLike[str]) -> Iterator[Logger]:
    """Writes the files that `tensorboard --logdir` reads; needs `adap-audit[tensorboard]`."""
    from tensorboard.summary import Writer

    writer = Writer(str(folder))

    def draw(figures: dict[str, float], epoch: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)

    try:
        yield Logger(draw)
    finally:
        writer.close()


@contextmanager
def mlflow() -> Iterator[Logger]:
    """Into MLflow's active run; needs `adap-audit[mlflow]`.

    Where none is active, one is started, and ended with the block: failed if that raises.
    """
    from mlflow import active_run, log_metrics, start_run

    active = active_run()
    with start_run() if active is None else nullcontext(active) as run:
        into = run.info.run_id
        yield Logger(lambda figures, epoch: log_metrics(figures, step=epoch, run_id=into))
