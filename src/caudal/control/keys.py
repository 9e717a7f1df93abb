"""Keys of the front door: made, limited, revoked; what gateways are told of them.

A secret passes through `create` as its sha256 only. Knows nothing of requests or of what a limit means there.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from caudal.control.apply import retried
from caudal.domain.errors import Impossible, NotFound, UsageError
from caudal.domain.event import Event
from caudal.domain.key import ANONYMOUS, PICO, SECRET_PREFIX, ApiKey, KeyLimits, Usage
from caudal.ports import Change, Store
from caudal.spec.limits import NAME_PATTERN, NAME_WORDS

MAX_KEYS = 10_000
"""Keys that are valid at once: gateways hold all of them, and ask for all of them."""

MAX_MODELS = 1_000
MAX_COUNT = 10**15
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """What a gateway knows of a key: enough to recognise it, and what it may ask for. `spent_tokens`: what it
    used this month (UTC), prompts and replies; `spent_usd`: what that cost. Both 0 where it has no budget."""

    id: str
    name: str
    sha256: str
    limits: KeyLimits
    expires_at: float
    spent_tokens: int = 0
    spent_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What a key used in a month: tokens of prompts and replies, and US dollars at external addresses."""

    tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class GatewayKeys:
    """The keys that open the front door now."""

    keys: list[GatewayKey]


def create(
    store: Store, name: str, secret: str, key_id: str, limits: KeyLimits, expires_at: float, now: float
) -> ApiKey:
    """Make a key of this secret, which the caller made at random and shows to the user once. Raises UsageError
    where a value is not one, Impossible where the name is taken or there are too many keys."""
    assert secret.startswith(SECRET_PREFIX)
    _check_name(name)
    _check_limits(limits)
    if expires_at and not now < expires_at < math.inf:
        raise UsageError(
            f"key {name} would have expired already", remedy="give a time that is still to come, or none"
        )
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = ApiKey(key_id, name, digest, now, limits, expires_at)

    def attempt() -> ApiKey:
        version = store.read().version
        valid = [k for k in store.api_keys() if not k.revoked_at]
        if any(k.name == name for k in valid):
            raise Impossible(
                f"there is a key called {name!r} already",
                remedy=f"take another name, or revoke that one: caudal keys revoke {name}",
            )
        if len(valid) >= MAX_KEYS:
            raise Impossible(f"there are {MAX_KEYS} keys already", remedy="revoke those that nobody uses")
        _commit(store, key, version, "key.created", f"key {name} was made", now)
        return key

    return retried(attempt)


def revoke(store: Store, which: str, now: float) -> ApiKey:
    """Have the key refused from now on, for good; revoking it again changes nothing. Raises NotFound."""
    text = "key {} was revoked"
    return _change(store, which, now, lambda key: replace(key, revoked_at=now), "key.revoked", text)


def limit(store: Store, which: str, changes: Mapping[str, Any], now: float) -> ApiKey:
    """Change some of the key's limits, by the names of KeyLimits' fields. Raises NotFound, UsageError;
    Impossible where it is revoked."""

    def change(key: ApiKey) -> ApiKey:
        if key.revoked_at:
            raise Impossible(f"key {key.name} is revoked", remedy="make a new one: caudal keys create")
        limits = replace(key.limits, **changes)
        _check_limits(limits)
        return replace(key, limits=limits)

    return _change(store, which, now, change, "key.limited", "key {} has other limits")


def find(keys: Iterable[ApiKey], which: str) -> ApiKey:
    """The key of that id or name; of several with one name the valid one, else the newest. Raises NotFound."""
    found = [key for key in keys if which in (key.id, key.name)]
    if not found:
        raise NotFound(f"no key is called {which!r}", remedy="caudal keys list --all lists them")
    return max(found, key=lambda key: (key.id == which, not key.revoked_at, key.created_at))


def spent_this_month(store: Store, keys: Iterable[ApiKey], now: float) -> dict[str, Spent]:
    """What each key with a budget used in this calendar month (UTC), by the key's id."""
    begin = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    spent: dict[str, Spent] = {}
    for key in keys:
        if (key.limits.budget_tokens or key.limits.budget_usd) and not key.revoked_at:
            hours = store.usage(since=begin.timestamp(), key_id=key.id)
            used = sum((h.usage for h in hours), Usage())
            spent[key.id] = Spent(used.prompt_tokens + used.completion_tokens, used.picodollars / PICO)
    return spent


def for_gateways(
    keys: Iterable[ApiKey], now: float, spent: Mapping[str, Spent] = MappingProxyType({})
) -> GatewayKeys:
    """Those that open the door at this time or later."""
    valid = (k for k in keys if not k.revoked_at and (not k.expires_at or now < k.expires_at))
    rows = []
    for k in valid:
        used = spent.get(k.id, Spent())
        rows.append(GatewayKey(k.id, k.name, k.sha256, k.limits, k.expires_at, used.tokens, used.usd))
    return GatewayKeys(rows)


def _change(
    store: Store, which: str, now: float, change: Callable[[ApiKey], ApiKey], kind: str, text: str
) -> ApiKey:
    def attempt() -> ApiKey:
        version = store.read().version
        before = find(store.api_keys(), which)
        if kind == "key.revoked" and before.revoked_at:
            return before
        after = change(before)
        if after != before:
            _commit(store, after, version, kind, text.format(before.name), now)
        return after

    return retried(attempt)


def _commit(store: Store, key: ApiKey, version: int, kind: str, text: str, now: float) -> None:
    event = Event(now, kind, key.name, text, {"id": key.id})
    store.commit(Change(keys=[key], events=[event]), expect_version=version)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} cannot name a key", why=f"it is not {NAME_WORDS}")
    if name == ANONYMOUS:
        raise UsageError(f"no key can be called {name!r}", why="requests without a key are counted under it")


def _check_limits(limits: KeyLimits) -> None:
    for field in fields(limits):
        value = getattr(limits, field.name)
        if isinstance(value, int | float) and not 0 <= value <= MAX_COUNT:
            raise UsageError(f"{field.name}: expected a number from 0 to {MAX_COUNT}, found {value}")
    if limits.weight <= 0:
        raise UsageError(f"weight: expected a number above 0, found {limits.weight}")
    if len(limits.models) > MAX_MODELS or any(not 0 < len(m) <= 256 for m in limits.models):
        raise UsageError(f"models: expected at most {MAX_MODELS} ids of at most 256 characters")
