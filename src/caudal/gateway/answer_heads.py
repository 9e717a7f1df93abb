"""The header lines that OpenAI's clients look for in every answer: the request's id, and how long it took."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from caudal.gateway.http_request import Request

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class AnswerHeads:
    """Makes them. Ids are a random start of this process and a count: unique, and cheap."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._start = f"req_{secrets.token_hex(8)}".encode()
        self._count = 0

    def of(self, request: Request) -> Callable[[], bytes]:
        """The lines for one request, made when its answer begins."""
        begun_at = self._now()
        given = request.headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            request_id = given
        else:
            self._count += 1
            request_id = b"%b%08x" % (self._start, self._count)

        def lines() -> bytes:
            spent_ms = (self._now() - begun_at) * 1000
            return b"x-request-id: %b\r\nopenai-processing-ms: %d\r\n" % (request_id, spent_ms)

        return lines
