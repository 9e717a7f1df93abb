"""Connections to replicas that are kept for the next request, by address. Knows nothing of what is said on them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from caudal.gateway import wire
from caudal.gateway.address import Address
from caudal.gateway.pumped import PumpedConnection
from caudal.gateway.tls import client_context
from caudal.gateway.upstream import Sink, UpstreamConnection, UpstreamFailed, UpstreamLimits

SWEEP_S = 0.5


class UpstreamPool:
    """Connections that are kept for the next request, by address. `fleet`: this site's certificate, for replicas
    on other machines."""

    def __init__(self, limits: UpstreamLimits, fleet: ssl.SSLContext | None = None) -> None:
        self.on_connect: Callable[[Address, float], None] | None = (
            None  # told how long a connection took, in s
        )
        self._limits = limits
        self._kind = PumpedConnection if wire.BUILT else UpstreamConnection
        self._fleet = fleet
        self._loop = asyncio.get_running_loop()  # asked for once: each time costs a system call
        self._idle: dict[tuple[str, int, bool, str], list[UpstreamConnection]] = {}
        self._telling: set[UpstreamConnection] = set()  # those with a sink
        self._sweeper: asyncio.TimerHandle | None = None

    async def request(self, address: Address, data: bytes) -> UpstreamConnection:
        """Send a request; returns the connection with the head of the answer read. Give it back with
        `release`. A kept connection that turns out to be closed is retried on a new one, once. Raises
        UpstreamFailed."""
        kept = self.take(address)
        if kept is not None:
            try:
                return await self._ask(kept, data)
            except UpstreamFailed as failure:
                if not failure.stale:
                    raise
        return await self._ask(await self._connect(address), data)

    def start(self, connection: UpstreamConnection, data: bytes, sink: Sink) -> None:
        """Send a request on a connection that `take` gave; its silence is bounded from here, to a second."""
        self._telling.add(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        connection.start(data, sink)

    def _sweep(self) -> None:
        loop = self._loop
        now = loop.time()
        for connection in list(self._telling):
            if connection.sink is None:
                self._telling.discard(connection)
            elif connection.overdue(now):
                connection.give_up("it said nothing for too long")
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._telling else None

    def release(self, address: Address, connection: UpstreamConnection) -> None:
        """Keep the connection if its answer was read to the end, else close it."""
        if connection.usable():
            self.keep(address, connection)
        else:
            connection.close()

    def keep(self, address: Address, connection: UpstreamConnection) -> None:
        """The same of one whose answer is whole and let it stay; whether it did is looked at when it is taken again."""
        idle = self._idle.get(address.key)
        if idle is None:
            idle = self._idle[address.key] = []
        if len(idle) < self._limits.idle_connections:
            self._telling.discard(connection)
            connection.idle_since = self._loop.time()
            idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is kept."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def prune(self) -> None:
        """Close what was kept for too long, also for addresses that are asked no more."""
        oldest = self._loop.time() - self._limits.idle_s
        for key in list(self._idle):
            fresh = [c for c in self._idle[key] if c.usable() and c.idle_since >= oldest]
            for connection in self._idle[key]:
                if connection not in fresh:
                    connection.close()
            if fresh:
                self._idle[key] = fresh
            else:
                del self._idle[key]

    def take(self, address: Address) -> UpstreamConnection | None:
        """A kept connection that looks usable, if there is one."""
        idle = self._idle.get(address.key)
        if not idle:
            return None
        oldest = self._loop.time() - self._limits.idle_s
        while idle:
            connection = idle.pop()
            if connection.usable() and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, address: Address) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        patience_s = self._limits.tls_connect_s if address.tls else self._limits.connect_s
        try:
            context = self._context(address) if address.tls else None
            async with asyncio.timeout(patience_s):
                _, connection = await loop.create_connection(
                    lambda: self._kind(self._limits), address.host, address.port, ssl=context,
                    server_hostname=address.site or None,
                )  # fmt: skip
        except TimeoutError:
            raise UpstreamFailed(f"no connection within {patience_s:g} s", unsent=True) from None
        except OSError as error:
            raise UpstreamFailed(f"no connection: {error.strerror or error}", unsent=True) from error
        if self.on_connect is not None:
            self.on_connect(address, loop.time() - begun_at)
        return connection

    def _context(self, address: Address) -> ssl.SSLContext:
        """Raises OSError."""
        if not address.site:
            return client_context(address.ca_file)
        if self._fleet is None:
            raise OSError(f"without the fleet's certificates nobody gets into site {address.site}")
        return self._fleet

    async def _ask(self, connection: UpstreamConnection, data: bytes) -> UpstreamConnection:
        try:
            await connection.request(data)
        except BaseException:
            connection.close()
            raise
        return connection
