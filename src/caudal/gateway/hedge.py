"""One request at two replicas, where the first is slow to begin: whoever says the first byte answers, the other is
let go. Whether there is a second one is policy/hedging's; this carries it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamConnection
from caudal.gateway.upstream_pool import UpstreamPool

Request = Callable[[Ticket], bytes]
Begun = asyncio.Task[UpstreamConnection]


async def hedged_request(
    router: Router, pool: UpstreamPool, ticket: Ticket, request: Request, *, stream: bool
) -> UpstreamConnection:
    """Send a request to the ticket's replica, and where that is slow to another one too. Returns the connection of
    the one that began to answer, whose place the ticket is then. Raises UpstreamFailed where none of them does.

    Streams only: an answer that comes in one piece says nothing of how soon it begun."""
    wait_s = ticket.hedger.wait_s() if stream else None
    if wait_s is None:
        return await pool.request(ticket.address, request(ticket))
    begun_at = router.now()
    won: UpstreamConnection | None = None
    first = asyncio.ensure_future(_begun(pool, ticket, request))
    try:
        await asyncio.wait({first}, timeout=wait_s)
        waited_s = max(wait_s, router.now() - begun_at)  # timers may fire a millisecond early
        other = None if first.done() else _other(router, ticket, waited_s)
        if other is None:
            won = await first
        else:
            try:
                won = await _race(pool, ticket, first, other, request)
            finally:
                other.release()
        return won
    finally:
        _let_go(first, won)


async def _race(
    pool: UpstreamPool, ticket: Ticket, first: Begun, other: Ticket, request: Request
) -> UpstreamConnection:
    """The connection that begins first; the ticket is its place, and `other` the loser's."""
    won: UpstreamConnection | None = None
    second = asyncio.ensure_future(_begun(pool, other, request))
    try:
        waiting = {first, second}
        while waiting:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if _good(first):
                if second.done() and not _good(second):
                    other.failed()
                won = first.result()
                return won
            if _good(second):
                if first.done():
                    ticket.failed()
                ticket.swap(other)
                won = second.result()
                return won
        other.failed()
        return first.result()  # raises what became of it; whoever asked says that its replica failed
    finally:
        _let_go(second, won)


def _other(router: Router, ticket: Ticket, elapsed_s: float) -> Ticket | None:
    """A place elsewhere, where the policy wants one and there is one to be had."""
    if not ticket.hedger.hedge_now(elapsed_s):
        return None
    other = router.try_other(ticket)
    if other is None:
        ticket.hedger.did_not()
    else:
        router.hedged += 1
    return other


async def _begun(pool: UpstreamPool, ticket: Ticket, request: Request) -> UpstreamConnection:
    connection = await pool.request(ticket.address, request(ticket))
    try:
        await connection.begun()
    except BaseException:
        connection.close()
        raise
    return connection


def _good(task: Begun) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _let_go(task: Begun, won: UpstreamConnection | None) -> None:
    """End it, unless it is the one that won."""
    if not task.done():
        task.cancel()
        task.add_done_callback(_close)
    elif _good(task) and task.result() is not won:
        task.result().close()


def _close(task: Begun) -> None:
    """It may have begun in the very moment in which it was let go; what it failed of does not matter any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
