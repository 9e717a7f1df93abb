"""What a request's head must say, and what is known of a head with which nothing is wrong: the same for every request
that has it. Knows no keys: whether one is good is looked up for every request anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from caudal.domain.key import Slo
from caudal.gateway.exchange import Exchange
from caudal.gateway.http_request import Head
from caudal.gateway.openai_api import Call, parse_chat, parse_completion
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.wishes import head_wishes

LOCAL_ORIGIN = re.compile(rb"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")

PARSERS: dict[str, Callable[[bytes], Call]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
}
"""Of generations, by path."""


@dataclass(slots=True)
class PlainHead:
    """The head of a generation. `lines` makes those of its answers' heads; `slo` (None: it names none) and `deadline_s`
    are what it wishes, `traced` says that it names a trace."""

    lines: Callable[[Exchange], bytes]
    parse: Callable[[bytes], Call]
    slo: Slo | None
    deadline_s: float
    traced: bool


def plain_head(head: Head, lines: Callable[[Exchange], bytes]) -> PlainHead | None:
    """What is known of the head of a generation, whose answers have these lines; None where it is of something else, or
    is refused."""
    parse = PARSERS.get(head.path)
    if parse is None or head.method != "POST":
        return None
    try:
        refuse_foreign_pages(head)
        require_json(head)
        slo, deadline_s = head_wishes(head.headers)
    except ApiError:
        return None  # said where it is answered, after what goes before it
    return PlainHead(lines, parse, slo, deadline_s, b"traceparent" in head.headers)


def refuse_foreign_pages(head: Head) -> None:
    """Browsers say from which page a request comes. A page of another site must not get in, not even one
    whose name was made to point here (DNS rebinding), for which the browser asks no permission."""
    origin = head.headers.get(b"origin")
    if origin is not None and not LOCAL_ORIGIN.fullmatch(origin):
        raise ApiError(403, "origin_refused", "Web pages of other sites may not use this gateway.")


def require_json(head: Head) -> None:
    """A page of another site can make a browser post plain text here, but not JSON."""
    kind = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        message = "The body of this request must be JSON: send the header 'content-type: application/json'."
        raise ApiError(415, "unsupported_media_type", message)
    if head.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        message = "The body of this request must not be compressed: leave out 'content-encoding'."
        raise ApiError(415, "unsupported_media_type", message)
