"""What the API works on, and who may call it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request

from caudal.domain.errors import Unauthorized, UsageError
from caudal.ports import Clock, Driver, Models, Store

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

MAX_BODY_BYTES = 4 << 20
"""A spec, a report or a list of points is far smaller."""


def _stay() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that the composition root hands to the API. `poke` asks the loop for a pass now, `leave` the process
    to leave with what runs left running."""

    store: Store
    models: Models
    drivers: Mapping[str, Driver]
    clock: Clock
    token: str
    version: str
    poke: Callable[[], None]
    hosts: frozenset[str] = LOOPBACK
    leave: Callable[[], None] = _stay


def context(request: Request) -> Context:
    """The application's context, for FastAPI's Depends."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


def guard_body(request: Request) -> None:
    """Refuse a body that says it is over the limit, or does not say how long it is."""
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        raise UsageError(f"a body needs a Content-Length of at most {MAX_BODY_BYTES} bytes")


def guard_token(request: Request) -> None:
    """Changing anything takes the token of this state directory; reading, on loopback, does not."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    token = context(request).token
    if not token or not hmac.compare_digest(given.encode(), token.encode()):
        raise Unauthorized(
            "this call needs the token of the state directory",
            remedy="send `Authorization: Bearer TOKEN` with the text of $CAUDAL_HOME/secrets/token",
        )
