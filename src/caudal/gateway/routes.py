"""Which replicas serve which model: asked of the control API, remembered for when it is away.

The last good answer lies in a state file, so that a gateway that is started again while control is away
serves at once. Knows nothing of loads or failures of replicas.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from caudal.gateway.upstream import Address, UpstreamFailed, UpstreamPool, parse_address

log = logging.getLogger("caudal.gateway")

POLL_S = 0.5
ANSWER_S = 3.0
MAX_MODELS = 1000
MAX_REPLICAS = 1000


Usd = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class ExternalRoute(msgspec.Struct, frozen=True):
    """What makes a route one that leaves the fleet: control/external.py says what is in it."""

    key_file: str = ""
    ca_file: str = ""
    usd_per_million_in: Usd = 0.0
    usd_per_million_out: Usd = 0.0
    budget_usd_per_month: Usd = 0.0
    overflow: bool = True
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    spent_month: str = ""
    spent_usd: dict[str, float] = {}


class ReplicaRoute(msgspec.Struct, frozen=True):
    """A replica that is ready. `model` is the name under which the engine knows the model, where it is not
    the public one. `engine` is empty for llama.cpp; `slots` is how many requests it works on at once (0: not
    known). With `external` it is somebody else's address, and `gang` only its name."""

    gang: str
    url: str
    site: str = ""
    model: str = ""
    engine: str = ""
    slots: int = 0
    external: ExternalRoute | None = None

    def address(self) -> Address:
        """Where it is. Raises ValueError."""
        return parse_address(self.url, self.external.ca_file if self.external is not None else "")


class ModelRoutes(msgspec.Struct, frozen=True):
    """A model that the fleet serves, and its replicas that are ready now (there may be none)."""

    id: str
    version: int = 0
    context: int = 0
    replicas: tuple[ReplicaRoute, ...] = ()


class RouteTable(msgspec.Struct, frozen=True):
    """What the control API answers."""

    version: int = 0
    models: tuple[ModelRoutes, ...] = ()


def decode_routes(data: bytes) -> RouteTable:
    """The table as it was sent, checked. Raises ValueError (msgspec's errors are such)."""
    table = msgspec.json.decode(data, type=RouteTable)
    if len(table.models) > MAX_MODELS:
        raise ValueError("more models than a gateway serves")
    for model in table.models:
        if len(model.replicas) > MAX_REPLICAS:
            raise ValueError("more replicas than a gateway serves")
        for replica in model.replicas:
            replica.address()
    return table


class RoutePoller:
    """Asks for the table twice a second, hands on every one that differs, keeps the last in a file."""

    def __init__(
        self,
        routes_url: str,
        token_file: str,
        state_file: Path,
        pool: UpstreamPool,
        changed: Callable[[RouteTable], None],
    ) -> None:
        self._address: Address = parse_address(routes_url)
        self._token_file = token_file
        self._state_file = state_file
        self._pool = pool
        self._changed = changed
        self._last = b""
        self._away_because = ""

    def load(self) -> bool:
        """Take up what the state file has; False where it has nothing that can be used."""
        try:
            data = self._state_file.read_bytes()
            table = decode_routes(data)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            log.warning("the last known routes in %s cannot be used: %s", self._state_file, error)
            return False
        self._last = data
        self._changed(table)
        return True

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            await self.poll()
            self._pool.prune()
            await asyncio.sleep(POLL_S)

    async def poll(self) -> bool:
        """Ask once; False where control did not give a good answer (what was known stays)."""
        try:
            async with asyncio.timeout(ANSWER_S):
                data = await self._fetch()
            if data != self._last:
                self._changed(decode_routes(data))
                self._last = data
                self._keep(data)
        except (UpstreamFailed, TimeoutError, ValueError) as error:
            self._note_away(str(error) or "no answer in time")
            return False
        if self._away_because:
            log.info("control is back")
            self._away_because = ""
        return True

    async def _fetch(self) -> bytes:
        address = self._address
        request = (
            f"GET {address.prefix} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
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
            beside.write_bytes(data)
            beside.replace(self._state_file)
        except OSError as error:
            log.warning("the routes could not be written to %s: %s", self._state_file, error)

    def _note_away(self, why: str) -> None:
        if why != self._away_because:
            log.warning("control does not give routes (%s): going on with what is known", why)
            self._away_because = why
