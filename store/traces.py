"""Traces for OpenTelemetry, where ADAP_OTLP_ENDPOINT is set: of requests and attempts at jobs.

The extra `otel` is needed then, and only then.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from adap.store.settings import Settings

Describe = Callable[..., None]
"""Called inside of a span, with its name or None and attributes that became known."""

_here: ContextVar[str | None] = ContextVar("traceparent", default=None)


def traceparent() -> str | None:
    """The span that this runs in, as the W3C writes it; None outside, or where none are made."""
    return _here.get()


class Traces:
    """Spans of one process, sent from a thread of its own; nothing at all without an endpoint."""

    def __init__(self, settings: Settings, *, service: str) -> None:
        self._provider: Any = None
        if settings.otlp_endpoint is not None:
            self._provider = _provider(settings.otlp_endpoint, service)

    @contextmanager
    def span(
        self,
        name: str,
        *,
        headers: Mapping[str, str] | None = None,
        parent: str | None = None,
        **attributes: Any,
    ) -> Iterator[Describe]:
        """A span as long as the block: below `parent`, or the caller's own that `headers` carry."""
        if self._provider is None:
            yield lambda *_, **__: None
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        above = {"traceparent": parent} if parent else headers
        context = None if above is None else propagator.extract(above)
        kind = SpanKind.INTERNAL if headers is None else SpanKind.SERVER
        tracer = self._provider.get_tracer("adap")
        with tracer.start_as_current_span(
            name, context=context, kind=kind, attributes=_dotted(attributes)
        ) as span:

            def describe(known_as: str | None = None, **known: Any) -> None:
                if known_as is not None:
                    span.update_name(known_as)
                span.set_attributes(_dotted(known))

            carrier: dict[str, str] = {}
            propagator.inject(carrier)
            outside = _here.set(carrier["traceparent"])
            try:
                yield describe
            finally:
                _here.reset(outside)

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def _dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`http__route` is the keyword for the attribute http.route."""
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _provider(endpoint: str, service: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError(
            "ADAP_OTLP_ENDPOINT is set: expected the extra `otel` (pip install 'adap-audit[otel]')"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
