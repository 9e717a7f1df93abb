"""Wrong keys by the address they come from: how long an address that guesses has to wait. Pure; knows no keys.

A key has 256 random bits: nobody guesses one. The limit keeps those who try from taking time and filling logs.
"""

from __future__ import annotations

import ipaddress

WINDOW_S = 60.0
MAX_ADDRESSES = 10_000


class Guesses:
    """Counts in windows of a minute that begin with an address's first wrong key. Of IPv6 addresses the first
    64 bits count: one machine has all of the rest."""

    def __init__(self, most: int = 20) -> None:
        self.most = most
        self._wrong: dict[str, tuple[float, int]] = {}  # where: (since when, how many)

    def wait_s(self, address: str, now: float) -> float:
        """How long until a key from there is looked at again; 0: now. `now` is in seconds."""
        since, count = self._wrong.get(_network(address), (now, 0))
        left_s = since + WINDOW_S - now
        return left_s if count >= self.most and 0 < left_s <= WINDOW_S else 0.0

    def wrong(self, address: str, now: float) -> bool:
        """Count a wrong key; True where it is the one from which on the address has to wait."""
        where = _network(address)
        since, count = self._wrong.pop(where, (now, 0))
        if not 0 <= now - since < WINDOW_S:  # over; or the clock was set back
            since, count = now, 0
        while len(self._wrong) >= MAX_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]  # the one that was quiet for longest
        self._wrong[where] = (since, count + 1)
        return count + 1 == self.most


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or found.exploded[:19])
