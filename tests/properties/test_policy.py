"""Properties of `decide`, over random worlds that live through random histories of faults and wishes.

Safety: a slot is never held twice, no node holds more than it has, nothing healthy is stopped that nobody
asked to stop. Also: the same snapshot gives the same decision, every choice has a reason, and whatever should
run and does not says what it waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.decision import Decision, StartGang, StopGang
from caudal.domain.fleet import LeaseState, Resources
from caudal.domain.gang import Gang, GangState, GangStatus, Report, Role
from caudal.domain.snapshot import Snapshot
from caudal.domain.workload import ScaleSpec, ServedModel, ServiceSpec, TrainSpec
from caudal.policy import decide
from tests.unit.policy_world import RULES, Play, lease, machine_type, model, service, train

SITES = ("north", "south", "west")


@st.composite
def worlds(draw: st.DrawFn) -> Play:
    """Sites, nodes, runs and services; some fit and some do not."""
    sites = SITES[: draw(st.integers(1, 3))]
    size = st.sampled_from([0.1, 0.3, 0.5, 0.9, 3.0]).map(lambda c: Resources(c, 1 << 28))
    specs: list[TrainSpec | ServiceSpec] = [
        train(f"run{i}", draw(st.integers(1, 3)), resources=draw(size))
        for i in range(draw(st.integers(0, 2)))
    ]
    if draw(st.booleans()):
        served = [
            ServedModel(
                f"m{i}",
                source="x",
                replicas=draw(st.integers(1, 3)),
                scale=draw(st.sampled_from([ScaleSpec(), ScaleSpec(0, 2), ScaleSpec(2, 3, prewarmed=1)])),
                resources=draw(size),
            )
            for i in range(draw(st.integers(1, 2)))
        ]
        specs.append(service("chat", *served))
    play = Play(*specs, sites=sites)
    play.leases, play.machines = {}, {}
    for site in sites:
        for number in range(draw(st.integers(0, 2))):
            kind = machine_type(draw(st.sampled_from([0.5, 1.0, 2.0])))
            play.add_node(lease(site, number + 1, machine_type=kind))
    play.models = {m: model(m) for m in ("m0", "m1") if draw(st.booleans())}
    return play


def site_of(play: Play, pick: int) -> str:
    return play.sites[pick % len(play.sites)]


def silence(play: Play, pick: int) -> None:
    play.silent.setdefault(site_of(play, pick), play.now)


def heal(play: Play, pick: int) -> None:
    play.silent.pop(site_of(play, pick), None)


def crash(play: Play, pick: int) -> None:
    alive = sorted(p.gang_id for p in play.processes.values() if p.alive)
    if alive:
        status = play.processes[alive[pick % len(alive)]]
        code = [0, 1, -9, None][pick % 4]
        state = GangState.LOST if code is None else GangState.EXITED
        play.processes[status.gang_id] = replace(status, state=state, exit_code=code, ended_at=play.now)


def lose_machine(play: Play, pick: int) -> None:
    if play.machines:
        machine = play.machines.pop(sorted(play.machines)[pick % len(play.machines)])
        for gang in play.gangs.values():
            if gang.lease_id == machine.lease_id and gang.id in play.processes:
                status = play.processes[gang.id]
                play.processes[gang.id] = replace(status, state=GangState.LOST, ended_at=play.now)


def wish(play: Play, pick: int) -> None:
    if play.workloads:
        name = sorted(play.workloads)[pick % len(play.workloads)]
        row = play.workloads[name]
        change = {"wanted": not row.wanted} if pick % 2 else {"generation": row.generation + 1}
        play.workloads[name] = replace(row, **change)  # type: ignore[arg-type]


def publish(play: Play, pick: int) -> None:
    name = f"m{pick % 2}"
    version = play.models[name].version + 1 if name in play.models else 1
    play.models[name] = model(name, version)


def ready(play: Play, pick: int) -> None:
    for gang in play.live():
        if gang.role is Role.REPLICA and (pick + gang.incarnation) % 3:
            play.reports[gang.id] = Report(gang.id, play.now, {"ready": True})


def stuck(play: Play, pick: int) -> None:
    play.stuck_stops = bool(pick % 2)


def stranger(play: Play, pick: int) -> None:
    gang_id = f"stranger-{pick % 3}"
    play.processes.setdefault(gang_id, GangStatus(gang_id, GangState.RUNNING, site_of(play, pick)))


EVENTS: list[Callable[[Play, int], None]] = [
    silence,
    heal,
    crash,
    lose_machine,
    wish,
    publish,
    ready,
    stuck,
    stranger,
]

HISTORIES = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 11), st.sampled_from([0.0, 0.5, 2.0, 7.0, 40.0])),
    max_size=14,
)


def held(play: Play) -> list[Gang]:
    """What truly lives and is not given up in the books, with what the books hold beside it."""
    return play.live()


def check_no_slot_twice(play: Play) -> None:
    slots = Counter(g.slot for g in held(play))
    assert not [s for s, n in slots.items() if n > 1]


def check_no_node_overcommitted(play: Play) -> None:
    for row in play.leases.values():
        used = Resources()
        for gang in play.gangs.values():
            process = play.processes.get(gang.id)
            lives = gang.ended_at is None or (process is not None and process.alive)
            if gang.lease_id == row.id and lives and row.live:
                used = used.plus(gang.resources)
        assert used.fits(row.machine_type.resources), f"{row.node} is overcommitted: {used}"


def stop_was_asked_for(snapshot: Snapshot, gang: Gang) -> bool:
    """Whether anybody gave a reason to stop a gang that lives: the user, a newer spec or model, or fencing."""
    workload = next((w for w in snapshot.state.workloads if w.name == gang.workload), None)
    newest = {m.id: m.version for m in snapshot.models}
    if gang.ended_at is not None:
        return True  # given up: it is fenced
    if gang.role is Role.GATEWAY:
        return not any(w.wanted and isinstance(w.spec, ServiceSpec) for w in snapshot.state.workloads)
    return (
        workload is None
        or not workload.wanted
        or workload.over
        or gang.generation != workload.generation
        or (gang.role is Role.REPLICA and newest.get(gang.model, gang.model_version) > gang.model_version)
    )


def check_stops(snapshot: Snapshot, decision: Decision) -> None:
    gangs = {g.id: g for g in snapshot.state.gangs}
    failing = {
        c.subject
        for c in decision.choices
        if c.action.kind == "set_workload_state" and c.action.state == "failed"
    }
    for choice in decision.choices:
        if isinstance(choice.action, StopGang) and choice.action.gang_id in gangs:
            gang = gangs[choice.action.gang_id]
            assert stop_was_asked_for(snapshot, gang) or gang.workload in failing, choice
            assert gang.site not in snapshot.silent_drivers or gang.ended_at is None


def check_everything_is_said(play: Play, snapshot: Snapshot, decision: Decision) -> None:
    assert all(c.reason.code and c.reason.text for c in decision.choices)
    assert all(w.reason.code and w.reason.text for w in decision.waiting)
    assert all(r.reason.code and r.reason.text for c in decision.choices for r in c.rejected)
    spoken = {w.subject for w in decision.waiting}
    spoken |= {g.slot for g in snapshot.state.gangs if g.ended_at is None}
    spoken |= {c.action.gang.slot for c in decision.choices if isinstance(c.action, StartGang)}
    over = {c.subject for c in decision.choices if c.action.kind == "set_workload_state"}
    for row in snapshot.state.workloads:
        if isinstance(row.spec, TrainSpec) and row.wanted and not row.over and row.name not in over:
            assert f"{row.name}.coordinator" in spoken
            for slot in (f"{row.name}.worker.{i}" for i in range(row.spec.sites)):
                assert slot in spoken or left_well(snapshot, slot), f"nothing is said of {slot}"


def left_well(snapshot: Snapshot, slot: str) -> bool:
    """Whether the last worker of a slot left by itself with its work done, or is seen to have just now."""
    last = max((g for g in snapshot.state.gangs if g.slot == slot), key=lambda g: g.incarnation, default=None)
    return last is not None and last.exit_code == 0


def check(play: Play) -> None:
    snapshot = play.snapshot()
    first = decide(snapshot, play.now, RULES)
    assert first == decide(_shuffled(snapshot), play.now, RULES), "the order of rows decides nothing"
    check_stops(snapshot, first)
    check_everything_is_said(play, snapshot, first)
    assert play.step() == first
    check_no_slot_twice(play)
    check_no_node_overcommitted(play)


def _shuffled(snapshot: Snapshot) -> Snapshot:
    state = snapshot.state
    return replace(
        snapshot,
        state=replace(
            state,
            workloads=state.workloads[::-1],
            gangs=state.gangs[::-1],
            leases=state.leases[::-1],
            intents=state.intents[::-1],
        ),
        gangs=snapshot.gangs[::-1],
        machines=snapshot.machines[::-1],
        models=snapshot.models[::-1],
    )


@settings(max_examples=150, deadline=None)
@given(worlds(), HISTORIES)
def test_decisions_are_safe_whatever_happens(play: Play, history: list[tuple]) -> None:  # type: ignore[type-arg]
    check(play)
    for event, pick, after_s in history:
        event(play, pick)
        play.now += after_s
        check(play)


@settings(max_examples=60, deadline=None)
@given(worlds(), HISTORIES)
def test_in_calm_everything_comes_to_rest(play: Play, history: list[tuple]) -> None:  # type: ignore[type-arg]
    for event, pick, after_s in history:
        event(play, pick)
        play.step(after_s)
    play.silent.clear()
    play.stuck_stops = False
    for _ in range(40):
        play.step(10.0)
        ready(play, 1)
        ready(play, 2)
    assert all(x.state in (LeaseState.ACTIVE, LeaseState.ENDED) for x in play.leases.values())
    last = play.step(1.0)
    assert [c for c in last.choices if isinstance(c.action, StartGang | StopGang)] == []
    alive = {p.gang_id for p in play.processes.values() if p.alive}
    assert alive == {g.id for g in play.live()}, "what runs and what the books hold are the same"
