"""Safety: something bad never happens. Looked at after every event that changed something.

Each checker is a function of the facts that returns what is wrong, or nothing. Which of them is cheap enough
to run always, and which needs a bound of calm time, is said where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from caudal.domain.decision import Intent, ReleaseNode, StopGang
from caudal.domain.fleet import LeaseState, Resources
from caudal.domain.gang import Gang
from caudal.ports import Change
from caudal.simulate.facts import Facts

NOTICE_S = 60.0
"""How long, in calm virtual seconds, the books may disagree with the world: contact and quarantine times,
back-off and a few passes."""


class Violation(Exception):
    """A checker found something wrong: which one, when (virtual seconds since the start), and what."""

    def __init__(self, checker: str, at_s: float, text: str) -> None:
        super().__init__(f"{checker} at {at_s:.3f} s: {text}")
        self.checker = checker
        self.at_s = at_s
        self.text = text


Check = Callable[[Facts], str]
"""Looks at the facts; the empty string: nothing is wrong."""


def nothing_started_twice(facts: Facts) -> str:
    """A slot is held by one live gang, unless the older one is fenced or cannot be reached."""
    by_slot: dict[str, Gang] = {}
    for gang, _ in sorted(facts.alive(), key=lambda pair: -pair[0].incarnation):
        newer = by_slot.setdefault(gang.slot, gang)
        if newer is not gang and not facts.fenced(gang) and not facts.drivers[gang.site].silent:
            return f"{newer.id} lives beside {gang.id}, which is neither fenced nor out of reach"
    return ""


def no_node_held_twice(facts: Facts) -> str:
    """No two live leases hold one node or one machine."""
    nodes: dict[str, str] = {}
    machines: dict[str, str] = {}
    for lease in facts.leases():
        if nodes.setdefault(lease.node, lease.id) != lease.id:
            return f"node {lease.node} is held by {nodes[lease.node]} and {lease.id}"
        if lease.machine_id and machines.setdefault(lease.machine_id, lease.id) != lease.id:
            return f"machine {lease.machine_id} is held by {machines[lease.machine_id]} and {lease.id}"
    tags = [machine.lease_id for machine in facts.machines().values() if machine.lease_id]
    twice = sorted({tag for tag in tags if tags.count(tag) > 1})
    return f"two machines exist for lease {twice[0]}" if twice else ""


def nothing_overcommitted(facts: Facts) -> str:
    """What truly lives on a node never needs more than the node has."""
    used: dict[str, Resources] = {}
    for gang, process in facts.alive():
        used[gang.lease_id] = used.get(gang.lease_id, Resources()).plus(process.spec.resources)
    for lease_id in sorted(used):
        lease = facts.watch.leases[lease_id]
        if not used[lease_id].fits(lease.machine_type.resources):
            return f"node {lease.node} has {lease.machine_type.resources}, its gangs take {used[lease_id]}"
    return ""


def strangers_untouched(facts: Facts) -> str:
    """A machine without our tag is not ours, and is never given back."""
    for name in sorted(facts.providers):
        provider = facts.providers[name]
        touched = [m for m in provider.existing() if not m.lease_id and m.id in provider.released_by_us]
        if touched:
            return f"machine {touched[0].id} carries no tag of ours and was released"
    return ""


def every_effect_was_intended(facts: Facts) -> str:
    """Nothing is started or stopped that was not written down before."""
    written = facts.watch.stops
    for gang, process in facts.alive():
        if process.stop_asked_at is not None and gang.id not in written:
            return f"{gang.id} was stopped and no intent says so"
    return ""


def leases_have_machines(facts: Facts) -> str:
    """After `NOTICE_S` of calm, a live lease has its machine."""
    if facts.calm_s() < NOTICE_S:
        return ""
    machines, now = facts.machines(), facts.kernel.now()
    tags = {machine.lease_id for machine in machines.values()}
    for lease in facts.leases():
        held = lease.machine_id in machines if lease.machine_id else lease.id in tags
        if not held and now - lease.requested_at > NOTICE_S and not _just_released(facts, lease.id):
            return f"lease {lease.id} is {lease.state.value} and has no machine"
    return ""


def machines_have_leases(facts: Facts) -> str:
    """After `NOTICE_S` of calm, no machine with our tag is without a live lease, or one that is being given back since
    a moment ago: it would bill for ever."""
    if facts.calm_s() < NOTICE_S:
        return ""
    live = {lease.id for lease in facts.leases() if lease.state is not LeaseState.RELEASING}
    for machine in facts.machines().values():
        if machine.lease_id and machine.lease_id not in live and not _just_released(facts, machine.lease_id):
            return f"machine {machine.id} bills for lease {machine.lease_id}, which is not live"
    return ""


def _just_released(facts: Facts, lease_id: str) -> bool:
    """Whether it was decided less than `NOTICE_S` ago to give a lease's node back: nothing runs there any more."""
    now = facts.kernel.now()
    return any(
        isinstance(i.action, ReleaseNode) and i.action.lease_id == lease_id and now - i.created_at < NOTICE_S
        for i in facts.watch.intents_seen.values()
    )


def books_agree(facts: Facts) -> str:
    """After `NOTICE_S` of calm, what lives is in the books, and what is in the books lives."""
    if facts.calm_s() < NOTICE_S:
        return ""
    now = facts.kernel.now()
    ended: dict[str, float] = {}
    for driver in facts.drivers.values():
        for process in driver.processes():
            row = facts.watch.gangs[process.spec.gang_id]
            if not process.alive:
                ended[row.id] = process.ended_at or now
            elif facts.superseded(row) and now - max(process.accepted_at, row.ended_at or 0.0) > NOTICE_S:
                return f"{row.id} is over in the books and lives on at {row.site}"
            else:
                ended[row.id] = now
    for row in facts.watch.gangs.values():
        if row.ended_at is None and now - ended.get(row.id, row.created_at) > NOTICE_S:
            return f"{row.id} runs in the books and does not exist"
    return ""


SAFETY: tuple[Check, ...] = (
    nothing_started_twice,
    no_node_held_twice,
    nothing_overcommitted,
    strangers_untouched,
    every_effect_was_intended,
    leases_have_machines,
    machines_have_leases,
    books_agree,
)
"""All that is looked at after every event that changed something, and every virtual second."""


@dataclass(slots=True)
class Commits:
    """Checks of what is about to be written, against the truth of that moment and against the rows before."""

    facts: Facts

    def check(self, change: Change, version: int) -> str:
        """What is wrong with a commit; the empty string: nothing."""
        return next((text for text in self._all(change, version) if text), "")

    def _all(self, change: Change, version: int) -> Iterator[str]:
        watch = self.facts.watch
        if version < watch.version:
            yield f"the version goes back from {watch.version} to {version}"
        for lease in change.leases:
            old = watch.leases.get(lease.id)
            if old is not None and (lease.epoch < old.epoch or (lease.live and not old.live)):
                yield f"lease {lease.id} goes back: {old.state.value} {old.epoch} to {lease.epoch}"
        for workload in change.workloads:
            known = watch.workloads.get(workload.name)
            if known is not None and workload.generation < known.generation:
                yield f"workload {workload.name} goes back to generation {workload.generation}"
        for gang in change.gangs:
            yield self._gang(gang)
        for intent in change.intents:
            if intent.id not in watch.intents_seen:
                yield self._intent(intent)

    def _gang(self, gang: Gang) -> str:
        rows = self.facts.watch.gangs
        old = rows.get(gang.id)
        if old is not None:
            revived = old.ended_at is not None and gang.ended_at is None
            return f"{gang.id} was over and is in the books again" if revived else ""
        newest = max((g.incarnation for g in rows.values() if g.slot == gang.slot), default=-1)
        if gang.incarnation <= newest:
            return f"slot {gang.slot} starts {gang.incarnation} after {newest}"
        return ""

    def _intent(self, intent: Intent) -> str:
        """Nothing healthy is stopped: neither by itself, nor with the machine under it."""
        action = intent.action
        if isinstance(action, StopGang):
            victims = [gang for gang, _ in self._healthy() if gang.id == action.gang_id]
        elif isinstance(action, ReleaseNode):
            victims = [gang for gang, _ in self._healthy() if gang.lease_id == action.lease_id]
        else:
            return ""
        if not victims:
            return ""
        return f"{victims[0].id} is healthy, wanted and in reach, and is stopped: {intent.reason.code}"

    def _healthy(self) -> Iterator[tuple[Gang, object]]:
        facts = self.facts
        for gang, process in facts.alive():
            reachable = not facts.drivers[gang.site].silent
            if reachable and facts.wanted(gang) and not facts.superseded(gang):
                yield gang, process
