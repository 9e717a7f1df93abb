"""Samples that no site can train: found in small pieces, set aside in a commit, known to the audit."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.errors import LedgerBroken
from caudal.domain.workload import StageSpec
from caudal.train import checkpoint, ledger
from caudal.train.audit import audit
from caudal.train.interface import IdRange
from caudal.train.leases import Pool, clip, size
from caudal.train.protocol.suspects import TRIES, TRIES_ALONE, Aside, Suspects
from tests.support.train_world import PREFIX, SPEC, TrainWorld


@given(
    total=st.integers(8, 200),
    data=st.data(),
    sites=st.integers(1, 4),
    batch=st.integers(1, 8),
)
def test_the_poison_is_found_and_little_else(total: int, data: st.DataObject, sites: int, batch: int) -> None:
    """Leases of any size to any site: in the end every id is trained or aside, and of the good ones few are."""
    poison = data.draw(st.sets(st.integers(0, total - 1), max_size=2))
    pool, suspects, aside, leases = Pool(total), Suspects(2 * 8), set[int](), 0
    while pool.free:
        leases += 1
        assert leases < 40 * total, "it goes round in circles"
        tried = suspects.tried(pool.free)
        who = sorted((f"s{n}" for n in range(sites)), key=lambda w: w in tried)[0]
        count = suspects.count(pool.free, data.draw(st.integers(1, 64)))
        ids = pool.lease("x", count, 0, total)
        assert 1 <= size(ids) <= count
        if not any(clip(ids, bad, bad + 1) for bad in poison):
            pool.commit(["x"])
            suspects.trained(ids)
            continue
        found = suspects.failed(ids, who, batch, "nan")
        pool.give_back("x")
        if found is not None:
            assert pool.lease_exactly("y", found.ids)
            pool.commit(["y"])
            aside |= {i for r in found.ids for i in range(r.start, r.stop)}
            assert len(found.workers) > 1 or found.tries >= TRIES_ALONE
            assert found.tries >= TRIES
    assert poison <= aside and len(aside) <= batch * max(1, len(poison))


def test_a_site_that_fails_on_everything_has_nothing_set_aside_while_others_can() -> None:
    suspects = Suspects(100)
    for start in range(0, 400, 4):
        assert suspects.failed([IdRange(start, start + 4)], "broken", 8, "nan") is None
        assert suspects.tried([IdRange(start, 400)]) == {"broken"}
        suspects.trained([IdRange(start, start + 4)])  # by another
    assert suspects.set_aside == 0


def test_a_run_that_fails_on_everything_is_not_finished_untrained() -> None:
    suspects, found = Suspects(10), list[Aside]()
    for start in range(0, 400, 4):
        for worker in ("a", "b", "a", "b"):
            one = suspects.failed([IdRange(start, start + 4)], worker, 4, "nan")
            found += [one] if one else []
    assert sum(size(one.ids) for one in found) == suspects.set_aside == 8


def test_what_is_in_large_leases_is_narrowed_first() -> None:
    suspects, whole = Suspects(16), [IdRange(0, 256), IdRange(300, 310)]
    for worker in "abab":
        assert suspects.failed([IdRange(0, 256)], worker, 8, "nan") is None, "far more than a batch"
    assert suspects.count(whole, 500) == 64
    assert suspects.failed([IdRange(0, 64)], "a", 8, "nan") is None and suspects.count(whole, 500) == 16
    assert suspects.failed([IdRange(0, 16)], "b", 8, "nan") is None and suspects.count(whole, 500) == 4
    found = suspects.failed([IdRange(0, 4)], "a", 8, "nan")
    assert found == Aside((IdRange(0, 4),), "nan", ("a", "b"), 7)
    assert suspects.count([IdRange(4, 256)], 500) == 4
    suspects.trained([IdRange(4, 256)])
    assert suspects.count([IdRange(300, 310)], 500) == 500


def poisoned(*ids: int, seed: int = 5, sites: int = 2) -> TrainWorld:
    world = TrainWorld(seed, sites, poison=frozenset(ids))
    world.calm = True
    world.run(4_000.0)
    assert world.trained is not None
    return world


@pytest.mark.parametrize("ids", [(0,), (37,), (99, 100), (140,)], ids=["first", "middle", "stages", "last"])
@pytest.mark.parametrize("sites", [1, 2])
def test_a_run_over_a_poisoned_sample_ends_and_the_audit_counts_it(ids: tuple[int, ...], sites: int) -> None:
    world = poisoned(*ids, sites=sites)
    report = audit(world.blobs, PREFIX)
    aside = {i for s in report.skips for a, b in s.ids for i in range(a, b)}
    assert set(ids) <= aside and len(aside) == report.skipped <= 3 * len(ids)
    assert report.ids == report.ids_total == 141 and not report.missing
    said = "\n".join(report.lines())
    assert f"{report.skipped} of them were set aside" in said and "it is not finite" in said
    restored = checkpoint.restore(world.blobs, PREFIX, world.plan.parameters, print)
    assert restored is not None and restored.totals.skipped == report.skipped
    assert Pool(141, [IdRange(*r) for r in restored.totals.committed]).done


def test_the_last_ids_of_a_run_are_set_aside_in_a_round_of_their_own() -> None:
    worlds = (poisoned(140, seed=seed) for seed in range(5, 60))  # chance decides what is committed beside it
    world = next(w for w in worlds if not ledger.read_from(w.blobs, PREFIX, None)[-1].entry.sites)
    last = ledger.read_from(world.blobs, PREFIX, None)[-1].entry
    before = ledger.read_from(world.blobs, PREFIX, None)[-2].entry
    assert last.tokens == 0 and [s.ids for s in last.skipped] == [((140, 141),)]
    assert not any(world.blobs.get(ledger.update_path(PREFIX, last.round, last.update_sha256)))
    assert last.state_sha256 == before.state_sha256 != "", "it changes nothing"


def test_an_entry_that_sets_nothing_aside_has_the_bytes_that_it_always_had() -> None:
    world = poisoned(37)
    entries = [x.entry for x in ledger.read_from(world.blobs, PREFIX, None)]
    assert [b"skipped" in ledger.to_bytes(e) for e in entries] == [bool(e.skipped) for e in entries]


def test_an_id_that_is_trained_and_set_aside_is_noticed() -> None:
    world = poisoned(37)
    links = ledger.read_from(world.blobs, PREFIX, None)
    at = next(n for n, x in enumerate(links) if x.entry.skipped)
    skipped = msgspec.structs.replace(links[at].entry.skipped[0], ids=links[0].entry.sites[0].ids)
    path = ledger.entry_path(PREFIX, at + 1)
    world.blobs.put(path, ledger.to_bytes(msgspec.structs.replace(links[at].entry, skipped=(skipped,))))
    for later in links[at + 1 :]:
        world.blobs.delete(ledger.entry_path(PREFIX, later.entry.round))
    for manifest in world.blobs.list(f"{PREFIX}/manifests/"):
        if json.loads(world.blobs.get(manifest))["round"] > at:
            world.blobs.delete(manifest)
    with pytest.raises(LedgerBroken, match=r"(.|\n)*is there twice"):
        audit(world.blobs, PREFIX)


def test_most_is_a_hundredth_of_the_ids_or_two_batches() -> None:
    world = TrainWorld(1, 1)
    assert Suspects.of(world.plan).most == 6
    long = replace(SPEC, stages=(StageSpec("all", tokens=8 * 100_000, sample_tokens=8, batch=4),))
    assert Suspects.of(TrainWorld(1, 1, long).plan).most == 1000
