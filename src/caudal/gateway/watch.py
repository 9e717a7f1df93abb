"""Streams whose replica says nothing any more, or is to leave: their answers are moved while another replica is
free. Looked at twice a second, so that a chunk costs nothing here.

An engine that is busy with others' prompts is silent too, so a stream that has another way waits for some
seconds, longer where its tokens come slowly, and twice as long each time that it was moved: the replica that
takes over the streams of another one is busy with reading them. A stream that has no other way waits for as
long as the connection does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from caudal.gateway.relay import Relay
from caudal.gateway.router import Router

TICK_S = 0.5
STALL_S = 5.0
GAPS = 10.0
"""A silence counts as a stall only when it is also so many times the mean time between two chunks."""

DRAIN_S = 4.0
"""How long an answer may stay at a replica that drains or left the routes. Less than the 5 s that control gives
one that has to make room at once; most answers end within it."""


@dataclass(slots=True)
class _Seen:
    """What the last looks at a stream showed; times are the loop's, None: not begun."""

    chunks: int = 0
    moved_at: float = 0.0
    first_at: float | None = None
    unlisted_at: float | None = None


def overdue_s(stall_s: float, chunks: int, streaming_s: float) -> float:
    """How long a stream may be silent that made so many chunks in this time."""
    return max(stall_s, GAPS * streaming_s / chunks) if chunks else stall_s


class Watch:
    """Looks after the streams that are open."""

    def __init__(self, router: Router, stall_s: float = STALL_S, drain_s: float = DRAIN_S) -> None:
        self._router = router
        self._stall_s = stall_s
        self._drain_s = drain_s
        self._tick_s = min(TICK_S, stall_s / 4, drain_s / 4)
        self._seen: dict[Relay, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, relay: Relay) -> None:
        """A stream begins."""
        self._seen[relay] = _Seen(moved_at=self._router.now())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def remove(self, relay: Relay) -> None:
        """It is over."""
        del self._seen[relay]

    def _tick(self) -> None:
        self._timer = None
        for relay, seen in list(self._seen.items()):
            self._look(relay, seen, self._router.now())
        if self._seen:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _look(self, relay: Relay, seen: _Seen, now: float) -> None:
        connection, ticket = relay.connection, relay.ticket
        if relay.chunks != seen.chunks or connection is None or not connection.waiting:
            seen.chunks = relay.chunks
            seen.moved_at = now
            if seen.first_at is None and relay.chunks:
                seen.first_at = now
        if connection is None or ticket is None or seen.first_at is None:
            return  # before its first byte an answer may take long, and can be begun again as a whole
        listed, others = self._router.standing(relay.model, ticket)
        seen.unlisted_at = None if listed else seen.unlisted_at or now
        if not others:
            return
        silent_s = now - seen.moved_at
        patience_s = self._stall_s * 2**relay.moves
        overdue = silent_s >= overdue_s(patience_s, seen.chunks, seen.moved_at - seen.first_at)
        if overdue and relay.speaking:
            relay.moves += 1
            relay.silent_s = silent_s
            connection.give_up(f"silent for {silent_s:.1f} s within an answer")
        elif seen.unlisted_at is not None and now - seen.unlisted_at >= self._drain_s:
            seen.unlisted_at = None
            connection.give_up("it is to leave")
