"""The door of a replica to other machines: TLS on the outside, its engine on loopback behind it.

Engines speak plain HTTP and ask nobody who they are. So where gateways come from another machine the engine listens to
this one alone, and the door passes bytes on for whoever shows a certificate of the fleet. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from urllib.parse import urlsplit

from caudal.domain.errors import PortInUse

HANDSHAKE_S = 10.0
PART_BYTES = 1 << 16


class Door:
    """Listens at a host's address, on any port, in a thread of its own that ends with the process."""

    def __init__(self, host: str, context: ssl.SSLContext, engine_url: str) -> None:
        parts = urlsplit(engine_url)
        self._host = host
        self._context = context
        self._engine = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._loop = asyncio.new_event_loop()
        self.url = ""

    def open(self) -> None:
        """Listen; `url` says where. Raises PortInUse where the host's address is not this machine's."""
        threading.Thread(target=self._loop.run_forever, name="door", daemon=True).start()
        try:
            server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            raise PortInUse(
                f"nothing can listen at {self._host}", where="the replica's door", why=str(error)
            ) from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"https://{host}:{server.sockets[0].getsockname()[1]}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(
            self._pass_on, self._host, 0, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
        )

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; when either side ends, both do: an engine learns so that its client has left."""
        try:
            engine_reader, engine_writer = await asyncio.open_connection(*self._engine)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.create_task(_copy(reader, engine_writer)),
            asyncio.create_task(_copy(engine_reader, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, engine_writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes, as they come, no faster than they are taken."""
    with contextlib.suppress(OSError):
        while part := await reader.read(PART_BYTES):
            writer.write(part)
            await writer.drain()
