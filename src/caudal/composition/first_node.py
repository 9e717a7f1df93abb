"""The driver of a site whose Ray cluster is begun by its first node: as long as there is no head, nothing runs there.

Knows where the head is from what nodes have said, which is in the store: the next control process knows the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caudal.control.nodes import jobs_url
from caudal.domain.errors import Unreachable
from caudal.domain.gang import GangSpec, GangStatus
from caudal.drivers.ray.driver import RayDriver
from caudal.drivers.ray.names import CUT_MARGIN_S, CUT_S
from caudal.ports import Clock, Store
from caudal.store.home import Home

GONE_S = CUT_S + 2 * CUT_MARGIN_S
"""So long after its head was lost a gang may still be running: its node cuts it off by itself until then."""


class FirstNodeDriver:
    """Implements `ports.Driver` for one site."""

    def __init__(self, site: str, store: Store, clock: Clock, place: Home) -> None:
        self.site = site
        self._store, self._clock = store, clock
        self._ray = RayDriver(site, self._url, token_file=ray_token_file(place, site))
        self._headless_since: float | None = None

    def close(self) -> None:
        """Close the connections; what runs goes on."""
        self._ray.close()

    def start(self, spec: GangSpec, token: str) -> None:
        """As RayDriver; Unreachable where the head is not there yet."""
        self._ray.start(spec, token)

    def stop(self, gang_id: str, grace_s: float) -> None:
        """As RayDriver; without a head there is nothing to stop."""
        if self._url():
            self._ray.stop(gang_id, grace_s)

    def gangs(self) -> Sequence[GangStatus]:
        """As RayDriver. Without a head none, once those of the one before must be over. Raises Unreachable."""
        if self._url():
            self._headless_since = None
            return self._ray.gangs()
        now = self._clock.now()
        if self._headless_since is None:
            self._headless_since = now
        booked = any(g.site == self.site and g.ended_at is None for g in self._store.read().gangs)
        if booked and now - self._headless_since < GONE_S:
            raise Unreachable("the site's head is gone", where=f"site {self.site}")
        return []

    def forget(self, gang_id: str) -> None:
        """As RayDriver; without a head there is nothing to forget."""
        if self._url():
            self._ray.forget(gang_id)

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """As RayDriver."""
        return self._ray.logs(gang_id, tail_bytes)

    def _url(self) -> str:
        return jobs_url(self._store.read(), self.site)


def ray_token_file(place: Home, site: str) -> Path:
    """Where the token of a site's own cluster lies."""
    return place.token_file.parent / f"ray-{site}"
