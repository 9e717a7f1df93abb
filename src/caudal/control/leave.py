"""Leaving: every gang is asked to end, waited for, and written down as over, so that nothing leaks.

Runs after the loop has stopped and before the leadership is given back. What users want is not touched:
the next control process starts it all again.
"""

from __future__ import annotations

import dataclasses

from caudal.domain.errors import Unreachable
from caudal.domain.event import Event
from caudal.domain.gang import GangStatus
from caudal.ports import Change, World

GRACE_S = 20.0
POLL_S = 0.1

LEFT = "left"
"""The `end_reason` of gangs that ended because the control process left: not a failure."""


def leave(world: World, grace_s: float = GRACE_S) -> list[str]:
    """Stop all gangs of all sites; returns the ids of those that are still there after the grace."""
    mine = {gang.id for gang in world.store.read().gangs if gang.ended_at is None}
    alive = [status for status in _statuses(world) if status.alive]
    for status in alive:
        world.drivers[status.site].stop(status.gang_id, grace_s)
    deadline = world.clock.now() + grace_s + 5.0
    while alive and world.clock.now() < deadline:
        world.clock.sleep(POLL_S)
        alive = [status for status in _statuses(world) if status.alive]
    left = {status.gang_id for status in alive}
    over = {status.gang_id: status for status in _statuses(world) if not status.alive}
    _write_down(world, mine - left, over)
    return sorted(left)


def _statuses(world: World) -> list[GangStatus]:
    found: list[GangStatus] = []
    for site in sorted(world.drivers):
        try:
            found.extend(world.drivers[site].gangs())
        except Unreachable:
            continue  # nothing is known of that site: it is left as it is
    return found


def _write_down(world: World, ended: set[str], over: dict[str, GangStatus]) -> None:
    now = world.clock.now()
    gangs = [
        dataclasses.replace(
            gang, ended_at=now, end_reason=LEFT, exit_code=over[gang.id].exit_code, stopping=False
        )
        for gang in world.store.read().gangs
        if gang.id in ended and gang.id in over and gang.ended_at is None
    ]
    if gangs:
        event = Event(now, "control.left", "control", f"{len(gangs)} gangs were stopped on leaving")
        world.store.commit(Change(gangs=gangs, events=[event]))
    for gang_id in ended & set(over):
        world.drivers[over[gang_id].site].forget(gang_id)
