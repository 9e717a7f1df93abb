"""The record of a run: whole, or it says which round is not; and a run comes back from what was kept."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from caudal.domain.errors import AlreadyExists, LedgerBroken, NotFound, StorageFailed
from caudal.train import checkpoint, ledger
from caudal.train.audit import audit, audit_run, result_path
from caudal.train.keeper import Fenced, Keeper, Overtaken
from caudal.train.outer import state_sha256
from caudal.train.protocol.effects import Commit
from tests.support.train_world import PREFIX, DictBlobs, NoMetrics, TrainWorld

FINISHED: dict[str, bytes] = {}


@pytest.fixture
def blobs() -> DictBlobs:
    """A whole run's objects, a copy per test."""
    if not FINISHED:
        world = TrainWorld(3, 2)
        world.calm = True
        world.run(3_000.0)
        report = audit(world.blobs, PREFIX)
        result = {"round": report.rounds, "state_sha256": report.state_sha256}
        world.blobs.put(result_path(PREFIX), msgspec.json.encode(result))
        FINISHED.update(world.blobs.objects)
    made = DictBlobs()
    made.objects = dict(FINISHED)
    return made


def rounds(blobs: DictBlobs) -> int:
    return len(blobs.list(f"{PREFIX}/ledger/"))


def rewrite(blobs: DictBlobs, round_number: int, change: Callable[[dict], None]) -> None:
    """Change an entry and keep it canonical, as somebody would who means harm."""
    path = ledger.entry_path(PREFIX, round_number)
    entry = json.loads(blobs.get(path))
    change(entry)
    blobs.put(path, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())


def test_a_whole_run_is_proven(blobs: DictBlobs) -> None:
    report = audit_run(blobs, "tiny")
    assert report.finished and report.missing == () and report.ids == report.ids_total == 141
    assert report.rounds == rounds(blobs) and report.states_checked > 3 and len(report.lines()) == 4
    with pytest.raises(NotFound, match="no run to audit"):
        audit_run(blobs, "another")


def test_one_changed_byte_names_its_round(blobs: DictBlobs) -> None:
    path = ledger.entry_path(PREFIX, 4)
    data = bytearray(blobs.get(path))
    at = data.index(b'"loss":') + 7
    data[at] = ord("7") if data[at] != ord("7") else ord("8")
    blobs.put(path, bytes(data))
    with pytest.raises(LedgerBroken, match="round 5 "):
        audit(blobs, PREFIX)  # the entry itself still reads: the one after it names another hash


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: e.update(round=9), "round 6"),
        (lambda e: e.update(previous="0" * 64), "round 6"),
        (lambda e: e.update(state="x"), "round 6"),
        (lambda e: e.pop("sites"), "round 6"),
        (lambda e: e.update(loss=0.25), "round 7"),
        (lambda e: e["sites"][0].update(tokens=1), "round"),
    ],
)
def test_a_changed_entry_is_noticed(blobs: DictBlobs, change: Callable[[dict], None], named: str) -> None:
    rewrite(blobs, 6, change)
    with pytest.raises(LedgerBroken, match=named):
        audit(blobs, PREFIX)


def test_the_last_entry_is_pinned_by_the_result_and_the_checkpoint(blobs: DictBlobs) -> None:
    rewrite(blobs, rounds(blobs), lambda e: e.update(loss=0.125))
    with pytest.raises(LedgerBroken, match=f"round {rounds(blobs)} "):
        audit(blobs, PREFIX)


def test_a_missing_or_damaged_object_names_its_round(blobs: DictBlobs) -> None:
    keep = dict(blobs.objects)
    update = blobs.list(f"{PREFIX}/updates/")[4]
    blobs.put(update, blobs.get(update)[:-1] + b"x")
    with pytest.raises(LedgerBroken, match="round 5 "):
        audit(blobs, PREFIX)
    blobs.delete(update)
    with pytest.raises(LedgerBroken, match="round 5 "):
        audit(blobs, PREFIX)
    blobs.objects = dict(keep)
    blobs.delete(ledger.entry_path(PREFIX, 8))
    with pytest.raises(LedgerBroken, match="round 8 "):
        audit(blobs, PREFIX)


def test_an_id_in_two_commits_is_noticed(blobs: DictBlobs) -> None:
    """Even by somebody who forges the whole chain behind it."""
    links = ledger.read_from(blobs, PREFIX, None)
    twice = links[1].entry.sites[0].ids
    entry = links[2].entry
    part = msgspec.structs.replace(entry.sites[0], ids=twice)
    entries = [msgspec.structs.replace(entry, sites=(part, *entry.sites[1:]))]
    entries += [link.entry for link in links[3:]]
    previous = links[1].hash
    for entry in entries:
        data = ledger.to_bytes(msgspec.structs.replace(entry, previous=previous))
        blobs.put(ledger.entry_path(PREFIX, entry.round), data)
        previous = ledger.entry_hash(data)
    with pytest.raises(LedgerBroken, match=r"round 3 (.|\n)*is there twice"):
        audit(blobs, PREFIX)


def test_a_run_comes_back_at_its_last_round_from_any_checkpoint(blobs: DictBlobs) -> None:
    size = audit(blobs, PREFIX)
    said: list[str] = []
    whole = checkpoint.restore(blobs, PREFIX, 0 or _parameters(blobs), said.append)
    assert whole is not None and whole.round == size.rounds and not said
    newest, before = blobs.list(f"{PREFIX}/manifests/")[-1:-3:-1]
    for damage in ("truncated", "missing state", "manifest"):
        copy = DictBlobs()
        copy.objects = dict(blobs.objects)
        manifest = msgspec.json.decode(copy.get(newest), type=checkpoint.Manifest)
        state = checkpoint.state_path(PREFIX, manifest.file)
        if damage == "truncated":
            copy.put(state, copy.get(state)[:-10])
        elif damage == "missing state":
            copy.delete(state)
        else:
            copy.put(newest, b"{")
        said.clear()
        again = checkpoint.restore(copy, PREFIX, _parameters(blobs), said.append)
        assert again is not None and again.round == size.rounds
        assert state_sha256(again.state) == state_sha256(whole.state) == size.state_sha256
        assert state_sha256(again.momentum) == state_sha256(whole.momentum)
        assert again.totals == whole.totals and f"{again.from_round:08d}" in before
        assert len(said) == 1 and newest in said[0]
        audit(copy, PREFIX)


def test_a_last_entry_that_was_changed_is_not_trained_on_from(blobs: DictBlobs) -> None:
    """No later entry names its hash; its checkpoint does."""
    rewrite(blobs, rounds(blobs), lambda e: e.update(loss=0.125))
    with pytest.raises(LedgerBroken, match=f"round {rounds(blobs)} "):
        checkpoint.restore(blobs, PREFIX, _parameters(blobs), print)


def test_a_checkpoint_that_names_another_entry_is_passed_over_where_the_chain_says_so(
    blobs: DictBlobs,
) -> None:
    path = blobs.list(f"{PREFIX}/manifests/")[-1]
    manifest = json.loads(blobs.get(path))
    last = rounds(blobs)
    for later in (True, False):
        copy = DictBlobs()
        copy.objects = dict(blobs.objects)
        said: list[str] = []
        other = copy.list(f"{PREFIX}/manifests/")[-2] if later else path
        copy.put(other, json.dumps({**json.loads(copy.get(other)), "entry": "0" * 64}).encode())
        if later:
            copy.delete(path)
            restored = checkpoint.restore(copy, PREFIX, _parameters(blobs), said.append)
            assert restored is not None and restored.round == last and other in said[0]
        else:
            assert manifest["round"] == last, "nothing says which of the two was changed"
            with pytest.raises(LedgerBroken, match=f"round {last} "):
                checkpoint.restore(copy, PREFIX, _parameters(blobs), said.append)


def test_a_checkpoint_of_nothing_usable_is_an_error(blobs: DictBlobs) -> None:
    for path in blobs.list(f"{PREFIX}/states/"):
        blobs.delete(path)
    with pytest.raises(LedgerBroken, match="none of its checkpoints"):
        checkpoint.restore(blobs, PREFIX, _parameters(blobs), print)
    assert checkpoint.restore(DictBlobs(), PREFIX, 10, print) is None


def _parameters(blobs: DictBlobs) -> int:
    return int(json.loads(blobs.get(f"{PREFIX}/plan.json"))["parameters"])


def test_of_two_writers_of_a_round_one_wins(blobs: DictBlobs) -> None:
    link = ledger.read_entry(blobs, PREFIX, 5)
    assert link is not None
    update = blobs.get(ledger.update_path(PREFIX, 5, link.entry.update_sha256))
    ledger.append(blobs, PREFIX, link.entry, update)  # asked for twice: the same
    with pytest.raises(AlreadyExists):
        ledger.append(blobs, PREFIX, msgspec.structs.replace(link.entry, epoch=9), b"other")
    assert audit(blobs, PREFIX).finished, "the loser's bytes are beside, not in place of, the winner's"


def keeper(blobs: DictBlobs, epoch: int, said: list[str]) -> Keeper:
    return Keeper(blobs, PREFIX, epoch, NoMetrics(), lambda _: None, said.append, said.append)  # type: ignore[arg-type]


def test_who_is_fenced_commits_nothing(blobs: DictBlobs) -> None:
    link = ledger.read_entry(blobs, PREFIX, 5)
    assert link is not None
    with pytest.raises(Overtaken):
        keeper(blobs, 7, [])._append(Commit(msgspec.structs.replace(link.entry, epoch=7), b"u"))
    blobs.put(f"{PREFIX}/epoch-000008.json", b'{"epoch":8,"address":"","site":"","gang":"","at":0}')
    with pytest.raises(Fenced):
        keeper(blobs, 7, [])._append(Commit(msgspec.structs.replace(link.entry, round=99, epoch=7), b"u"))
    assert ledger.read_entry(blobs, PREFIX, 99) is None


class FullDisk(DictBlobs):
    """Keeps nothing while `full`."""

    full = True

    def put(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.full:
            raise StorageFailed("no space left", where=path)
        super().put(path, data, if_absent=if_absent)


def test_a_full_disk_waits_and_loses_nothing(blobs: DictBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr("caudal.train.keeper.RETRY_S", (0.001,))
    disk, said = FullDisk(), []
    disk.objects = dict(blobs.objects)
    link = ledger.read_entry(blobs, PREFIX, 5)
    assert link is not None
    entry = msgspec.structs.replace(link.entry, round=rounds(blobs) + 1)

    async def go() -> None:
        asked = asyncio.create_task(keeper(disk, 1, said)._commit(Commit(entry, b"update")))
        while len(said) < 6:
            await asyncio.sleep(0.001)
        assert ledger.read_entry(disk, PREFIX, entry.round) is None
        assert checkpoint.restore(disk, PREFIX, _parameters(blobs), said.append) is not None
        disk.full = False
        assert (await asked).update_sha256

    asyncio.run(go())
    assert "no space left" in said[0] and said[-1] == ""
    assert ledger.read_entry(disk, PREFIX, entry.round) is not None
