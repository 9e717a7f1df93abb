"""What every ports.Store does, whichever database is behind it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caudal.domain.decision import IntentState
from caudal.domain.errors import LostLeadership, Stale, StateHeld, UsageError
from caudal.domain.event import Event, Point
from caudal.domain.fleet import FleetSpec, LeaseState, SiteSpec
from caudal.domain.gang import Report
from caudal.domain.workload import WorkloadState
from caudal.ports import Change
from caudal.store.database import Database
from caudal.store.history import Limits
from caudal.store.migrate import config
from caudal.store.state import SqlStore, open_store
from tests.support import rows

FLEET = FleetSpec("home", (SiteSpec("north"), SiteSpec("south")))


def test_an_empty_store_is_at_version_0(store: SqlStore) -> None:
    state = store.read()
    assert (state.version, state.fleet, state.gangs, state.reports) == (0, None, (), ())
    assert store.leader() is None
    assert (store.last_event_seq(), store.events(), store.points("starter")) == (0, [], [])


def test_what_is_committed_is_read(store: SqlStore) -> None:
    change = Change(
        fleet=FLEET,
        workloads=[rows.run(), rows.service()],
        leases=[rows.lease()],
        gangs=[rows.gang()],
        intents=[rows.intent()],
    )
    assert store.commit(change) == 1
    state = store.read()
    assert state.version == 1
    assert state.fleet == FLEET
    assert state.workloads == (rows.service(), rows.run())
    assert [type(w.spec).__name__ for w in state.workloads] == ["ServiceSpec", "TrainSpec"]
    assert state.leases == (rows.lease(),)
    assert str(state.leases[0].price_usd_per_hour) == "0.1000"
    assert state.gangs == (rows.gang(),)
    assert state.intents == (rows.intent(),)


def test_a_row_replaces_the_one_with_its_key(store: SqlStore) -> None:
    store.commit(Change(workloads=[rows.run()], gangs=[rows.gang()]))
    store.read()
    running = rows.run(state=WorkloadState.RUNNING)
    store.commit(Change(workloads=[rows.run(reason="not this"), running]))
    assert store.read().workloads == (running,)
    assert store.read().gangs == (rows.gang(),)


def test_it_is_still_there_after_opening_again(shared_url: str) -> None:
    first = open_store(shared_url)
    first.commit(Change(fleet=FLEET, workloads=[rows.run()]))
    epoch = first.lead(rows.holder(), 100.0, 5.0)
    first.close()
    second = open_store(shared_url)
    assert second.read().workloads == (rows.run(),)
    assert second.read().version == 1
    assert second.leader() == (rows.holder(), epoch, 105.0)
    second.close()


def test_a_commit_of_another_process_is_seen(shared_url: str) -> None:
    ours, theirs = open_store(shared_url), open_store(shared_url)
    assert ours.read().gangs == ()
    theirs.commit(Change(gangs=[rows.gang()]))
    assert ours.read().gangs == (rows.gang(),)
    theirs.put_report(Report("starter.worker.1-1", 5.0, {"round": 3}))
    assert ours.read().reports == (Report("starter.worker.1-1", 5.0, {"round": 3}),)
    ours.close()
    theirs.close()


def test_a_stale_commit_changes_nothing(store: SqlStore) -> None:
    store.commit(Change(workloads=[rows.run()]))
    with pytest.raises(Stale) as caught:
        store.commit(Change(fleet=FLEET, events=[rows.event()]), expect_version=0)
    assert caught.value.code == "stale"
    assert store.read().version == 1
    assert store.read().fleet is None
    assert store.last_event_seq() == 0
    assert store.commit(Change(fleet=FLEET), expect_version=1) == 2


def test_a_value_that_cannot_be_kept_changes_nothing(store: SqlStore) -> None:
    bad = replace(rows.event(), data={"x": "\ud800"})
    with pytest.raises(UsageError):
        store.commit(Change(fleet=FLEET, events=[bad]))
    assert store.read().version == 0
    assert store.read().fleet is None


def test_a_report_is_no_change_of_the_state(store: SqlStore) -> None:
    version = store.commit(Change(gangs=[rows.gang()]))
    store.put_report(Report("starter.worker.1-1", 1.0, {"round": 1, "loss": float("nan")}))
    store.put_report(Report("starter.worker.1-1", 2.0, {"round": 2}))
    assert store.read().version == version
    assert store.read().reports == (Report("starter.worker.1-1", 2.0, {"round": 2}),)
    assert store.commit(Change(fleet=FLEET), expect_version=version) == version + 1


def test_a_number_that_json_cannot_say_is_unknown(store: SqlStore) -> None:
    store.put_report(Report("g", 1.0, {"loss": float("nan"), "deep": [float("inf")]}))
    assert store.read().reports[0].status == {"loss": None, "deep": [None]}


def test_points_are_appended_once_and_read_in_order(store: SqlStore) -> None:
    points = [Point("starter", seq, 100.0 + seq, {"loss": 9.0 - seq}) for seq in range(5)]
    store.put_report(Report("g", 1.0, {}), points[2:4])
    store.put_report(Report("g", 2.0, {}), [*points, replace(points[0], at=999.0)])
    store.put_report(Report("h", 2.0, {}), [Point("other", 0, 1.0, {})])
    assert store.points("starter") == points
    assert store.points("starter", after_seq=1, limit=2) == points[2:4]
    assert store.points("starter", limit=0) == []
    with pytest.raises(UsageError):
        store.put_report(Report("g", 3.0, {}), [Point("starter", 1 << 70, 1.0, {})])


def test_what_is_notable_of_a_report_is_told_once_by_however_many_it_is_brought(store: SqlStore) -> None:
    rows = [Point("starter", seq, 1.0, {}) for seq in range(3)]
    store.put_report(Report("g", 1.0, {"phase": "waiting"}), rows[:1])
    version = store.read().version

    def notable(before: Mapping[str, Any], new: Sequence[Point]) -> list[Event]:
        told = (
            [Event(1.0, "phase", "starter", str(before["phase"]))] if before != {"phase": "training"} else []
        )
        return told + [Event(1.0, "row", "starter", str(p.seq)) for p in new]

    def bring() -> None:
        store.put_report(Report("g", 2.0, {"phase": "training"}), [*rows, rows[2]], notable)

    threads = [threading.Thread(target=bring) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((e.kind, e.text) for e in store.events()) == [
        ("phase", "waiting"),
        ("row", "1"),
        ("row", "2"),
    ]
    assert store.read().version == version + 1, "what says nothing new changes nothing"


def test_only_the_last_few_gangs_that_are_over_belong_to_the_state(store: SqlStore) -> None:
    for incarnation in range(1, 14):
        gang = rows.gang(incarnation=incarnation)
        store.commit(Change(gangs=[gang]))
        store.put_report(Report(gang.id, 1.0, {}))
        store.commit(Change(gangs=[replace(gang, ended_at=200.0 + incarnation, exit_code=1)]))
    alive = rows.gang(incarnation=14)
    other = rows.gang("assistant.replica.small.0", ended_at=1.0)
    store.commit(Change(gangs=[alive, other]))
    state = store.read()
    assert [g.incarnation for g in state.gangs if g.slot == alive.slot] == list(range(4, 15))
    assert other in state.gangs
    assert {r.gang_id for r in state.reports} == {rows.gang(incarnation=n).id for n in range(4, 14)}


def test_leases_that_are_over_leave_the_state(store: SqlStore) -> None:
    store.commit(Change(leases=[rows.lease("a"), rows.lease("b")]))
    store.commit(Change(leases=[rows.lease("a", state=LeaseState.ENDED, ended_at=300.0)]))
    assert [lease.id for lease in store.read().leases] == ["b"]


def test_open_intents_and_those_that_failed_lately_belong_to_the_state(store: SqlStore) -> None:
    store.commit(
        Change(
            intents=[
                rows.intent("pending"),
                rows.intent("issued", state=IntentState.ISSUED),
                rows.intent("done", state=IntentState.CONFIRMED, changed_at=1000.0),
                rows.intent("failed-long-ago", state=IntentState.FAILED, changed_at=399.0),
                rows.intent("failed", state=IntentState.FAILED, changed_at=400.0),
            ]
        )
    )
    assert {i.id for i in store.read().intents} == {"pending", "issued", "failed"}
    store.commit(Change(intents=[rows.intent("done", state=IntentState.CONFIRMED, changed_at=1001.0)]))
    assert {i.id for i in store.read().intents} == {"pending", "issued"}


def test_intents_of_a_subject_are_found_in_any_state(store: SqlStore) -> None:
    old = rows.intent("old", state=IntentState.CONFIRMED, created_at=1.0)
    new = rows.intent("new", created_at=2.0)
    other = rows.intent("other", subject="starter2.worker.1")
    store.commit(Change(intents=[old, new, other]))
    assert store.intents("starter.worker.1") == [new, old]
    assert store.intents("starter") == [new, old]
    assert store.intents("starter", limit=1) == [new]
    assert store.intents("start") == []


def test_events_are_numbered_in_order(store: SqlStore) -> None:
    store.commit(Change(events=[rows.event(text="one"), rows.event("assistant", "two")]))
    store.commit(Change(events=[rows.event("starter.worker.1", "three")]))
    assert [(e.seq, e.text) for e in store.events()] == [(1, "one"), (2, "two"), (3, "three")]
    assert store.events()[0] == replace(rows.event(text="one"), seq=1)
    assert [e.text for e in store.events(after_seq=1, limit=1)] == ["two"]
    assert [e.text for e in store.events(subject="starter")] == ["one", "three"]
    assert store.events(after_seq=1 << 70) == []
    assert store.last_event_seq() == 3


def test_decisions_are_found_by_what_they_name(store: SqlStore) -> None:
    store.commit(Change(decision=rows.starts("starter.worker.1", at=1.0)))
    store.commit(Change(decision=rows.starts("starter.worker.2", at=2.0)))
    store.commit(Change(decision=rows.waits("assistant.replica.small.0", at=3.0)))
    assert [d.at for d in store.decisions("starter")] == [2.0, 1.0]
    assert store.decisions("starter", limit=1) == [rows.starts("starter.worker.2", at=2.0)]
    assert [d.at for d in store.decisions("assistant")] == [3.0]
    assert [d.at for d in store.decisions("starter.worker.1")] == [1.0]
    assert store.decisions("start") == []


def test_waiting_for_the_same_is_written_once(store: SqlStore) -> None:
    for at in (1.0, 2.0, 3.0):
        store.commit(Change(decision=rows.waits(at=at)))
    store.commit(Change(decision=rows.waits(code="quarantined", at=4.0)))
    assert [d.at for d in store.decisions("starter")] == [4.0, 1.0]


def test_waiting_again_after_a_start_is_news(store: SqlStore) -> None:
    for decision in (rows.waits(at=1.0), rows.starts(at=2.0), rows.waits(at=3.0)):
        store.commit(Change(decision=decision))
    assert [d.at for d in store.decisions("starter")] == [3.0, 2.0, 1.0]


def test_history_is_bounded(new_url: Callable[[], str]) -> None:
    store = open_store(new_url(), Limits(events=20, decisions=5, every=10))
    for n in range(100):
        store.commit(Change(events=[rows.event(text=str(n))], decision=rows.starts(at=float(n))))
    kept = [e.text for e in store.events()]
    assert 20 <= len(kept) <= 30
    assert kept[-1] == "99"
    assert kept == sorted(kept, key=int)
    assert 5 <= len(store.decisions("starter", limit=1000)) <= 15
    assert store.last_event_seq() == 100
    store.close()


def test_one_leads_at_a_time(store: SqlStore) -> None:
    first, second = rows.holder("first"), rows.holder("second")
    epoch = store.lead(first, now=100.0, ttl_s=5.0)
    with pytest.raises(StateHeld) as caught:
        store.lead(second, now=104.9, ttl_s=5.0)
    assert "first" in str(caught.value)
    assert store.lead(first, now=104.0, ttl_s=5.0) == epoch
    assert store.leader() == (first, epoch, 109.0)
    assert store.lead(first, now=200.0, ttl_s=5.0) == epoch  # late, but nobody was faster
    taken = store.lead(second, now=205.0, ttl_s=5.0)
    assert taken > epoch
    with pytest.raises(StateHeld):
        store.lead(first, now=206.0, ttl_s=5.0)


def test_a_leader_that_was_followed_writes_nothing(store: SqlStore) -> None:
    with pytest.raises(LostLeadership):
        store.commit(Change(fleet=FLEET), leader_epoch=0)
    old = store.lead(rows.holder("old"), now=100.0, ttl_s=5.0)
    assert store.commit(Change(workloads=[rows.run()]), leader_epoch=old) == 1
    new = store.lead(rows.holder("new"), now=105.0, ttl_s=5.0)
    with pytest.raises(LostLeadership) as caught:
        store.commit(Change(fleet=FLEET), leader_epoch=old)
    assert "new" in str(caught.value)
    assert store.read().fleet is None
    assert store.commit(Change(fleet=FLEET), leader_epoch=new, expect_version=1) == 2


def test_resigning_ends_the_term_and_fences_it(store: SqlStore) -> None:
    first = store.lead(rows.holder("first"), now=100.0, ttl_s=1000.0)
    store.resign(first + 1)
    with pytest.raises(StateHeld):
        store.lead(rows.holder("second"), now=101.0, ttl_s=5.0)
    store.resign(first)
    assert store.leader() == (rows.holder("first"), first, 0.0)
    with pytest.raises(LostLeadership):
        store.commit(Change(fleet=FLEET), leader_epoch=first)
    assert store.lead(rows.holder("first"), now=102.0, ttl_s=5.0) == first + 1


STEP = st.tuples(
    st.sampled_from(["lead", "commit", "resign"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([0.0, 3.0, 6.0]),
    st.sampled_from([None, 0, -1]),  # the version that is expected, from now's
)


@given(steps=st.lists(STEP, max_size=25))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_versions_never_go_back_and_a_fenced_leader_never_writes(
    new_url: Callable[[], str], steps: list[tuple[str, str, float, int | None]]
) -> None:
    store = open_store(new_url())
    now, version, leading = 100.0, 0, 0
    held: dict[str, int] = {"a": -1, "b": -1}
    for step, who, wait_s, expected in steps:
        now += wait_s
        if step == "resign":
            store.resign(held[who])
            leading = 0 if held[who] == leading else leading
        elif step == "lead":
            try:
                held[who] = store.lead(rows.holder(who), now, ttl_s=5.0)
                assert held[who] >= max(held.values())
                leading = held[who]
            except StateHeld:
                assert leading not in (0, held[who])
        else:
            change = Change(workloads=[rows.run(reason=f"{who}{held[who]}")])
            expect = None if expected is None else version + expected
            fine = held[who] == leading != 0 and expected != -1
            try:
                assert store.commit(change, expect_version=expect, leader_epoch=held[who]) == version + 1
                assert fine
                version += 1
                assert store.read().workloads[0].reason == f"{who}{leading}"
            except Stale as error:
                assert not fine
                assert isinstance(error, LostLeadership) == (held[who] != leading or leading == 0)
        assert store.read().version == version
    store.close()


def test_threads_do_not_lose_commits(store: SqlStore) -> None:
    won: list[int] = []

    def work(name: str) -> None:
        for n in range(10):
            store.put_report(Report(name, float(n), {}), [Point(name, n, 1.0, {})])
            won.append(store.commit(Change(events=[rows.event(name)])))
            store.read()

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(1, 41))
    assert store.read().version == 40
    assert [e.seq for e in store.events()] == list(range(1, 41))


RACER = """
import sys
from caudal.domain.errors import Stale
from caudal.ports import Change
from caudal.store.state import open_store
from tests.support import rows
store = open_store(sys.argv[1])
won = []
print("ready", flush=True)
sys.stdin.readline()
for turn in range(50):
    try:
        store.commit(Change(events=[rows.event(text=sys.argv[2])]), expect_version=turn)
        won.append(turn)
    except Stale:
        pass
    assert store.read().version > turn
print(won, flush=True)
"""


def test_of_two_processes_that_commit_at_once_exactly_one_wins(shared_url: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, shared_url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for name in ("a", "b")
    ]
    won: list[int] = []
    for racer in racers:  # both also open the new database at once
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        won += json.loads(out)
    assert sorted(won) == list(range(50))
    store = open_store(shared_url)
    assert store.read().version == 50
    assert store.last_event_seq() == 50
    store.close()


def test_leases_and_gangs_that_are_over_are_kept_and_found_by_time(store: SqlStore) -> None:
    ended = rows.lease("lease-0", state=LeaseState.ENDED, requested_at=10.0, ended_at=20.0)
    store.commit(Change(leases=[rows.lease("lease-0", requested_at=10.0)]))
    store.commit(Change(leases=[ended, rows.lease("lease-1", requested_at=30.0)]))
    over = rows.gang(incarnation=1, created_at=10.0, ended_at=20.0)
    store.commit(Change(gangs=[over, rows.gang(incarnation=2, created_at=30.0)]))
    for n in range(3, 30):  # more than the state shows
        store.commit(Change(gangs=[rows.gang(incarnation=n, created_at=30.0 + n, ended_at=31.0 + n)]))
    assert [x.id for x in store.lease_history()] == ["lease-0", "lease-1"]
    assert store.lease_history(5.0, 30.0) == [ended]
    assert [x.id for x in store.lease_history(20.0)] == ["lease-1"]
    assert store.lease_history(0.0, 10.0) == []
    assert len(store.gang_history()) == 29
    assert store.gang_history(15.0, 30.0) == [over]


def test_leases_of_an_older_version_get_their_times(shared_url: str) -> None:
    first = open_store(shared_url)
    first.commit(Change(leases=[rows.lease("l", state=LeaseState.ENDED, requested_at=7.0, ended_at=9.0)]))
    first.close()
    database = Database(shared_url)
    with database.writing() as connection:
        command.downgrade(config(connection), "0002")
    database.close()
    again = open_store(shared_url)
    assert [x.id for x in again.lease_history(8.0, 10.0)] == ["l"]
    assert again.lease_history(9.5) == []
    again.close()
