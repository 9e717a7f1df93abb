"""Which replicas serve which model: asked of the control API, remembered for when it is away.

Knows nothing of loads or failures of replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec

from caudal.gateway.address import Address, parse_address
from caudal.gateway.polling import Poller
from caudal.gateway.upstream_pool import UpstreamPool

POLL_S = 0.5
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
    the public one; `engine` is what generates there, "" being llama.cpp. `slots`: how many requests it runs at once
    (0: not known). One that is `draining` gets nothing new. With `external` it is somebody else's address, `gang` is
    only its name, and `version` is 0."""

    gang: str
    url: str
    site: str = ""
    model: str = ""
    slots: int = 0
    version: int = 0
    draining: bool = False
    engine: str = ""
    external: ExternalRoute | None = None

    def address(self) -> Address:
        """Where it is. One of the fleet's that speaks TLS shows its site's certificate. Raises ValueError."""
        if self.external is not None:
            return parse_address(self.url, self.external.ca_file)
        address = parse_address(self.url)
        return replace(address, site=self.site) if address.tls and self.site else address


class VersionWeight(msgspec.Struct, frozen=True):
    """The share of a model's requests that one of its versions answers, while there are several."""

    version: int
    weight: Annotated[float, msgspec.Meta(ge=0, le=1)]


class ModelRoutes(msgspec.Struct, frozen=True):
    """A model that the fleet serves, and its replicas that are ready now (there may be none). One that is `asleep` has
    none because nobody asked: a request brings one."""

    id: str
    version: int = 0
    context: int = 0
    replicas: tuple[ReplicaRoute, ...] = ()
    weights: tuple[VersionWeight, ...] = ()
    asleep: bool = False

    @property
    def ready(self) -> int:
        """How many replicas take new requests."""
        return sum(not replica.draining for replica in self.replicas)


class OthersLoad(msgspec.Struct, frozen=True):
    """What other gateways together had in flight at a replica, by what they said `age_s` ago."""

    gang: str
    requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    age_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class RouteTable(msgspec.Struct, frozen=True):
    """What the control API answers."""

    version: int = 0
    models: tuple[ModelRoutes, ...] = ()
    others_in_flight: tuple[OthersLoad, ...] = ()


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


def _lasting(table: RouteTable) -> RouteTable:
    """What of a table is worth keeping: loads are of the moment."""
    return msgspec.structs.replace(table, version=0, others_in_flight=())


class RoutePoller(Poller[RouteTable]):
    """Asks for the table twice a second, hands on every one that differs, keeps the last in a file. `learn` is
    given what other gateways have in flight, with every answer."""

    def __init__(
        self,
        routes_url: str,
        token_file: str,
        state_file: Path,
        pool: UpstreamPool,
        changed: Callable[[RouteTable], None],
        learn: Callable[[tuple[OthersLoad, ...]], None] = lambda loads: None,
        gang: str = "",
    ) -> None:
        self._table: RouteTable | None = None
        self._table_changed = changed
        self._learn = learn
        query = f"?gateway={quote(gang)}" if gang else ""
        super().__init__(
            "routes", routes_url, token_file, state_file, pool, decode_routes, self._take, POLL_S, query
        )

    def _take(self, table: RouteTable) -> bool:
        """Hand it on; False where nothing but loads changed."""
        lasting = _lasting(table)
        news = lasting != self._table
        if news:
            self._table = lasting
            self._table_changed(lasting)
        self._learn(table.others_in_flight)
        return news
