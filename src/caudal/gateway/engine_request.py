"""The bytes of requests to engines."""

from __future__ import annotations

import msgspec

from caudal.gateway.address import Address
from caudal.gateway.openai_api import Call
from caudal.gateway.router import Ticket
from caudal.gateway.usage import asking_usage

MAX_STARTS = 16

RETRY_STATUSES = frozenset({502, 503, 504})
"""What an engine that is loading, overloaded or proxied answers: another one may do better."""


def post(address: Address, path: str, body: bytes, traceparent: bytes = b"") -> bytes:
    """A whole request."""
    more = b"traceparent: %b\r\n" % traceparent if traceparent else b""
    start = address.starts.get(path) or _start(address, path)
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (start, more, len(body), body)


def _start(address: Address, path: str) -> bytes:
    """The first lines of a request there; kept with the address."""
    start = b"POST %b%b HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\n" % (
        address.prefix.encode(),
        path.encode(),
        address.host.encode(),
        address.port,
    )
    if len(address.starts) < MAX_STARTS:
        address.starts[path] = start
    return start


def generation_request(call: Call, ticket: Ticket) -> bytes:
    """The client's request as its replica gets it."""
    body = call.body if ticket.model == call.model else _renamed(call.body, ticket.model)
    if call.stream:
        body = asking_usage(body, call.include_usage)
    return post(ticket.address, call.path, body, call.traceparent)


def _renamed(body: bytes, model: str) -> bytes:
    decoded = msgspec.json.decode(body)
    decoded["model"] = model
    return msgspec.json.encode(decoded)
