"""What the API works on, and who may call it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from caudal.control.tokens import gang_of
from caudal.domain.errors import Unauthorized, UsageError
from caudal.domain.snapshot import Snapshot
from caudal.policy.rules import Rules
from caudal.ports import Clock, Driver, Models, Store

GATEWAY_GANGS = "gateway."
OF_GANGS = re.compile(r"/api/v1/(gangs/[^/]+/report|routes)")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

MAX_BODY_BYTES = 4 << 20
"""A spec, a report or a list of points is far smaller."""


def _stay() -> None:
    return None


def _nothing_seen() -> Snapshot | None:
    return None


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that the composition root hands to the API. `poke` asks the loop for a pass now, `leave` the process
    to leave with what runs left running; `seen` is what the loop saw last."""

    store: Store
    models: Models
    drivers: Mapping[str, Driver]
    clock: Clock
    token: str
    version: str
    poke: Callable[[], None]
    hosts: frozenset[str] = LOOPBACK
    public: bool = False  # it listens on more than loopback: then reading takes a token, too
    leave: Callable[[], None] = _stay
    seen: Callable[[], Snapshot | None] = _nothing_seen  # the loop's last look; None before its first
    rules: Rules = field(default_factory=Rules)


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


def _given(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def guard_gang(request: Request) -> None:
    """A gang may speak for itself with a token of its own: for its report, and a gateway for what gateways ask."""
    gang = gang_of(context(request).token, _given(request))
    named = request.path_params.get("gang_id")
    if gang and (gang == named if named is not None else gang.startswith(GATEWAY_GANGS)):
        return
    guard_token(request)


def guard_reading(request: Request) -> None:
    """Reading takes a token where others than this machine could call; what gangs call has a guard of its own."""
    if context(request).public and not OF_GANGS.fullmatch(request.url.path):
        guard_token(request)


def guard_token(request: Request) -> None:
    """Changing anything takes the token of this state directory; reading, on loopback, does not."""
    token = context(request).token
    if not token or not hmac.compare_digest(_given(request).encode(), token.encode()):
        raise Unauthorized(
            "this call needs the token of the state directory",
            remedy="send `Authorization: Bearer TOKEN` with the text of $CAUDAL_HOME/secrets/token",
        )
