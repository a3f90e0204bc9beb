"""Traces for a collector of OpenTelemetry, by OTLP over HTTP: what a request, or a transaction to another server, took.

Imported only where the settings name a collector; the libraries are the optional dependencies `tracing`. One in so many
requests is chosen by its beginning, and for the others nothing is made. Trace contexts are neither taken from requests
nor handed to anybody but the collector, so no other server and no client can tell who is traced, or have itself traced.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode

from federation.web import Router, Serving, respond
from homeserver import release
from homeserver.config import Tracing
from storage.spans import Attributes

EXPORT_SECONDS = 5.0
"""How long the collector may take."""
MAX_QUEUED = 4096
"""Spans that wait for it; more are dropped."""
_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracer:
    """Makes spans, and sends them from a thread of its own. `storage.spans.Spans`."""

    def __init__(self, settings: Tracing, server_name: str) -> None:
        authorization = settings.authorization
        exporter = OTLPSpanExporter(
            endpoint=settings.endpoint,
            headers=None if authorization is None else {"Authorization": authorization.value},
            timeout=EXPORT_SECONDS,
        )
        resource = Resource.create(
            {
                "service.name": "hearth",
                "service.namespace": server_name,
                "service.version": release.number(),
                "service.instance.id": f"{server_name} {os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not to be traced is never begun
            resource=resource,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attribute_length=512),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED))
        self._tracer = self._provider.get_tracer("hearth")
        self._ratio = settings.sample_ratio

    async def respond(self, router: Router, request: web.BaseRequest, serving: Serving) -> web.StreamResponse:
        """As `federation.web.respond`, traced if it is chosen."""
        if not self._is_chosen():
            return await respond(router, request, serving)
        with self._tracer.start_as_current_span(request.method, context=Context(), kind=SpanKind.SERVER) as span:
            response = await respond(router, request, serving)
            span.update_name(f"{request.method} {serving.endpoint}" if serving.endpoint else request.method)
            span.set_attributes(_described(request, serving, response))
            if response.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            return response

    def within(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """A part of what is traced."""
        return self._span(name, attributes) if trace.get_current_span().is_recording() else _NOTHING

    def begin(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """The same, or a trace of its own."""
        if trace.get_current_span().is_recording():
            return self._span(name, attributes)
        # Not below what has ended: a task may have been begun by a request, and outlive it by hours.
        return self._span(name, attributes, Context()) if self._is_chosen() else _NOTHING

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)

    def _is_chosen(self) -> bool:
        return random.random() < self._ratio  # noqa: S311  # no secret

    @contextmanager
    def _span(self, name: str, attributes: Attributes, context: Context | None = None) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, context, attributes=dict(attributes)):
            yield


def _described(request: web.BaseRequest, serving: Serving, response: web.StreamResponse) -> dict[str, str | int]:
    """By the names of OpenTelemetry's conventions, where there are any. Nothing of a query, which may hold a token."""
    return {
        "http.request.method": request.method,
        "http.route": serving.endpoint,
        "http.response.status_code": response.status,
        **{f"hearth.{name}": value for name, value in serving.fields().items()},
    }
