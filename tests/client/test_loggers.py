"""Epochs in TensorBoard and MLflow, of one's own process and of the service: read back by each
tool's own reader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import adap
from adap import loggers
from adap.client.client import Client

Told = dict[str, list[tuple[int, float]]]  # by name: epoch, figure
CLOSE = 1e-6  # TensorBoard keeps float32


def told_by(records: list[dict[str, Any]]) -> Told:
    """What is to be read back, from the records of the epochs."""
    found: Told = {}
    for record in records:
        figures = {name: record[name] for name in ("lr", "loss", "clean_ap", "robust_ap")}
        for name, value in (figures | record["metrics"]).items():
            if value is not None:
                found.setdefault(name, []).append(
                    (record["epoch"], pytest.approx(value, rel=CLOSE))
                )
    return found


def drawn_in(folder: Path) -> Told:
    """What TensorBoard reads in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    return {
        name: [
            (event.step, float(make_ndarray(event.tensor_proto))) for event in reader.Tensors(name)
        ]
        for name in reader.Tags()["tensors"]
    }


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    module = pytest.importorskip("mlflow")
    before = module.get_tracking_uri()
    module.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield module
    module.set_tracking_uri(before)


# MLflow's own use of SQLAlchemy 2.1
OWN_USE = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader:sqlalchemy.exc.SADeprecationWarning"
)


@OWN_USE
def test_a_training_in_ones_own_process_is_drawn_epoch_by_epoch(
    tmp_path: Path, mlflow: Any
) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    images, labels = torch.rand(40, 3, 4, 4), torch.tensor([0, 1] * 20)
    with loggers.tensorboard(tmp_path) as board, loggers.mlflow() as flow:
        run_id = mlflow.active_run().info.run_id

        def both(record: Any) -> None:
            board.on_epoch(record)
            flow.on_epoch(record)

        fitted = adap.fit(
            *(network, images, labels, "adap_lpn"), epochs=3, batch_size=8, on_epoch=both
        )
    expected = told_by([record.as_json() for record in fitted.history])
    assert {"lr", "loss", "surrogate_ap", "clean_ap", "robust_ap"} <= expected.keys()
    assert [epoch for epoch, _ in expected["loss"]] == [1, 2, 3]
    assert drawn_in(tmp_path) == expected
    kept = mlflow.MlflowClient()
    assert kept.get_run(run_id).data.metrics.keys() == expected.keys()
    for name, figures in expected.items():
        history = [(metric.step, metric.value) for metric in kept.get_metric_history(run_id, name)]
        assert history == figures


class First:
    """A first epoch."""

    epoch = 1

    def __init__(self, loss: float) -> None:
        self.loss = loss

    def scalars(self) -> dict[str, float]:
        return {"loss": self.loss}


@OWN_USE
def test_trainings_one_after_the_other_are_runs_of_their_own_unless_one_is_active(
    mlflow: Any,
) -> None:
    def drawn(loss: float) -> None:
        with loggers.mlflow() as log:
            log.on_epoch(First(loss))
            if loss == 3:
                raise KeyError("the training fails")

    drawn(1)
    assert mlflow.active_run() is None
    drawn(2)
    with pytest.raises(KeyError):
        drawn(3)
    with mlflow.start_run() as own:
        drawn(4)
        drawn(5)
        assert mlflow.active_run().info.run_id == own.info.run_id
    kept = mlflow.MlflowClient()
    runs = [
        (run.info.status, [m.value for m in kept.get_metric_history(run.info.run_id, "loss")])
        for run in kept.search_runs(["0"], order_by=["attributes.start_time ASC"])
    ]
    ended = [("FINISHED", [1]), ("FINISHED", [2]), ("FAILED", [3]), ("FINISHED", [4, 5])]
    assert runs == ended


def test_a_training_of_the_service_is_drawn_from_its_events(
    client: Client, trained: dict[str, Any], tmp_path: Path
) -> None:
    records = [event.data for event in client.jobs.events(trained["id"]) if event.type == "epoch"]
    assert records
    with loggers.tensorboard(tmp_path) as log:
        client.jobs.wait(trained["id"], on_event=log.on_event)
    assert drawn_in(tmp_path) == told_by(records)
