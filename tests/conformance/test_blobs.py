"""What every ports.Blobs does, whichever object store is behind it."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caudal.domain.errors import AlreadyExists, NotFound, UsageError
from caudal.ports import Blobs
from caudal.store.blobs import open_blobs

LARGE = os.urandom(12 << 20)  # beyond the size at which object stores are written in parts


@pytest.fixture(params=["file", "memory", "mirror"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """An empty object store."""
    one, other = ((tmp_path / name / "blobs").as_uri() for name in ("not yet", "nor this"))
    return open_blobs({"file": one, "memory": "memory://", "mirror": f"{one} {other}"}[request.param])


def test_what_is_put_is_got(blobs: Blobs) -> None:
    blobs.put("runs/starter/g1/ledger/round-00000001.json", b"{}")
    blobs.put("empty", b"")
    blobs.put("large.bin", LARGE)
    assert blobs.get("runs/starter/g1/ledger/round-00000001.json") == b"{}"
    assert blobs.get("empty") == b""
    assert blobs.get("large.bin") == LARGE


def test_putting_again_replaces(blobs: Blobs) -> None:
    blobs.put("a/b", b"a longer first one")
    blobs.put("a/b", b"second")
    assert blobs.get("a/b") == b"second"
    assert blobs.list("a/") == ["a/b"]


def test_if_absent_keeps_what_is_there(blobs: Blobs) -> None:
    blobs.put("epoch-000001.json", b"first", if_absent=True)
    with pytest.raises(AlreadyExists) as caught:
        blobs.put("epoch-000001.json", b"second", if_absent=True)
    assert "epoch-000001.json" in str(caught.value)
    assert blobs.get("epoch-000001.json") == b"first"
    assert blobs.list("") == ["epoch-000001.json"]
    blobs.put("large", LARGE, if_absent=True)
    with pytest.raises(AlreadyExists):
        blobs.put("large", b"small", if_absent=True)
    assert blobs.get("large") == LARGE


def test_of_many_writers_that_create_at_once_exactly_one_wins(blobs: Blobs) -> None:
    won: list[bytes] = []
    start = threading.Barrier(8)

    def work(name: bytes) -> None:
        start.wait()
        try:
            blobs.put("epoch-000002.json", name * 1000, if_absent=True)
            won.append(name * 1000)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=work, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert blobs.get("epoch-000002.json") == won[0]


def test_a_reader_never_sees_half_of_a_write(blobs: Blobs) -> None:
    first, second = b"1" * 300_000, b"2" * 200_000
    blobs.put("state", first)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            blobs.put("state", second)
            blobs.put("state", first)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(blobs.get("state"))
        assert blobs.list("") == ["state"]
    writer.join()
    assert seen <= {first, second}


def test_what_is_not_there(blobs: Blobs) -> None:
    blobs.put("models/small/v000001.json", b"{}")
    for path in ("models/large", "models/small", "models/small/v000001.json/x", "nothing/at/all"):
        with pytest.raises(NotFound) as caught:
            blobs.get(path)
        assert path in str(caught.value)
        assert blobs.local_path(path) is None
        blobs.delete(path)
    assert blobs.list("nothing/") == []
    assert blobs.list("") == ["models/small/v000001.json"]


def test_listing_is_by_folder_and_sorted(blobs: Blobs) -> None:
    for path in ("r/b/2", "r/b/10", "r/a", "r2/c", "r/b.json"):
        blobs.put(path, b"x")
    assert blobs.list("r/") == ["r/a", "r/b.json", "r/b/10", "r/b/2"]
    assert blobs.list("r/b/") == ["r/b/10", "r/b/2"]
    assert blobs.list("") == ["r/a", "r/b.json", "r/b/10", "r/b/2", "r2/c"]


def test_delete(blobs: Blobs) -> None:
    blobs.put("a/b", b"x")
    blobs.delete("a/b")
    blobs.delete("a/b")
    with pytest.raises(NotFound):
        blobs.get("a/b")
    blobs.put("a/b", b"again", if_absent=True)
    assert blobs.get("a/b") == b"again"


BAD = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/./b",
    "a//b",
    "a/",
    "..",
    "a\\b",
    "a/x#1",
    "a\x00b",
    "a%2e",
    "a\n",
]


@pytest.mark.parametrize("path", [*BAD, "x" * 1000])
def test_a_path_stays_inside_and_is_one_that_every_store_keeps(blobs: Blobs, path: str) -> None:
    for call in (blobs.get, blobs.delete, blobs.local_path, lambda p: blobs.put(p, b"x")):
        with pytest.raises(UsageError):
            call(path)
    assert blobs.list("") == []


_examples = itertools.count()


@given(
    objects=st.dictionaries(
        st.lists(st.text("ab1._-+=@~ ()éß", min_size=1, max_size=6), min_size=1, max_size=3)
        .map("/".join)
        .filter(lambda path: not {".", ".."} & set(path.split("/"))),
        st.binary(max_size=50),
        max_size=6,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_good_path_comes_back_as_it_was(blobs: Blobs, objects: dict[str, bytes]) -> None:
    folders = {path.rsplit("/", n)[0] for path in objects for n in range(1, path.count("/") + 1)}
    here = f"{next(_examples)}/"  # the store is the same one for all examples
    kept = {here + path: data for path, data in objects.items() if path not in folders}
    for path, data in kept.items():
        blobs.put(path, data)
    assert {path: blobs.get(path) for path in blobs.list(here)} == kept
    for path in kept:
        blobs.delete(path)
    assert blobs.list(here) == []
