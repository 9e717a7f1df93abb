"""The header lines that OpenAI's clients look for in every answer: the request's id, and how long it took."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from caudal.gateway.exchange import Exchange
from caudal.gateway.http_request import Head

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class AnswerHeads:
    """Makes them. Ids are a random start of this process and a count: unique, and cheap."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._start = f"req_{secrets.token_hex(8)}".encode()
        self._count = 0
        self._counting, self._naming = self._counted, self._named  # bound once

    def of(self, head: Head) -> Callable[[Exchange], bytes]:
        """What makes the lines for answers to requests with this head, from `begun_at` of their exchange."""
        return self._naming if b"x-request-id" in head.headers else self._counting

    def _named(self, exchange: Exchange) -> bytes:
        given = exchange.request.headers[b"x-request-id"]
        if not REQUEST_ID.fullmatch(given):
            return self._counted(exchange)
        spent_ms = (self._now() - exchange.begun_at) * 1000
        return b"x-request-id: %b\r\nopenai-processing-ms: %d\r\n" % (given, spent_ms)

    def _counted(self, exchange: Exchange) -> bytes:
        self._count += 1
        return b"x-request-id: %b%08x\r\nopenai-processing-ms: %d\r\n" % (
            self._start,
            self._count,
            (self._now() - exchange.begun_at) * 1000,
        )
