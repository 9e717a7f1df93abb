"""Tidies up behind gangs that are over: once the books say so, their drivers may forget them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from caudal.domain.errors import CaudalError
from caudal.domain.snapshot import Snapshot, State
from caudal.ports import World


def sweep(world: World, state: State, snapshot: Snapshot, still_leads: Callable[[], None]) -> Iterator[str]:
    """Forget the gangs that a driver lists as over and the books do not hold as alive. Yields before and
    after every call. What is not forgotten now is forgotten later."""
    alive = {g.id for g in state.gangs if g.ended_at is None}
    for status in sorted(snapshot.gangs, key=lambda s: (s.site, s.gang_id)):
        driver = world.drivers.get(status.site)
        if status.alive or status.gang_id in alive or driver is None:
            continue
        yield f"forgetting {status.gang_id}"
        still_leads()
        try:
            driver.forget(status.gang_id)
        except CaudalError:
            continue  # it is listed again at the next look
        yield f"forgot {status.gang_id}"
