"""Traces in OpenTelemetry's protocol: spans, their JSON, and a thread that sends them. No part of this can hold up
or fail what is traced: what cannot be sent in time is dropped and counted.

Source: OTLP 1.x over HTTP with JSON (ids in hex, 64-bit numbers as strings), and W3C Trace Context for `traceparent`.
Knows no requests and no models.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

log = logging.getLogger("caudal.telemetry")

Value = str | int | float | bool

TRACES_PATH = "/v1/traces"
MAX_WAITING = 4096
MAX_BATCH = 512
SEND_EVERY_S = 1.0
TIMEOUT_S = 5.0
MAX_PAUSE_S = 60.0
SERVER_KIND = 2
ERROR_STATUS = 2

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a client's `traceparent` says: its trace, its span, and whether it wants it recorded."""

    trace_id: str
    span_id: str
    sampled: bool


@dataclass(slots=True)
class Span:
    """One piece of work. Times are in nanoseconds since 1970; `parent_id` is empty for the first of a trace."""

    name: str
    trace_id: str
    parent_id: str
    span_id: str
    start_ns: int
    end_ns: int = 0
    failed: bool = False
    attributes: dict[str, Value] = field(default_factory=dict)


def parse_traceparent(header: bytes | None) -> Parent | None:
    """The header as W3C has it; None where there is none, or none that can be used."""
    if header is None or len(header) > 256:
        return None
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more) or not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Parent(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1))


def begin(name: str, parent: Parent | None, wall_ns: int) -> Span:
    """A span that begins now, in its parent's trace or in one of its own."""
    trace_id = parent.trace_id if parent is not None else secrets.token_hex(16)
    return Span(name, trace_id, parent.span_id if parent is not None else "", secrets.token_hex(8), wall_ns)


def encode(spans: Sequence[Span], resource: Mapping[str, Value]) -> bytes:
    """The body of one POST: an ExportTraceServiceRequest."""
    scope = {"scope": {"name": "caudal"}, "spans": [_span(span) for span in spans]}
    whole = {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}
    return json.dumps({"resourceSpans": [whole]}).encode()


def _span(span: Span) -> dict[str, object]:
    out: dict[str, object] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": SERVER_KIND,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {"code": ERROR_STATUS} if span.failed else {},
    }
    return {**out, "parentSpanId": span.parent_id} if span.parent_id else out


def _attributes(values: Mapping[str, Value]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, object]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


class SpanSender:
    """Sends spans in batches from a thread of its own. At most MAX_WAITING wait; what comes on top is dropped."""

    def __init__(self, url: str, resource: Mapping[str, Value], every_s: float = SEND_EVERY_S) -> None:
        """`url` is the collector's, as in `http://127.0.0.1:4318`; without a path, TRACES_PATH. Raises ValueError."""
        self.dropped = 0
        self.sent = 0
        self._scheme, self._host, self._port, self._path = collector(url)
        self._resource = dict(resource)
        self._every_s = every_s
        self._waiting: deque[Span] = deque()
        self._closing = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def add(self, span: Span) -> None:
        """One that has ended. Never waits, never raises."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
        else:
            self._waiting.append(span)

    def close(self) -> None:
        """Send what is left, once, and end. Takes TIMEOUT_S at most for each step of a connection that hangs."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * TIMEOUT_S)

    def _run(self) -> None:
        while not self._closing.wait(min(self._every_s * 2**self._failures, MAX_PAUSE_S)):
            while len(self._waiting) and self._send_batch() and not self._closing.is_set():
                pass
        while len(self._waiting) and self._send_batch():
            pass

    def _send_batch(self) -> bool:
        """Whether it was taken. A batch that was not is dropped: a collector that is down must not fill memory."""
        batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        try:
            status = self._post(encode(batch, self._resource))
            why = "" if 200 <= status < 300 else f"it answered {status}"
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
        if not why:
            self.sent += len(batch)
            self._failures = 0
            return True
        self.dropped += len(batch)
        if not self._failures:
            log.warning("traces cannot be sent to %s:%d: %s; they are dropped", self._host, self._port, why)
        self._failures = min(self._failures + 1, 10)
        return False

    def _post(self, body: bytes) -> int:
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._path, body, {"content-type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()


def collector(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a collector's address. Raises ValueError for what is none; a password in it is
    refused, since it would stand in the fleet file."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError("not an http address, or one with a password in it")
    if parts.query or parts.fragment or not all(32 < ord(c) < 127 for c in url):
        raise ValueError("a collector's address has a path at most, in printable ASCII")
    port = parts.port or (443 if parts.scheme == "https" else 4318)
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/") or TRACES_PATH


def wall_ns() -> int:
    """Now, in nanoseconds since 1970."""
    return time.time_ns()
