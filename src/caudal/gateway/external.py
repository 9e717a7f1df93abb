"""A request at somebody else's address: its key, its words, what it may cost and what it has cost.

Knows OpenAI's dialect as other servers speak it. The key is read from its file when it is needed and again when
the file changes; it goes into one header of one request, and nowhere else: never into logs, errors or routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from caudal.gateway.address import Address
from caudal.gateway.openai_api import Call
from caudal.gateway.routes import ExternalRoute, ReplicaRoute
from caudal.gateway.spending import Reservation, Spending, cost
from caudal.gateway.upstream import UpstreamFailed

EMBEDDINGS = "/v1/embeddings"
UNKNOWN_CONTEXT = 8192
"""The most that a reply counts where neither the request nor the model's context bounds it."""

REFUSED = frozenset({401, 402, 403, 404, 407, 408, 429})
"""Statuses that are about us and the provider, not about the client's request: another place may do better, and
the client is not told of our keys and limits."""

MAX_KEY_BYTES = 8192
_KEY = re.compile(r"[\x21-\x7e]+")


class Externals:
    """What a gateway keeps for requests that leave the fleet: keys that were read, and the budgets."""

    def __init__(self, spending: Spending) -> None:
        self.spending = spending
        self._keys: dict[str, tuple[tuple[int, int], str]] = {}

    def admits(self, call: Call, context: int) -> Callable[[ReplicaRoute], tuple[bool, float]]:
        """For routing: whether an address can be paid for this request, and what it would cost at most, in
        picodollars."""

        def ask(route: ReplicaRoute) -> tuple[bool, float]:
            assert route.external is not None
            most = _most(call, route.external, context)
            return self.spending.affords(route, most), most

        return ask

    def begin(self, call: Call, route: ReplicaRoute, address: Address, context: int) -> Paid:
        """Reserve and write the request. Raises UpstreamFailed where the key cannot be had or the budget has no
        room any more; then nothing is reserved."""
        assert route.external is not None
        key = self._key(route.external.key_file)
        reservation = self.spending.reserve(route, _most(call, route.external, context))
        if reservation is None:
            raise UpstreamFailed("the month's budget for it is spent")
        return Paid(call, route, address, key, context, reservation)

    def _key(self, path: str) -> str:
        if not path:
            return ""
        try:
            about = Path(path).stat()
            stamp = (about.st_mtime_ns, about.st_size)
            known = self._keys.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            with Path(path).open("rb") as file:
                text = file.read(MAX_KEY_BYTES).decode("latin-1").strip()
        except OSError as error:
            raise UpstreamFailed(f"its key file {path} cannot be read: {error.strerror}") from error
        if not _KEY.fullmatch(text):
            raise UpstreamFailed(f"its key file {path} does not hold one line with a key")
        self._keys[path] = (stamp, text)
        return text


class Paid:
    """One request at one address. Closed exactly once: then it is known what it cost, or it counts as the most."""

    def __init__(
        self, call: Call, route: ReplicaRoute, address: Address, key: str, context: int, held: Reservation
    ) -> None:
        assert route.external is not None
        self._external = route.external
        self._held = held
        self._usage: tuple[int, int] | None = None
        self._free = False
        body, self._hide_usage = _body(call, route, context)
        path = address.prefix + call.path.removeprefix("/v1")
        host = address.host if address.standard_port else f"{address.host}:{address.port}"
        head = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json"]
        head += ["accept-encoding: identity", "user-agent: caudal", f"content-length: {len(body)}"]
        head += [f"authorization: Bearer {key}"] if key else []
        self.request = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body

    def refuses(self, status: int) -> bool:
        """Whether the answer is about us, not about the client's request. No answer but 200 is paid."""
        self._free = status != 200
        return status in REFUSED or 300 <= status < 400 or status >= 500

    def unsent(self) -> None:
        """It never left this machine: it costs nothing."""
        self._free = True

    def whole(self, body: bytes) -> bytes:
        """A whole answer passes; what it used is noted."""
        try:
            self._note(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # not ours to judge here; it counts as the most
        return body

    def events(self, events: bytes) -> bytes:
        """Whole events pass; usage is noted, and an event that says nothing else is kept from a client that has
        not asked for it."""
        if b'"usage"' not in events:
            return events
        kept: list[bytes] = []
        dropped = False  # the last line: then the empty one that ended its event goes, too
        for line in events.split(b"\n"):
            if dropped and line in (b"", b"\r"):
                dropped = False
                continue
            dropped = line.startswith(b"data:") and b'"usage"' in line and self._only_usage(line[5:])
            if not dropped:
                kept.append(line)
        return b"\n".join(kept)

    def close(self) -> int:
        """It is over; what it cost, in picodollars."""
        if self._free:
            spent = 0
        elif self._usage is None:
            spent = self._held.most
        else:
            spent = cost(self._external, *self._usage)
        self._held.settle(spent)
        return spent

    def _only_usage(self, data: bytes) -> bool:
        try:
            event: Any = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        self._note(event)
        return self._hide_usage and isinstance(event, dict) and event.get("choices") == []

    def _note(self, answer: Any) -> None:
        usage = answer.get("usage") if isinstance(answer, dict) else None
        if not isinstance(usage, dict):
            return
        prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        if type(prompt) is int and type(reply) is int and 0 <= prompt < 1 << 40 and 0 <= reply < 1 << 40:
            self._usage = (prompt, reply)


def _most(call: Call, external: ExternalRoute, context: int) -> int:
    """What a request may cost at most, in picodollars: no token is shorter than a byte of the request, and the
    reply to each of its prompts is bounded. (Of pictures that are named by an address only their address is
    seen.)"""
    if call.path == EMBEDDINGS:
        return cost(external, len(call.body), 0)
    wanted = msgspec.json.decode(call.body, type=_Asked)
    n = _count(wanted.n) or 1
    choices = max(n, _count(wanted.best_of) or 1) * max(1, call.choices // n)
    return cost(external, len(call.body), _limit(wanted, context) * choices)


class _Asked(msgspec.Struct):
    """What of a request bounds its reply. What is no number there is the provider's to refuse."""

    n: Any = None
    best_of: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _limit(wanted: _Asked, context: int) -> int:
    asked = _count(wanted.max_completion_tokens)
    asked = _count(wanted.max_tokens) if asked is None else asked
    most = context or UNKNOWN_CONTEXT
    return most if asked is None else min(asked, most)


def _body(call: Call, route: ReplicaRoute, context: int) -> tuple[bytes, bool]:
    """The request in the provider's words, and whether usage was asked for by us only."""
    assert route.external is not None
    body: dict[str, Any] = msgspec.json.decode(call.body)
    body["model"] = route.model or call.model
    if call.path == EMBEDDINGS:
        return msgspec.json.encode(body), False
    limit = _limit(msgspec.json.decode(call.body, type=_Asked), context)
    for key in ("max_tokens", "max_completion_tokens"):
        body.pop(key, None)
    body[route.external.limit_key if "chat" in call.path else "max_tokens"] = limit
    if not call.stream:
        return msgspec.json.encode(body), False
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    hide = not options.get("include_usage")
    body["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(body), hide
