"""Traces, as a collector receives them."""

from typing import Any

import httpx
import pytest

from adap.store import jobs
from adap.store.tables import JobKind, JobRow
from adap.store.traces import Traces
from tests.api.conftest import Api, running

pytest.importorskip("opentelemetry.sdk")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_below_the_callers(api: Api, collector: tuple[str, list[Any]]) -> None:
    endpoint, spans = collector
    settings = api.settings.model_copy(update={"otlp_endpoint": endpoint})
    dataset_id = api.dataset()
    with running(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        answer = http.get(
            f"/v1/datasets/{dataset_id}", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
    ((service, span),) = spans
    assert (service, span.name) == ("adap-api", "GET /v1/datasets/{dataset_id}")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.route": "/v1/datasets/{dataset_id}",
        "http.response.status_code": 200,
        "adap.request_id": answer.headers["x-request-id"],
    }


def test_a_span_that_ends_in_an_error_says_so(api: Api, collector: tuple[str, list[Any]]) -> None:
    endpoint, spans = collector
    traces = Traces(api.settings.model_copy(update={"otlp_endpoint": endpoint}), service="w")
    with pytest.raises(ValueError, match="boom"), traces.span("job train", adap__job_id="job_1"):
        raise ValueError("boom")
    traces.stop()
    ((_, span),) = spans
    assert span.name == "job train"
    assert attributes(span)["adap.job_id"] == "job_1"
    assert span.status.code == 2  # ERROR


def test_a_job_keeps_the_span_that_made_it_and_its_own_is_below(
    api: Api, collector: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collector
    traces = Traces(api.settings.model_copy(update={"otlp_endpoint": endpoint}), service="w")

    def enqueue() -> JobRow:
        with api.database.writing() as session:
            return jobs.enqueue(session, JobKind.RANK, tenant="local", request={})

    with traces.span("request"):
        inside = enqueue()
    assert enqueue().traceparent is None
    with traces.span("job rank", parent=inside.traceparent), traces.span("inner"):
        pass
    traces.stop()
    request, inner, job = (span for _, span in spans)
    version, *ids, _flags = (inside.traceparent or "").split("-")
    assert (version, ids) == ("00", [request.trace_id.hex(), request.span_id.hex()])
    assert (job.trace_id, job.parent_span_id) == (request.trace_id, request.span_id)
    assert (inner.trace_id, inner.parent_span_id) == (request.trace_id, job.span_id)


def test_nothing_is_traced_without_an_endpoint(api: Api) -> None:
    traces = Traces(api.settings, service="w")
    with traces.span("job train") as describe:
        describe("other", adap__job_id="job_1")
    traces.stop()
    assert traces._provider is None
