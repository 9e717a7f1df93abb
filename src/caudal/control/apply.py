"""What users want: specs become workloads, and workloads are stopped. Changes wishes only; the loop acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from caudal.domain.errors import Impossible, LostLeadership, NotFound, Stale, UsageError
from caudal.domain.event import Event
from caudal.domain.fleet import FleetSpec
from caudal.domain.gang import Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServiceSpec, TrainSpec, Workload, WorkloadState
from caudal.ports import Change, Store

Spec = FleetSpec | TrainSpec | ServiceSpec

TRIES = 20
"""How often a wish is tried again when the loop has committed in between."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying one spec did. `change`: new, changed, started (it was stopped or had failed), unchanged."""

    kind: str
    name: str
    change: str
    generation: int


def apply(store: Store, specs: Sequence[Spec], now: float) -> list[Applied]:
    """Want all of these, or on any error none. Applying what is wanted already changes nothing.

    Raises UsageError where two specs have one name or a name changes its kind, Impossible where the fleet
    cannot be changed like this or a run cannot be placed on it, Stale where the state never stood still.
    """
    _distinct(specs)
    return retried(lambda: _apply_once(store, specs, now))


def stop(store: Store, name: str, now: float) -> bool:
    """Want a workload no longer; returns whether that was news. Raises NotFound, Stale."""
    return retried(lambda: _stop_once(store, name, now))


def retried(attempt: Callable[[], T]) -> T:
    """What the attempt returns, which reads, decides and commits: again where others committed in between.
    Raises Stale where they always did."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except LostLeadership:
            raise
        except Stale:
            continue  # the loop or another user was faster: look again
    return attempt()


def _apply_once(store: Store, specs: Sequence[Spec], now: float) -> list[Applied]:
    state = store.read()
    given = next((s for s in specs if isinstance(s, FleetSpec)), None)
    fleet = given or state.fleet
    known = {w.name: w for w in state.workloads}
    done: list[Applied] = []
    rows: list[Workload] = []
    if given is not None:
        done.append(_fleet(state, given))
    for spec in specs:
        if isinstance(spec, FleetSpec):
            continue
        _check_placeable(spec, fleet)
        row, applied = _workload(known.get(spec.name), spec, now)
        done.append(applied)
        rows += [row] if row is not None else []
    news = [a for a in done if a.change != "unchanged"]
    if news:
        new_fleet = given if given is not None and given != state.fleet else None
        change = Change(fleet=new_fleet, workloads=rows, events=[_event(a, now) for a in news])
        store.commit(change, expect_version=state.version)
    return done


def _workload(
    known: Workload | None, spec: TrainSpec | ServiceSpec, now: float
) -> tuple[Workload | None, Applied]:
    kind = "train" if isinstance(spec, TrainSpec) else "service"
    if known is None:
        reason = "not looked at yet"
        row = Workload(spec.name, spec, True, 1, WorkloadState.PENDING, reason, now, now)
        return row, Applied(kind, spec.name, "new", 1)
    if known.kind != kind:
        raise UsageError(
            f"{spec.name!r} is a {known.kind} already",
            why=f"a {kind} cannot take its name",
            remedy="give it another name",
        )
    changed = known.spec != spec
    again = not known.wanted or known.state is WorkloadState.FAILED
    if not changed and not again:
        return None, Applied(kind, spec.name, "unchanged", known.generation)
    finished = not changed and known.state is WorkloadState.FINISHED
    row = replace(
        known,
        spec=spec,
        wanted=True,
        generation=known.generation + int(changed),
        state=known.state if finished else WorkloadState.PENDING,
        reason=known.reason if finished else "not looked at yet",
        applied_at=now,
        changed_at=known.changed_at if finished else now,
    )
    return row, Applied(kind, spec.name, "changed" if changed else "started", row.generation)


def _fleet(state: State, given: FleetSpec) -> Applied:
    if state.fleet is None:
        return Applied("fleet", given.name, "new", 1)
    if state.fleet == given:
        return Applied("fleet", given.name, "unchanged", 1)
    if state.fleet.name != given.name:
        raise Impossible(
            f"this state directory holds fleet {state.fleet.name!r}, and {given.name!r} is another one",
            remedy="give the other fleet a state directory of its own (CAUDAL_HOME), or keep the name",
        )
    for site in given.sites:
        before = state.fleet.site(site.name)
        held = any(x.site == site.name and x.live for x in state.leases)
        if before is not None and before != site and held:
            raise Impossible(
                f"site {site.name} cannot change its provider, driver or region while nodes are held there",
                remedy="take the site out of the fleet, apply, and add it again when its nodes are released",
            )
    serving = any(g.role is Role.GATEWAY and g.ended_at is None for g in state.gangs)
    if serving and state.fleet.gateway != given.gateway:
        raise Impossible(
            "where the gateway listens, and whether it requires keys, cannot change while it runs",
            remedy="caudal stop the services, apply the fleet, and apply the services again",
        )
    return Applied("fleet", given.name, "changed", 1)


def _check_placeable(spec: TrainSpec | ServiceSpec, fleet: FleetSpec | None) -> None:
    if fleet is None or not isinstance(spec, TrainSpec):
        return
    names = [s.name for s in fleet.sites]
    unknown = [s for s in spec.at if s not in names]
    if unknown:
        raise Impossible(
            f"run {spec.name}: the fleet has no site {', '.join(unknown)}",
            why=f"its sites are {', '.join(names)}",
            remedy="correct `at`, or add the site to the fleet file",
        )
    here = len(spec.at) or len(names)
    if spec.sites > here:
        raise Impossible(
            f"run {spec.name} wants {spec.sites} sites, and may use {here}",
            why="each site holds at most one copy of a run's model",
            remedy=f"set `sites` to {here} at most, or add sites to the fleet file",
        )


def _distinct(specs: Sequence[Spec]) -> None:
    if sum(isinstance(s, FleetSpec) for s in specs) > 1:
        raise UsageError("two fleets are given", remedy="one state directory holds one fleet")
    names = [s.name for s in specs if not isinstance(s, FleetSpec)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UsageError(f"two specs are called {twice[0]!r}", remedy="give each workload a name of its own")


def _stop_once(store: Store, name: str, now: float) -> bool:
    state = store.read()
    found = next((w for w in state.workloads if w.name == name), None)
    if found is None:
        known = ", ".join(sorted(w.name for w in state.workloads)) or "none yet"
        raise NotFound(
            f"no workload is called {name!r}", why=f"known: {known}", remedy="caudal status lists them"
        )
    if not found.wanted:
        return False
    event = Event(now, "workload.stop_asked", name, f"{name} is not wanted any more")
    change = Change(workloads=[replace(found, wanted=False)], events=[event])
    store.commit(change, expect_version=state.version)
    return True


def _event(applied: Applied, now: float) -> Event:
    kind = "fleet.applied" if applied.kind == "fleet" else "workload.applied"
    data = {"kind": applied.kind, "change": applied.change, "generation": applied.generation}
    return Event(now, kind, applied.name, f"{applied.kind} {applied.name}: {applied.change}", data)
