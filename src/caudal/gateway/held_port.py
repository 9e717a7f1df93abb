"""A port that several processes of this user are to listen on: found or checked, and held for them."""

from __future__ import annotations

import asyncio
import errno
import socket

WAIT_S = 1.0
"""The processes of a gateway whose parent was killed let go of the port within so long."""


async def hold_port(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """The port (a free one for 0), and sockets that are bound to it and do not listen: while they are open the
    system gives it to nobody who asks for any port. Raises OSError: EADDRINUSE where another program listens,
    also one that would share."""
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found = list(dict.fromkeys((int(row[0]), str(row[4][0]), tuple(row[4][2:])) for row in rows))
    end = loop.time() + WAIT_S
    while True:
        try:
            return _hold(found, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or loop.time() > end:
                raise
        await asyncio.sleep(0.1)


Where = tuple[int, str, tuple[int, ...]]
"""Family, address, and what IPv6 has besides (flow, scope)."""


def _hold(found: list[Where], port: int) -> tuple[int, list[socket.socket]]:
    held: list[socket.socket] = []
    try:
        for where in found:
            if port:
                _bound(where, port, share=False).close()  # fails where anybody listens
            held.append(_bound(where, port, share=True))
            port = held[-1].getsockname()[1]
    except OSError:
        for one in held:
            one.close()
        raise
    return port, held


def _bound(where: Where, port: int, *, share: bool) -> socket.socket:
    family, address, more = where
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, port, *more))
    except OSError:
        one.close()
        raise
    return one
