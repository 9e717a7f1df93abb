"""Which replicas serve which model: asked of the control API, remembered for when it is away.

Knows nothing of loads or failures of replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from caudal.gateway.polling import Poller
from caudal.gateway.upstream import UpstreamPool, parse_address

POLL_S = 0.5
MAX_MODELS = 1000
MAX_REPLICAS = 1000


class ReplicaRoute(msgspec.Struct, frozen=True):
    """A replica that is ready. `model` is the name under which the engine knows the model, where it is not
    the public one."""

    gang: str
    url: str
    site: str = ""
    model: str = ""


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
            parse_address(replica.url)
    return table


class RoutePoller(Poller[RouteTable]):
    """Asks for the table twice a second, hands on every one that differs, keeps the last in a file."""

    def __init__(
        self,
        routes_url: str,
        token_file: str,
        state_file: Path,
        pool: UpstreamPool,
        changed: Callable[[RouteTable], None],
    ) -> None:
        super().__init__("routes", routes_url, token_file, state_file, pool, decode_routes, changed, POLL_S)
