"""A run whose every commit is in the stores of two providers, over real servers: either may be lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caudal.domain.errors import AlreadyExists, StorageFailed
from caudal.store.blobs import open_blobs, open_store_at
from caudal.store.mirror import MARKER, Mirror
from caudal.train.audit import audit_run
from tests.e2e.test_run_survival import Fleet, kill
from tests.support.object_stores import Server, azure, s3

__all__ = ["azure", "s3"]

pytestmark = pytest.mark.cluster


@pytest.fixture
def both(s3: Server, azure: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the two together."""
    for server in (s3, azure):
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
    return f"{s3.url} {azure.url}"


@pytest.fixture
def fleet(tmp_path: Path, both: str) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def content(url: str) -> dict[str, bytes]:
    store = open_store_at(url)
    return {path: store.get(path) for path in store.list("")}


def test_of_those_who_create_at_once_one_wins_at_each_provider(both: str) -> None:
    for url in both.split():
        store, won, start = open_store_at(url), list[int](), threading.Barrier(6)

        def create(number: int) -> None:
            start.wait()  # noqa: B023
            try:
                store.put("epoch-000001.json", b"%d" % number, if_absent=True)  # noqa: B023
                won.append(number)  # noqa: B023
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and store.get("epoch-000001.json") == b"%d" % won[0], url


def trained(fleet: Fleet, url: str, first: int) -> None:
    """Both sites and the coordinator to the run's end."""
    more = {"blobs_url": url}
    boss = fleet.start("coordinator", "tiny.coordinator", first, **more)
    workers = [fleet.start("worker", f"tiny.worker.{i}", first, step_s=0.002, **more) for i in range(2)]
    for process in (boss, *workers):
        fleet.ends(process)


def test_every_commit_is_at_both_and_the_run_outlives_the_first(
    fleet: Fleet, both: str, s3: Server, azure: Server
) -> None:
    mirror = open_blobs(both)
    more = {"blobs_url": both}
    boss = fleet.start("coordinator", "tiny.coordinator", **more)
    workers = [fleet.start("worker", f"tiny.worker.{i}", step_s=0.01, **more) for i in range(2)]
    fleet.until(lambda: len(mirror.list("runs/tiny/g1/ledger/")) >= 12, 60.0)
    for process in (boss, *workers):
        kill(process)
    there = [p for p in mirror.list("runs/tiny/g1/") if "/beat-" not in p]
    copy = content(azure.url)
    lacking = [p for p in there if p not in copy]
    assert len(lacking) <= 2, lacking  # what was on its way when all were killed
    s3.stop()  # the provider is gone, with all that it held
    turned = " ".join(reversed(both.split()))
    with pytest.raises(StorageFailed):
        open_blobs(turned).put("runs/tiny/g1/x", b"")
    moved = open_blobs(turned)
    assert isinstance(moved, Mirror)
    assert moved.promote().term == 2
    trained(fleet, turned, first=2)
    report = audit_run(open_blobs(turned), "tiny")
    assert report.finished and not report.missing and report.epochs == 2
    assert report.rounds > 12


def test_a_second_provider_that_comes_back_is_given_all(fleet: Fleet, both: str, azure: Server) -> None:
    azure.stop()
    trained(fleet, both, first=1)
    azure.start()
    mirror = open_blobs(both)
    assert isinstance(mirror, Mirror)
    first, second = (content(url) for url in both.split())
    lacks = sum(second.get(path) != data for path, data in first.items() if path != MARKER)
    assert sum(mirror.repair().values()) >= lacks > 30, "how many rounds there were is up to the machine"
    first, second = (content(url) for url in both.split())
    assert first == second and MARKER in first
    assert audit_run(open_store_at(azure.url), "tiny").finished
