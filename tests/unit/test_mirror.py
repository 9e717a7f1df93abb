"""Two stores as one: who decides, what happens while one is away, and that none is ever ahead of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.cli.stores import verb
from caudal.domain.errors import AlreadyExists, NotFound, StorageFailed, Unreachable, UsageError
from caudal.store import mirror as module
from caudal.store.blobs import ObjectBlobs, open_blobs, open_store_at
from caudal.store.mirror import MARKER, Mirror


class Shaky:
    """A store in memory that can be away."""

    def __init__(self, url: str) -> None:
        self.url, self.away = url, False
        self.inner: ObjectBlobs = open_store_at("memory://")

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise Unreachable(f"{self.url} is away")
        return getattr(self.inner, name)

    def content(self) -> dict[str, bytes]:
        return {path: self.inner.get(path) for path in self.inner.list("")}


class Pair:
    """Two stores, and mirrors over them in either order; no time passes by itself."""

    def __init__(self) -> None:
        self.one, self.two = Shaky("mem://one"), Shaky("mem://two")
        self.told: list[str] = []

    def open(self, *, turned: bool = False) -> Mirror:
        stores = (self.two, self.one) if turned else (self.one, self.two)
        return Mirror(stores, self.told.append)  # type: ignore[arg-type]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    monkeypatch.setattr(module.threading, "Thread", NoThread)
    return Pair()


class NoThread:
    """What is owed is given when the test says so."""

    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None: ...


def settle(mirror: Mirror) -> None:
    for number, store in enumerate(mirror._others):
        mirror._settle(number, store)


def test_everything_is_in_both(pair: Pair) -> None:
    mirror = pair.open()
    mirror.put("a", b"1")
    mirror.put("b", b"2", if_absent=True)
    with pytest.raises(AlreadyExists):
        mirror.put("b", b"3", if_absent=True)
    mirror.delete("a")
    assert pair.one.content() == pair.two.content()
    assert mirror.list("") == ["b"] and mirror.get("b") == b"2"


def test_what_the_second_misses_it_is_given_later(pair: Pair) -> None:
    mirror = pair.open()
    mirror.put("a", b"1")
    pair.two.away = True
    mirror.put("a", b"2")
    mirror.put("b", b"3", if_absent=True)
    mirror.delete("a")
    assert len([line for line in pair.told if "is away" in line]) == 1
    settle(mirror)
    pair.two.away = False
    assert "b" not in pair.two.content()
    settle(mirror)
    assert pair.one.content() == pair.two.content() and "has all that it missed" in pair.told[-1]


def test_while_the_first_is_away_all_is_read_and_nothing_written(pair: Pair) -> None:
    mirror = pair.open()
    mirror.put("a", b"1")
    pair.one.away = True
    assert mirror.get("a") == b"1" and mirror.list("") == ["a"]
    for write in (lambda: mirror.put("c", b"", if_absent=True), lambda: mirror.delete("a")):
        with pytest.raises(Unreachable):
            write()
    assert set(pair.two.content()) == {"a", MARKER}
    pair.one.away = False
    mirror.put("c", b"", if_absent=True)


def test_a_first_store_that_lost_everything_decides_nothing(pair: Pair) -> None:
    pair.open().put("ledger/1", b"first", if_absent=True)
    pair.one.inner = open_store_at("memory://")
    mirror = pair.open()
    with pytest.raises(StorageFailed, match="may not decide"):
        mirror.put("ledger/1", b"another", if_absent=True)
    with pytest.raises(StorageFailed, match="may not decide"):
        mirror.get("ledger/1")  # "there is no such round" would be a lie
    assert pair.two.content()["ledger/1"] == b"first"


def test_a_promoted_store_decides_and_the_old_first_is_fenced(pair: Pair) -> None:
    old = pair.open()
    old.put("ledger/1", b"1", if_absent=True)
    pair.one.away = True
    new = pair.open(turned=True)
    with pytest.raises(StorageFailed, match="may not decide"):
        new.put("ledger/2", b"new", if_absent=True)
    assert new.promote().term == 2
    new = pair.open(turned=True)
    new.put("ledger/2", b"new", if_absent=True)
    pair.one.away = False
    with pytest.raises(StorageFailed, match="promoted"):
        old.put("ledger/2", b"old", if_absent=True)
    settle(new)
    assert pair.one.content() == pair.two.content()
    for late in (old, pair.open()):
        with pytest.raises(StorageFailed, match="may not decide"):
            late.put("ledger/3", b"old", if_absent=True)
    new.put("ledger/3", b"new", if_absent=True)
    assert pair.one.content()["ledger/3"] == b"new"


def test_repair_fills_what_a_crash_left_owed(pair: Pair) -> None:
    mirror = pair.open()
    mirror.put("a", b"1")
    pair.two.away = True
    mirror.put("a", b"2")
    mirror.put("b", b"3")
    pair.two.away = False
    assert pair.open().repair() == {"mem://two": 2}  # another process: what was owed is forgotten
    assert pair.one.content() == pair.two.content()
    assert pair.open().repair() == {"mem://two": 0}


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "create", "away", "back", "crash", "delete"]), st.integers(0, 3)),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(ACTIONS)
def test_whoever_is_away_when_nothing_created_is_ever_two_things(actions: list[tuple[str, int]]) -> None:
    module.CHECK_S, kept = 0.0, module.CHECK_S
    thread, module.threading.Thread = module.threading.Thread, NoThread  # type: ignore[misc,assignment]
    try:
        pair, created, mirror = Pair(), dict[str, bytes](), None
        mirror = pair.open()
        for number, (action, which) in enumerate(actions):
            path, data, shaky = f"p{which}", f"{number}".encode(), (pair.one, pair.two)[which % 2]
            try:
                if action == "create":
                    mirror.put(f"c{which}", data, if_absent=True)
                    assert f"c{which}" not in created
                    created[f"c{which}"] = data
                elif action == "put":
                    mirror.put(path, data)
                elif action == "delete":
                    mirror.delete(path)
                elif action == "crash":
                    mirror = pair.open()
                else:
                    shaky.away = action == "away"
                    settle(mirror)
            except AlreadyExists:
                assert f"c{which}" in created
            except Unreachable:
                assert pair.one.away
            for name, value in created.items():
                try:
                    assert mirror.get(name) == value
                except (Unreachable, NotFound):
                    assert pair.one.away or pair.two.away
        pair.one.away = pair.two.away = False
        final = pair.open()
        final.put("last", b"")
        settle(final)
        final.repair()
        ours = pair.one.content()
        assert {k: v for k, v in pair.two.content().items() if k in ours} == ours
        assert {k: ours[k] for k in created} == created
    finally:
        module.CHECK_S, module.threading.Thread = kept, thread  # type: ignore[misc]


def test_addresses_make_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (tmp_path / "one").as_uri(), (tmp_path / "two").as_uri()
    assert isinstance(open_blobs(f"{one}  {two}"), Mirror) and isinstance(open_blobs(one), ObjectBlobs)
    with pytest.raises(UsageError, match="twice"):
        open_blobs(f"{one} {one}")
    open_blobs(f"{one} {two}").put("runs/x", b"x")
    (tmp_path / "two" / "runs" / "x").unlink()
    monkeypatch.setenv("CAUDAL_BLOBS_URL", f"{one} {two}")
    done = CliRunner().invoke(verb, ["repair"])
    assert done.exit_code == 0 and "1 objects given" in done.output, done.output
    monkeypatch.setenv("CAUDAL_BLOBS_URL", f"{two} {one}")
    done = CliRunner().invoke(verb, ["promote"])
    assert done.exit_code == 0 and "under term 2" in done.output, done.output
