"""One span for each generation, where the fleet asks for traces. Knows how a request went, and nothing of how spans
are sent. No text of a request or an answer gets into a span, and no key: keys are named by their id."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from caudal.domain.key import Usage
from caudal.gateway.openai_api import Call
from caudal.gateway.replicas import Ticket
from caudal.telemetry.traces import Span, SpanSender, begin, parse_traceparent, wall_ns

SERVER_ERROR = 500


class Trace:
    """The span of one request, while it is carried out."""

    __slots__ = ("_add", "_places", "_rescues", "_span")

    def __init__(self, span: Span, add: Callable[[Span], None]) -> None:
        self._span = span
        self._add = add
        self._places: list[Ticket] = []
        self._rescues = 0

    @property
    def traceparent(self) -> bytes:
        """What an engine is told, so that its spans are below this one."""
        return f"00-{self._span.trace_id}-{self._span.span_id}-01".encode()

    def place(self, ticket: Ticket, *, started: bool) -> None:
        """It is tried at this replica; `started`: the client has a part of the answer from another one."""
        if self._places and self._places[-1] is ticket:
            return
        self._rescues += started
        self._places.append(ticket)

    def first_byte(self, seconds: float | None) -> None:
        """How long after its admission the first byte of a stream went out; None: none did."""
        if seconds is not None:
            self._span.attributes["caudal.first_byte_s"] = seconds

    def end(self, status: int, usage: Usage) -> None:
        """It is over, with the status that its client saw."""
        span, places = self._span, self._places
        span.end_ns = max(wall_ns(), span.start_ns)
        span.failed = status >= SERVER_ERROR
        attributes = span.attributes
        attributes["http.response.status_code"] = status
        attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
        attributes["caudal.retries"] = max(0, len(places) - 1 - self._rescues)
        attributes["caudal.rescues"] = self._rescues
        if places:
            attributes["caudal.site"] = places[-1].site
            attributes["caudal.gang"] = places[-1].gang
        self._add(span)


def within_trace(call: Call, headers: dict[bytes, bytes], trace: Trace | None) -> Call:
    """The call as engines get it: within the request's span, else within its client's trace, where it sent one that
    can be used."""
    if trace is not None:
        return replace(call, traceparent=trace.traceparent)
    header = headers.get(b"traceparent")
    if header is None or parse_traceparent(header) is None:
        return call
    return replace(call, traceparent=header.strip())


class Tracing:
    """Begins traces."""

    def __init__(self, add: Callable[[Span], None]) -> None:
        self._add = add

    def begin(self, headers: dict[bytes, bytes], call: Call, key_id: str) -> Trace | None:
        """A request's trace, within its client's where that sent `traceparent`; None where the client says that its
        trace is not recorded."""
        parent = parse_traceparent(headers.get(b"traceparent"))
        if parent is not None and not parent.sampled:
            return None
        span = begin(f"generate {call.model}", parent, wall_ns())
        span.attributes = {
            "gen_ai.request.model": call.model,
            "url.path": call.path,
            "caudal.stream": call.stream,
            "caudal.key": key_id,
        }
        return Trace(span, self._add)


def span_sender(url: str, gang: str, site: str) -> SpanSender | None:
    """What sends a gateway's spans; None without an address. Raises ValueError for one that is none."""
    if not url:
        return None
    resource = {"service.name": "caudal-gateway", "service.instance.id": gang, "caudal.site": site}
    return SpanSender(url, resource)
