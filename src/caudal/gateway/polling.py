"""A table that the control API gives out: asked for again and again, remembered for when control is away.

The last good answer lies in a state file, so that a gateway that is started again while control is away
serves at once. Knows nothing of what is in a table.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from caudal.gateway.address import parse_address
from caudal.gateway.upstream import UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.telemetry.report import CA_FILE

log = logging.getLogger("caudal.gateway")

T = TypeVar("T")

ANSWER_S = 3.0
HURRY_S = 0.1


class Poller(Generic[T]):
    """Asks every `every_s` seconds, hands on every table that differs, keeps the last in a file that only its
    owner can read. `decode` raises ValueError for what is no table; `what` is what logs call it. A table for which
    `changed` returns False is not worth keeping."""

    def __init__(
        self,
        what: str,
        url: str,
        token_file: str,
        state_file: Path,
        pool: UpstreamPool,
        decode: Callable[[bytes], T],
        changed: Callable[[T], bool | None],
        every_s: float,
        query: str = "",
    ) -> None:
        self._what = what
        self._address = parse_address(url, os.environ.get(CA_FILE, ""))
        self._query = query
        self._token_file = token_file
        self._state_file = state_file
        self._pool = pool
        self._decode = decode
        self._changed = changed
        self._every_s = every_s
        self._last = b""
        self.hurry: Callable[[], bool] = lambda: False  # whether somebody waits for what comes next
        self._away_because = ""

    def load(self) -> bool:
        """Take up what the state file has; False where it has nothing that can be used."""
        try:
            data = self._state_file.read_bytes()
            table = self._decode(data)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            log.warning("the last known %s in %s cannot be used: %s", self._what, self._state_file, error)
            return False
        self._last = data
        self._changed(table)
        return True

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            await self.poll()
            self._pool.prune()
            await asyncio.sleep(HURRY_S if self.hurry() else self._every_s)

    async def poll(self) -> bool:
        """Ask once; False where control did not give a good answer (what was known stays)."""
        try:
            async with asyncio.timeout(ANSWER_S):
                data = await self._fetch()
            if data != self._last:
                worth_keeping = self._changed(self._decode(data)) is not False
                self._last = data
                if worth_keeping:
                    self._keep(data)
        except (UpstreamFailed, TimeoutError, ValueError) as error:
            self._note_away(str(error) or "no answer in time")
            return False
        if self._away_because:
            log.info("control gives %s again", self._what)
            self._away_because = ""
        return True

    async def _fetch(self) -> bytes:
        address = self._address
        request = (
            f"GET {address.prefix}{self._query} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
            f"authorization: Bearer {self._token()}\r\naccept: application/json\r\n\r\n"
        )
        connection = await self._pool.request(address, request.encode("latin-1", "replace"))
        try:
            data = await connection.read_all()
        finally:
            self._pool.release(address, connection)
        if connection.status != 200:
            raise UpstreamFailed(f"control answers {connection.status}")
        return data

    def _token(self) -> str:
        try:
            return Path(self._token_file).read_text().strip()
        except OSError:
            return ""  # control will refuse, and that is logged

    def _keep(self, data: bytes) -> None:
        """Written beside and moved over, so that a reader never sees half of it."""
        beside = self._state_file.with_name(self._state_file.name + f".{os.getpid()}")
        try:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            beside.replace(self._state_file)
        except OSError as error:
            log.warning("the %s could not be written to %s: %s", self._what, self._state_file, error)

    def _note_away(self, why: str) -> None:
        if why != self._away_because:
            log.warning("control does not give %s (%s): going on with what is known", self._what, why)
            self._away_because = why
