"""The trace of a job: from the request that made it to the worker that ran it."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import running
from tests.worker.conftest import Plant

pytest.importorskip("opentelemetry.sdk")


def test_the_workers_span_is_below_that_of_the_request(
    plant: Plant, collector: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collector
    request = {
        "dataset_id": plant.dataset(),
        "task": {"positive": ["positive"]},
        "epochs": 1,
        "attack": {"steps": 1},
    }
    traced = plant.settings.model_copy(update={"otlp_endpoint": endpoint})
    with running(traced) as url:
        answer = httpx.post(f"{url}/v1/training-jobs", json=request, trust_env=False, timeout=60)
    worker = plant.start_worker(ADAP_OTLP_ENDPOINT=endpoint)
    plant.wait_done(answer.json()["id"])
    worker.terminate()  # it sends what is left
    worker.wait(timeout=120)
    above, below = (span for _, span in spans)
    assert (above.name, below.name) == ("POST /v1/training-jobs", "job train")
    assert [service for service, _ in spans] == ["adap-api", "adap-worker"]
    assert (below.trace_id, below.parent_span_id) == (above.trace_id, above.span_id)
