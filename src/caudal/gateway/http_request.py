"""One HTTP/1.1 request out of bytes: parsing and its limits, no sockets and no tasks.

`RequestReader` is fed whatever arrives and yields whole requests, or one refusal after which nothing more
is read. llhttp (through httptools, in its strict mode) refuses bare line feeds, folded headers, a
Content-Length beside a Transfer-Encoding, repeated or signed lengths; what it lets through and two servers
could still read differently is refused here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import httptools
from msgspec import Struct

from caudal.gateway.known_heads import MAX_DIGITS, KnownHeads, known_heads
from caudal.gateway.limits import Limits


@dataclass(slots=True)
class Head:
    """What a request says before its body. Requests that say the very same share one, but for their content-length,
    which is therefore not among the headers. Header names are in lower case; `path` has no query. `notes` is for
    whoever answers: what follows from the head alone, and need not be worked out again."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    keep_alive: bool
    http_1_1: bool
    notes: object = field(default=None, compare=False, repr=False)


class Request(Struct):
    """A whole request."""

    head: Head
    body: bytes

    @property
    def method(self) -> str:
        """In capital letters."""
        return self.head.method

    @property
    def path(self) -> str:
        """Without the query."""
        return self.head.path

    @property
    def query(self) -> str:
        """Without its question mark."""
        return self.head.query

    @property
    def headers(self) -> dict[bytes, bytes]:
        """By name, in lower case; without content-length."""
        return self.head.headers


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the bytes are not answered as a request; the connection ends after it is said."""

    status: int
    code: str
    message: str


class _Refused(Exception):
    """Stops the parser; the refusal itself is kept in the reader."""


SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization"})
"""Headers that mean something here and may stand only once."""


@dataclass(slots=True)
class _Partial:
    """The request that is being read."""

    url: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    count: int = 0
    head_bytes: int = 0
    unfinished_bytes: int = 0
    head_done: bool = False
    body: bytes | bytearray = (
        b""  # one buffer, not a list: a list of tiny chunks takes twenty times their bytes
    )
    body_bytes: int = 0
    seen_bytes: int = 0  # of the body, when bytes came last
    idle_bytes: int = 0  # that came since the last byte of the body: trailers, and what stands between chunks


class RequestReader:
    """Bytes in, requests out, in order. After a refusal it reads nothing more. `heads` are shared by readers with the
    same limits."""

    def __init__(self, limits: Limits, heads: KnownHeads | None = None) -> None:
        self.ready: deque[Request | Refusal] = deque()
        self.refused = False
        self._heads = heads if heads is not None else known_heads(limits.body_bytes)
        self._find = self._heads.find
        self._length: bytes | None = None  # the last request's content-length
        self._head_bytes = 0  # and what of its head was counted
        self._last = False  # the parser read a request after which nothing follows
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self.begun: _Partial | None = None  # the request that is being read

    def phase(self) -> str:
        """`idle` between requests, `head` or `body` within one."""
        if self.begun is None:
            return "idle"
        return "body" if self.begun.head_done else "head"

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        partial = self.begun
        return (
            partial is not None
            and partial.head_done
            and partial.body_bytes == 0
            and partial.headers.get(b"expect", b"").lower() == b"100-continue"
        )

    def feed(self, data: bytes) -> None:
        """Take what arrived; `ready` has what it completed."""
        known = self.known(data)
        if known is not None:
            self.ready.append(known)
        else:
            self.parse(data)

    def known(self, data: bytes) -> Request | None:
        """The request that this is, where it is whole and alone, and its head was parsed before: it is not among those
        that are ready. None: it is to be parsed."""
        if self.begun is not None or self.ready or self.refused or self._last:
            return None
        found = self._find(data)
        return None if found is None else Request(*found)

    def parse(self, data: bytes) -> None:
        """Take what arrived and is not known."""
        if self.refused:
            return
        before, ready = self.begun, len(self.ready)
        alone = before is None and not ready and not self._last
        try:
            self._parser.feed_data(data)
            partial = self.begun
            if (
                partial is not None
                and not partial.head_done
                and (partial is before or len(self.ready) == ready)
            ):
                # The parser hands a header over when it is whole: what it still holds is counted here. A
                # head that begins behind another request in these bytes is counted from the next bytes on.
                partial.unfinished_bytes += len(data)
                self._check_head_bytes(partial)
            elif alone and partial is None and len(self.ready) == 1:
                self._remember(data)
            elif partial is not None and partial is before:
                self._check_idle_bytes(partial, len(data))
        except _Refused:
            pass
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrade_refused", "This server does not change protocols.")
        except httptools.HttpParserError as error:
            if not self.refused:
                self._refuse(400, "bad_request", f"This is not a valid HTTP/1.1 request: {_plain(error)}.")

    def _remember(self, data: bytes) -> None:
        """Keep the head of what was just read, if that was one plain request and nothing else."""
        request, length = self.ready[0], self._length
        if not isinstance(request, Request) or not (request.head.keep_alive and request.head.http_1_1):
            return
        if b"transfer-encoding" in request.headers or b"expect" in request.headers:
            return
        roomy = self._head_bytes + MAX_DIGITS <= self._limits.head_bytes  # whatever its content-length
        if roomy and (length == b"%d" % len(request.body) if length is not None else not request.body):
            self._heads.keep(data, request.head)

    def _refuse(self, status: int, code: str, message: str) -> None:
        if not self.refused:
            self.refused = True
            self.begun = None
            self.ready.append(Refusal(status, code, message))

    def _stop(self, status: int, code: str, message: str) -> None:
        self._refuse(status, code, message)
        raise _Refused

    def _check_head_bytes(self, partial: _Partial) -> None:
        if max(partial.head_bytes, partial.unfinished_bytes) > self._limits.head_bytes:
            self._stop(431, "headers_too_large", f"Headers are limited to {self._limits.head_bytes} bytes.")

    def _check_idle_bytes(self, partial: _Partial, new_bytes: int) -> None:
        """The parser holds a trailer until it is whole: one without an end must not fill memory."""
        if partial.body_bytes != partial.seen_bytes:
            partial.seen_bytes, partial.idle_bytes = partial.body_bytes, 0
            return
        partial.idle_bytes += new_bytes
        if partial.idle_bytes > self._limits.head_bytes:
            limit = self._limits.head_bytes
            self._stop(431, "headers_too_large", f"What is no body is limited to {limit} bytes.")

    # What httptools calls, in the order of the bytes.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        waiting_bytes = sum(len(r.body) for r in self.ready if isinstance(r, Request))
        if len(self.ready) >= self._limits.pipelined or waiting_bytes > self._limits.body_bytes:
            self._stop(400, "too_many_pipelined", "Too many requests at once on one connection.")
        self.begun = _Partial()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        assert self.begun is not None
        self.begun.url += url
        self.begun.head_bytes += len(url)
        self._check_head_bytes(self.begun)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those after the body (trailers) are dropped."""
        partial = self.begun
        assert partial is not None
        partial.count += 1
        if partial.count > self._limits.headers:
            self._stop(431, "too_many_headers", f"A request has at most {self._limits.headers} headers.")
        if partial.head_done:
            return
        partial.head_bytes += len(name) + len(value)
        self._check_head_bytes(partial)
        name = name.lower()
        if name in partial.headers:
            if name in SINGLE:
                self._stop(400, "repeated_header", f"The header {name.decode('latin-1')} stands twice.")
            value = partial.headers[name] + b", " + value
        partial.headers[name] = value

    def on_headers_complete(self) -> None:
        """All headers are there: what is refused for them is refused before the body is read."""
        partial = self.begun
        assert partial is not None
        partial.head_done = True
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._stop(505, "http_version", "This server speaks HTTP/1.1.")
        if version == "1.1" and b"host" not in partial.headers:
            self._stop(400, "host_missing", "An HTTP/1.1 request names its host.")
        if not partial.url.startswith(b"/"):
            self._stop(400, "bad_target", "The target of a request starts with a slash.")
        coding = partial.headers.get(b"transfer-encoding")
        if coding is not None and (version != "1.1" or coding.strip().lower() != b"chunked"):
            self._stop(400, "transfer_encoding", "The only transfer encoding here is chunked, in HTTP/1.1.")
        if self._parser.should_upgrade():
            self._stop(400, "upgrade_refused", "This server does not change protocols.")
        if int(partial.headers.get(b"content-length", b"0")) > self._limits.body_bytes:
            self._too_large()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        partial = self.begun
        assert partial is not None
        partial.body_bytes += len(data)
        if partial.body_bytes > self._limits.body_bytes:
            self._too_large()
        if not partial.body:
            partial.body = data
        else:
            if isinstance(partial.body, bytes):
                partial.body = bytearray(partial.body)
            partial.body += data

    def on_message_complete(self) -> None:
        """A whole request."""
        partial = self.begun
        assert partial is not None
        path, _, query = partial.url.partition(b"?")
        self.begun = None
        self._length, self._head_bytes = partial.headers.pop(b"content-length", None), partial.head_bytes
        head = Head(
            method=self._parser.get_method().decode("latin-1"),
            path=path.decode("latin-1"),
            query=query.decode("latin-1"),
            headers=partial.headers,
            keep_alive=self._parser.should_keep_alive(),
            http_1_1=self._parser.get_http_version() == "1.1",
        )
        self._last = not head.keep_alive
        self.ready.append(Request(head, bytes(partial.body)))

    def _too_large(self) -> None:
        limit = self._limits.body_bytes
        self._stop(413, "body_too_large", f"The body of a request is limited to {limit} bytes.")


def _plain(error: Exception) -> str:
    """The parser's own words, printable and short."""
    return "".join(c for c in str(error) if c.isprintable())[:120].rstrip(".")
