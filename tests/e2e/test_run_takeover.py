"""The coordinator is nobody special: when it is killed a site goes on in its place, and what was trained is what
the ledger says, to the last bit."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from caudal.domain.errors import UsageError
from caudal.train import epochs, ledger
from caudal.train.given import give
from caudal.train.interface import Between, IdRange, InnerResult, RunPlan, plan
from caudal.train.layout import initial_state
from caudal.train.replay import ReplayReport, replay
from tests.e2e.test_run_survival import PREFIX, SPEC, Fleet, kill
from tests.e2e.tiny_run import TinyInner, prepare


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Sites whose standby may coordinate too: all that a run begins with is in the store."""
    made = Fleet(tmp_path)
    run_plan = planned(made)
    give(made.blobs, PREFIX, run_plan, initial_state(run_plan.shape, run_plan.vocab, run_plan.seed))
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def planned(fleet: Fleet) -> RunPlan:
    return plan(SPEC, prepare(SPEC, fleet.blobs, PREFIX))


def again(fleet: Fleet, wanted: int = 1, kind: type[TinyInner] = TinyInner) -> ReplayReport:
    run_plan = planned(fleet)
    manifest = prepare(SPEC, fleet.blobs, PREFIX)
    return replay(
        fleet.blobs,
        PREFIX,
        run_plan,
        lambda: kind(run_plan, manifest, fleet.folder, 1),
        wanted,
        lambda: "here",
    )


def kill_between_commits(fleet: Fleet, boss: subprocess.Popen[bytes]) -> None:
    """`kill -9` while no update is on its way into the store: sites that have seen a round that was not committed
    would have to begin anew."""
    while True:
        boss.send_signal(signal.SIGSTOP)
        time.sleep(0.1)  # what it sent arrives, on a busy machine too
        updates = len({name[:14] for name in fleet.names(f"{PREFIX}/updates") if name.endswith(".bin")})
        if updates == fleet.round():
            break
        boss.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    kill(boss)


class Careless(TinyInner):
    """Trains, but not quite what it was given."""

    def run(
        self,
        stage: int,
        ids: list[IdRange],
        progress: tuple[float, float],
        between: Between,
        rate: float = 1.0,
    ) -> InnerResult:
        if progress[0] > 0.5:
            ids = [IdRange(r.start, r.stop - 1) for r in ids]
        return super().run(stage, ids, progress, between, rate)


def test_a_site_takes_over_and_all_is_as_the_ledger_says(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [
        fleet.start("worker", f"tiny.worker.{i}", step_s=0.02, given=True, standby=True) for i in range(2)
    ]
    boss = fleet.start("coordinator", "tiny.coordinator", given=True)
    fleet.until(lambda: fleet.round() >= 10)
    time.sleep(1.0)  # the standby processes have loaded what they need
    kill_between_commits(fleet, boss)
    killed_at, committed = time.time(), fleet.round()
    last = ledger.read_entry(fleet.blobs, PREFIX, committed)
    for worker in workers:
        fleet.ends(worker)

    assert ledger.read_entry(fleet.blobs, PREFIX, committed) == last
    assert fleet.audit().epochs >= 2
    newest = epochs.newest(fleet.blobs, PREFIX)
    assert newest is not None and newest.gang.startswith("tiny.worker.")
    links = [ledger.read_entry(fleet.blobs, PREFIX, n + 1) for n in range(fleet.round())]
    taken_over = [link.entry for link in links if link is not None and link.entry.epoch > 1]
    assert taken_over[0].at - killed_at < 5.0
    assert all(not part.joined for part in taken_over[0].sites)  # the sites went on with what they had

    monkeypatch.setenv("TINY_STEP_S", "0")
    whole = again(fleet)
    assert (whole.differs, whole.first, whole.compared) == (0, 1, fleet.round())
    assert whole.state_sha256 == fleet.audit().state_sha256 and not whole.comparable
    assert again(fleet, fleet.round()).compared == 1
    lied = again(fleet, kind=Careless)
    assert lied.differs > 1 and lied.last == lied.differs
    with pytest.raises(UsageError, match="not one of the run's"):
        again(fleet, fleet.round() + 1)


def test_a_run_that_was_never_begun_is_begun_by_a_site(fleet: Fleet) -> None:
    for i in range(2):
        fleet.start("worker", f"tiny.worker.{i}", step_s=0.001, given=True, standby=True)
    for process in fleet.processes:
        fleet.ends(process)
    report = fleet.audit()
    assert report.epochs == 1 and msgspec.json.decode(fleet.blobs.get(f"{PREFIX}/result.json"))["round"] > 0
