"""A gateway in the test's own event loop, with a small stand-in for the control API's routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from caudal.gateway.limits import Limits
from caudal.gateway.process import Gateway, GatewayConfig
from caudal.gateway.routes import decode_routes
from caudal.gateway.upstream import UpstreamLimits
from tests.support.mock_replica import MockReplica

NOWHERE = "http://127.0.0.1:9/routes"


def table(models: dict[str, list[MockReplica | str]], version: int = 1) -> bytes:
    """The routes answer: model id → replicas (at site north, those given as `site@url` elsewhere)."""
    return json.dumps(
        {
            "version": version,
            "models": [
                {
                    "id": m,
                    "version": 1,
                    "context": 2048,
                    "replicas": [_row(m, i, r) for i, r in enumerate(rs)],
                }
                for m, rs in models.items()
            ],
        }
    ).encode()


def _row(model: str, index: int, replica: MockReplica | str) -> dict[str, str]:
    if isinstance(replica, str):
        site, _, url = replica.rpartition("@")
        return {"gang": f"{model}-{index}", "url": url, "site": site or "north"}
    return {"gang": f"{model}-{index}", "url": replica.url, "site": "north"}


@asynccontextmanager
async def gateway(
    tmp_path: Path,
    models: dict[str, list[MockReplica | str]] | None = None,
    *,
    routes_url: str = NOWHERE,
    limits: Limits | None = None,
    upstream: UpstreamLimits | None = None,
    wait_s: float = 0.2,
    more: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Gateway]:
    """A gateway that listens; control is away unless `routes_url` says otherwise. `more` of its configuration."""
    where = (host, 0, routes_url, str(tmp_path / "routes.json"), "north", "gateway-1")
    config = GatewayConfig(*where, **(more or {}))
    one = Gateway(config, limits=limits, upstream_limits=upstream, wait_s=wait_s)
    await one.start()
    if models is not None:
        one.router.update(decode_routes(table(models)))
    try:
        yield one
    finally:
        await one.stop(grace_s=0.0)


async def raw(one: Gateway, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes on a new connection and return everything until the gateway closes it."""
    reader, writer = await connect(one)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), timeout_s)
    finally:
        writer.close()


async def connect(one: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A plain connection to it."""
    host, port = one.url.removeprefix("http://").removesuffix("/v1").split(":")
    return await asyncio.open_connection(host, int(port))


def post(body: Any, path: str = "/v1/chat/completions", *, close: bool = True, headers: str = "") -> bytes:
    """A whole request with a JSON body (bytes are sent as they are)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = "connection: close\r\n" if close else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{connection}{headers}"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def parsed(answer: bytes) -> tuple[int, Any]:
    """Status and JSON of a whole answer with a length."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def chat(**more: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
