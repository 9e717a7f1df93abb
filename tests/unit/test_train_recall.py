"""What a site goes back to when its work is lost: its moments and its residual, as of its last part that counts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from caudal.store.blobs import open_blobs
from caudal.train import ledger
from caudal.train.data.prepare import prepare
from caudal.train.fetch import data_folder
from caudal.train.inner import TorchInner
from caudal.train.interface import IdRange, Moments, Recalling, RunPlan, plan
from caudal.train.kept import Kept
from caudal.train.layout import initial_state
from caudal.train.memory import Known, Memory
from caudal.train.messages import Delta, Refused, Revoked
from caudal.train.protocol.effects import Compute, Forget, Recall, Remember
from caudal.train.protocol.site import Site
from tests.support.learner import Learner
from tests.support.train_world import DictBlobs
from tests.unit.test_train_inner import SPEC, never
from tests.unit.test_train_site import PLAN, Place, lesson, order


def begun(*, recalls: bool = True, merged: int = 1) -> Place:
    """A site whose part of so many rounds was merged, and that computes the next."""
    place = Place()
    place.site = Site(PLAN, recalls)
    place.welcome(initial_state(PLAN.shape, PLAN.vocab, 1))
    for number in range(1, merged + 1):
        place.hear(order(number, waits=True))
        place.compute(lesson(number))
        place.update(lesson(9), number, (f"lease-{number}",))
    place.hear(order(merged + 1, waits=True))
    return place


def lost(place: Place) -> None:
    """The coordinator gives up the round under way."""
    place.hear(Revoked(1, place.site.round))
    place.compute(lesson(7), stopped=True)


def again(place: Place) -> Delta:
    """What it says with its next part."""
    number = place.site.round + 1
    place.hear(order(number, waits=True, lease="again"))
    place.compute(lesson(3))
    said: Delta = next(m for m in place.of(Delta) if m.lease == "again")
    return said


def test_work_that_is_lost_takes_nothing_with_it_that_counts() -> None:
    place = begun(merged=2)
    residual = place.site.residual.copy()
    assert np.any(residual)
    lost(place)
    assert place.of(Recall) == [Recall(2)] and len(place.of(Forget)) == 1, "the one of its first welcome"
    assert np.array_equal(place.site.residual, residual)
    said = again(place)
    assert (said.recalled, said.fresh) == (2, False)


@pytest.mark.parametrize("why", ["never merged", "cannot", "bad"])
def test_it_begins_anew_where_there_is_nothing_to_go_back_to(why: str) -> None:
    place = begun(recalls=why != "cannot", merged=0 if why == "never merged" else 1)
    if why == "bad":
        place.compute(lesson(7))
        place.hear(Refused("bad_delta", "not finite"))
        place.welcome(place.site.state.copy(), place.site.round)
    else:
        lost(place)
    assert not place.of(Recall) and len(place.of(Forget)) == 2 and not np.any(place.site.residual)
    said = again(place)
    assert (said.recalled, said.fresh) == (0, True)


@pytest.mark.parametrize(("epoch", "kept"), [(1, True), (2, False)])
def test_a_round_that_its_coordinator_may_not_have_committed_is_nothing_to_go_back_to(
    epoch: int, kept: bool
) -> None:
    place = begun()
    place.site.offer()
    place.welcome(lesson(4), 1, epoch)  # another state than the one that it holds
    place.compute(lesson(7), stopped=True)
    assert bool(place.of(Recall)) is kept and len(place.of(Forget)) == (1 if kept else 2)


def test_moments_are_those_before_the_first_work_that_is_lost() -> None:
    inner, kept = Learner(PLAN), Kept()
    assert isinstance(inner, Recalling)
    seen = {}
    for number, unsettled in ((4, 4), (5, 4), (6, 5)):
        seen[number] = inner.moments()
        kept.mark(Compute("", 0, (), (0.0, 0.0), round=number, unsettled=unsettled), inner)
        inner.learn([IdRange(number, number + 1)])
    kept.recall(Recall(4), inner)
    assert np.array_equal(inner.memory, seen[5].first) and inner.steps == seen[5].steps
    kept.recall(Recall(4), inner)
    assert inner.steps == seen[5].steps, "nothing was begun since"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPlan, TorchInner]:
    blobs, cache = open_blobs("memory://"), tmp_path_factory.mktemp("cache")
    manifest = prepare(SPEC, blobs, "r")
    of = plan(SPEC, manifest)
    return of, TorchInner(of, manifest, data_folder(blobs, "r", manifest, Path(cache)))


@pytest.mark.parametrize("steps", [0, 3])
def test_the_trainer_goes_on_from_moments_to_the_last_bit(
    made: tuple[RunPlan, TorchInner], steps: int
) -> None:
    of, inner = made
    state = initial_state(of.shape, of.vocab, of.seed)
    inner.forget()
    inner.load(state)
    if steps:
        state = inner.run(0, [IdRange(0, 4 * steps)], (0.1, 0.2), never).params
    known = inner.moments()
    wanted = inner.run(0, [IdRange(40, 52)], (0.2, 0.3), never).params
    inner.run(0, [IdRange(60, 72)], (0.3, 0.4), never)
    inner.recall(known)
    inner.load(state)
    assert np.array_equal(inner.run(0, [IdRange(40, 52)], (0.2, 0.3), never).params, wanted)
    inner.forget()
    inner.load(state)
    anew = inner.run(0, [IdRange(40, 52)], (0.2, 0.3), never).params
    assert np.array_equal(anew, wanted) is (steps == 0)


@pytest.fixture
def kept_by_a(tmp_path: Path) -> tuple[Memory, DictBlobs]:
    """Moments from behind round 3 of epoch 2, of which the ledger has a part of slot a's."""
    blobs, previous = DictBlobs(), ledger.FIRST
    for number in (1, 2, 3):
        part = ledger.Contribution("a", "a", ((0, 2),), 2, 1, 1.0, 1.0, 1.0, False, (0.0, 0.1))
        entry = ledger.Entry("r", number, 2, previous, 0, 1, 1.0, 0.0, (part,), 2, 1, 1.0, "", 0, "", 0.0)
        data = ledger.to_bytes(entry)
        blobs.put(ledger.entry_path("p", number), data)
        previous = ledger.entry_hash(data)
    memory = Memory(tmp_path / "new" / "a.bin", "plan")
    numbers = np.arange(5, dtype=np.float32)
    assert memory.due() and not memory.due(), "one at a time"
    memory.write(Known(3, 2, Moments(numbers, numbers + 1, 17, fresh=True)))
    assert not memory.due(), "and not again soon"
    return memory, blobs


def test_a_process_finds_what_the_one_before_it_knew(kept_by_a: tuple[Memory, DictBlobs]) -> None:
    memory, blobs = kept_by_a
    known = memory.read(5, blobs, "p", "a")
    assert known is not None and (known.round, known.epoch) == (3, 2)
    assert (known.moments.steps, known.moments.fresh) == (17, True)
    assert np.array_equal(known.moments.second, np.arange(1, 6, dtype=np.float32))
    assert [path.name for path in memory.path.parent.iterdir()] == ["a.bin"]
    memory.end()
    memory.end()
    assert memory.read(5, blobs, "p", "a") is None


@pytest.mark.parametrize("wrong", ["size", "slot", "plan", "torn", "a number", "no entry", "epoch"])
def test_what_is_not_surely_of_this_run_is_not_gone_on_with(
    kept_by_a: tuple[Memory, DictBlobs], wrong: str
) -> None:
    memory, blobs = kept_by_a
    data = memory.path.read_bytes()
    if wrong == "plan":
        memory = Memory(memory.path, "another")
    elif wrong == "torn":
        memory.path.write_bytes(data[:-4])
    elif wrong == "a number":
        memory.path.write_bytes(data[:-4] + b"\0\0\0\0")
    elif wrong == "no entry":
        blobs.delete(ledger.entry_path("p", 3))
    elif wrong == "epoch":
        memory.path.write_bytes(data.replace(b'"epoch":2', b'"epoch":3'))
    assert memory.read(6 if wrong == "size" else 5, blobs, "p", "b" if wrong == "slot" else "a") is None


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "a.bin", "plan")
    memory.write(Known(1, 1, Moments(np.zeros(1, np.float32), np.zeros(1, np.float32), 1, fresh=False)))
    said = capsys.readouterr()
    assert "cannot be kept" in said.out + said.err


def test_who_inherits_moments_says_so_until_a_part_of_its_own_is_merged() -> None:
    place = Place()
    place.site = Site(PLAN, recalls=True)
    place.site.inherit(3)
    place.welcome(initial_state(PLAN.shape, PLAN.vocab, 1), 5)
    assert place.of(Recall) == [Recall(3)] and not place.of(Forget)
    place.hear(order(6, waits=True))
    lost(place)
    said = again(place)
    assert (said.recalled, said.fresh) == (3, True), "its residual is empty"
    place.update(lesson(9), 6, ("again",))
    assert place.of(Remember) == [Remember(6, 1)]
    place.hear(order(7, waits=True))
    lost(place)
    assert place.of(Recall)[-1] == Recall(6)


def test_entries_of_before_are_read_as_they_were_written() -> None:
    part = ledger.Contribution("a", "a", ((0, 2),), 2, 1, 1.0, 1.0, 1.0, False, (0.0, 0.1))
    entry = ledger.Entry("r", 1, 1, "", 0, 1, 1.0, 0.0, (part,), 2, 1, 1.0, "", 0, "", 0.0)
    assert b"recalled" not in ledger.to_bytes(entry)
    later = msgspec.structs.replace(entry, sites=(msgspec.structs.replace(part, recalled=1),))
    for one in (entry, later):
        assert ledger.parse(ledger.to_bytes(one), 1).entry == one
