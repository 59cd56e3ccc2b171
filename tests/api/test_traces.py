"""Traces, as a collector receives them."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from store.traces import Traces
from tests.api.conftest import Api, running

pytest.importorskip("opentelemetry.sdk")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint and the spans that it gets, each with the name of its service."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend((about["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_below_the_callers(api: Api, collector: tuple[str, list[Any]]) -> None:
    endpoint, spans = collector
    settings = api.settings.model_copy(update={"otlp_endpoint": endpoint})
    dataset_id = api.dataset()
    with running(settings) as url, httpx.Client(base_url=url) as http:
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


def test_nothing_is_traced_without_an_endpoint(api: Api) -> None:
    traces = Traces(api.settings, service="w")
    with traces.span("job train") as describe:
        describe("other", adap__job_id="job_1")
    traces.stop()
    assert traces._provider is None
