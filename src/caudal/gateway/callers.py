"""Who asks: the key of a request, found in the table that control gives out; those who guess are slowed down.

Keys are known here by their sha256 alone. Knows nothing of what a limit means, or of usage.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from caudal.domain.key import ANONYMOUS, SECRET_PREFIX, KeyLimits
from caudal.gateway.guesses import Guesses
from caudal.gateway.openai_errors import key_expired, key_missing, key_wrong, keys_unknown, too_many_keys
from caudal.gateway.polling import Poller
from caudal.gateway.upstream_pool import UpstreamPool

log = logging.getLogger("caudal.gateway")

POLL_S = 1.0
MAX_KEYS = 20_000
MAX_CACHED = 20_000
MAX_HEADER_BYTES = 512
PREFIX = SECRET_PREFIX.encode()
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is served as. Without a key that is NOBODY, whose id is `anonymous`."""

    id: str
    name: str
    limits: KeyLimits
    expires_at: float = NEVER
    spent_tokens: int = 0  # this month, where it has a budget
    spent_usd: float = 0.0

    def may_use(self, model: str) -> bool:
        """Whether the model exists for this caller."""
        return not self.limits.models or model in self.limits.models


NOBODY = Caller(ANONYMOUS, ANONYMOUS, KeyLimits())


class KeyRow(Struct, frozen=True):
    """A key as control gives it out. `expires_at` is in seconds since 1970; 0: never."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    limits: KeyLimits
    expires_at: float = 0.0
    spent_tokens: int = 0
    spent_usd: float = 0.0


class KeyTable(Struct, frozen=True):
    """All keys that open the door; those that were revoked are not in it."""

    keys: tuple[KeyRow, ...]


def decode_keys(data: bytes) -> KeyTable:
    """The table as it was sent, checked. Raises ValueError (msgspec's errors are such)."""
    table = msgspec.json.decode(data, type=KeyTable)
    if len(table.keys) > MAX_KEYS:
        raise ValueError("more keys than a gateway holds")
    return table


class Callers:
    """The keys that are valid now, and who presented wrong ones.

    With `required`, a request without a key is refused. What does not begin as our keys do is no key: clients
    must send something, and send `none`. `known` is False until there is a table: till then no key can be
    told from a wrong one.
    """

    def __init__(
        self,
        required: bool,
        known: bool = False,
        wall: Callable[[], float] = time.time,
        guesses: Guesses | None = None,
    ) -> None:
        self.required = required
        self.known = known
        self.wrong = 0
        self._wall = wall
        self._guesses = guesses or Guesses()
        self._by_digest: dict[bytes, tuple[bytes, Caller]] = {}
        self._seen: dict[bytes, tuple[bytes, Caller]] = {}  # by header: those that were right lately

    def update(self, table: KeyTable) -> None:
        """Take up a table: what is not in it any more is refused from here on."""
        found: dict[bytes, tuple[bytes, Caller]] = {}
        for row in table.keys:
            digest = bytes.fromhex(row.sha256)
            found[digest] = (
                digest,
                Caller(
                    row.id, row.name, row.limits, row.expires_at or NEVER, row.spent_tokens, row.spent_usd
                ),
            )
        self._by_digest = found
        self._seen = {header: found[d] for header, (d, _) in self._seen.items() if d in found}
        self.known = True

    def of(self, headers: dict[bytes, bytes], address: Callable[[], str]) -> Caller:
        """Who asks. Raises ApiError: 401 for a key that is missing, wrong or expired, 429 where wrong ones came
        from that address too often, 503 while no table is known."""
        header = headers.get(b"authorization") or headers.get(b"api-key") or b""
        seen = self._seen.get(header)
        if seen is not None:
            caller = seen[1]
            return caller if caller.expires_at == NEVER else self._unexpired(caller)
        secret = _secret(header)
        if secret is None:
            if self.required:
                raise key_missing()
            return NOBODY
        if not self.known:
            raise keys_unknown()
        return self._unexpired(self._recognised(header, secret, address()))

    def _recognised(self, header: bytes, secret: bytes, address: str) -> Caller:
        """A key that was not seen before. From an address that guesses none is looked at for a while; those
        that were right before go on to be served."""
        now = self._wall()
        wait_s = self._guesses.wait_s(address, now)
        if wait_s:
            raise too_many_keys(wait_s)
        digest = hashlib.sha256(secret).digest()
        kept = self._by_digest.get(digest)
        if kept is None or not hmac.compare_digest(kept[0], digest):
            self.wrong += 1
            if self._guesses.wrong(address, now):
                log.warning(
                    "%d wrong keys within a minute from %s: it is slowed down", self._guesses.most, address
                )
            raise key_wrong()
        if len(header) <= MAX_HEADER_BYTES:
            if len(self._seen) >= MAX_CACHED:
                self._seen.clear()
            self._seen[header] = kept
        return kept[1]

    def _unexpired(self, caller: Caller) -> Caller:
        if caller.expires_at <= self._wall():
            raise key_expired()
        return caller


def _secret(header: bytes) -> bytes | None:
    """The key in a header; None where there is none that could be ours."""
    scheme, _, rest = header.partition(b" ")
    secret = rest.strip() if scheme.lower() == b"bearer" else header
    return secret if secret.startswith(PREFIX) else None


def required_at(host: str, keys: str) -> bool:
    """Whether a gateway that listens on that host asks everybody for a key: always, where others than this
    machine can reach it."""
    if keys == "required" or not others_reach(host):
        return keys == "required"
    log.warning("the gateway listens on %s, which others can reach: keys are required there", host)
    return True


def key_poller(
    url: str, token_file: str, state_file: str, pool: UpstreamPool, callers: Callers
) -> Poller[KeyTable] | None:
    """What keeps the callers' table as control has it; None without an address to ask."""
    if not url:
        return None
    return Poller("keys", url, token_file, Path(state_file), pool, decode_keys, callers.update, POLL_S)


def others_reach(host: str) -> bool:
    """Whether who listens on that host can be reached from other machines."""
    try:
        return not (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return True
