"""One object store kept in two or more places: `URL URL`, the first of which decides.

The first store is the arbiter: what is created only if absent is created there, and nobody wins elsewhere. What it
took is copied to the others before the call returns; a store that does not answer is owed the object, and gets it
when it is back. Reads ask the first, and the others where it does not answer. While the first is away nothing is
written: sites go on computing, and commit when it is back, or when an operator has made another store the first
(`caudal stores promote`, with the addresses in the new order).

A marker object in each store says whose mirror it is and under which term its order holds. A store whose marker
is gone has lost its objects; one of an older term was overtaken. Neither is written to before it is repaired.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from caudal.domain.errors import AlreadyExists, CaudalError, NotFound, StorageFailed, Unreachable
from caudal.ports import Blobs

T = TypeVar("T")

AWAY = (StorageFailed, Unreachable)

MARKER = "caudal-mirror.json"
CHECK_S = 5.0
"""How often the others are asked whether they have been promoted meanwhile, and whether they are back."""

MOST_OWED = 100_000
"""Paths that are remembered; beyond that only a repair knows what is missing."""


class Marker(msgspec.Struct, frozen=True):
    """`id` is the same in all stores of a mirror; `first` is the address of the store that decides; of two terms
    the higher holds."""

    id: str
    term: int
    first: str


class Mirror:
    """`ports.Blobs` over several. `tell` is given a line when a store goes away or comes back."""

    def __init__(self, stores: tuple[Blobs, ...], tell: Callable[[str], None] | None = None) -> None:
        self.stores, self._first, self._others = stores, stores[0], stores[1:]
        self.url = " ".join(store.url for store in stores)
        self._tell = tell or (lambda text: print(text, file=sys.stderr, flush=True))
        self._owed: dict[int, dict[str, None]] = {k: {} for k in range(len(self._others))}
        self._lock = threading.RLock()
        self._checked_at = -CHECK_S
        self._overtaken = ""
        self._settler: threading.Thread | None = None

    # ---- writing ------------------------------------------------------------------------------------------

    def put(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """As `Blobs.put`. Raises StorageFailed where the first store may not decide."""
        self._check()
        self._first.put(path, data, if_absent=if_absent)
        self._copy(path, lambda store: store.put(path, data))

    def put_file(self, path: str, file: Path, *, if_absent: bool = False) -> None:
        """As `Blobs.put_file`."""
        self._check()
        self._first.put_file(path, file, if_absent=if_absent)
        self._copy(path, lambda store: store.put_file(path, file))

    def delete(self, path: str) -> None:
        """As `Blobs.delete`."""
        self._check()
        self._first.delete(path)
        self._copy(path, lambda store: store.delete(path))

    def _copy(self, path: str, do: Callable[[Blobs], None]) -> None:
        for number, store in enumerate(self._others):
            if self._owed[number]:  # it is away: asking it at every write would slow all down
                self._owe(number, path)
                continue
            try:
                do(store)
            except (*AWAY, NotFound) as error:  # its bucket may be gone
                self._away(number, path, error)

    def _away(self, number: int, path: str, error: CaudalError) -> None:
        url = self._others[number].url
        self._tell(f"{url} is away and will be given what it misses: {error.one_line()}")
        self._owe(number, path)

    def _owe(self, number: int, path: str) -> None:
        with self._lock:
            owed = self._owed[number]
            if len(owed) < MOST_OWED:
                owed[path] = None
            if self._settler is None:
                self._settler = threading.Thread(target=self._settle_all, name="mirror", daemon=True)
                self._settler.start()

    def _settle_all(self) -> None:
        """Give the others what they are owed, until they have it. A thread's work."""
        while True:
            time.sleep(CHECK_S)
            for number, store in enumerate(self._others):
                self._settle(number, store)
            with self._lock:
                if not any(self._owed.values()):
                    self._settler = None
                    return

    def _settle(self, number: int, store: Blobs) -> None:
        owed = self._owed[number]
        try:
            mine, theirs = _marker(self._first), _marker(store)
            if mine and theirs and not _may_decide(mine, theirs):
                self._overtaken = store.url
                return
            while owed:
                path = next(iter(owed))
                self._give(store, path)
                with self._lock:
                    owed.pop(path)
                    if not owed:
                        self._tell(f"{store.url} is here and has all that it missed")
        except (*AWAY, NotFound):
            return

    def _give(self, store: Blobs, path: str) -> None:
        try:
            data = self._first.get(path)
        except NotFound:
            store.delete(path)
            return
        store.put(path, data)

    # ---- reading ------------------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        """As `Blobs.get`."""
        return self._asked(lambda store: store.get(path))

    def get_file(self, path: str, target: Path) -> None:
        """As `Blobs.get_file`."""
        self._asked(lambda store: store.get_file(path, target))

    def list(self, prefix: str) -> list[str]:
        """As `Blobs.list`."""
        return [path for path in self._asked(lambda store: store.list(prefix)) if path != MARKER]

    def local_path(self, path: str) -> Path | None:
        """As `Blobs.local_path`, of the first store."""
        return self._first.local_path(path)

    def _asked(self, ask: Callable[[Blobs], T]) -> T:
        """What the first store answers that does; a store that lost its objects is none."""
        problem: StorageFailed | Unreachable | None = None
        for store in self.stores:
            try:
                return ask(store)
            except NotFound:
                if store is self._first:
                    self._check()  # not there, or nothing there any more
                raise
            except AWAY as error:
                problem = problem or error
        assert problem is not None
        raise problem

    # ---- who decides --------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Whether the first store may decide. Raises StorageFailed, Unreachable."""
        with self._lock:
            if time.monotonic() - self._checked_at < CHECK_S and not self._overtaken:
                return
            mine, new = _marker(self._first), list[Blobs]()
            for number, store in enumerate(self._others):
                if self._owed[number]:
                    continue  # away: it is looked at when it is back
                try:
                    theirs = _marker(store)
                except AWAY as error:
                    self._away(number, MARKER, error)
                    continue
                if theirs is None:
                    new.append(store)
                elif mine is None or not _may_decide(mine, theirs):
                    self._overtaken = store.url
            if mine is not None and mine.first != self._first.url:
                self._overtaken = mine.first
            if self._overtaken:
                raise StorageFailed(
                    "this store may not decide what is written",
                    where=self._first.url,
                    why=f"{self._overtaken} was promoted, or this store has lost its objects",
                    remedy="name the store that has the objects first in CAUDAL_BLOBS_URL, then `caudal stores "
                    "repair`; where the other is gone for good, `caudal stores promote` before",
                )
            if mine is None:
                self._begin()
            elif new:
                data = msgspec.json.encode(mine)
                self._copy(MARKER, lambda store: store.put(MARKER, data))
                for store in new:
                    self._tell(
                        f"{store.url} is new here: `caudal stores repair` gives it what there was before"
                    )
            self._checked_at = time.monotonic()

    def _begin(self) -> None:
        """A new mirror's first marker, unless another process was faster."""
        data = msgspec.json.encode(Marker(secrets.token_hex(8), 1, self._first.url))
        try:
            self._first.put(MARKER, data, if_absent=True)
        except AlreadyExists:
            data = self._first.get(MARKER)
        self._copy(MARKER, lambda store: store.put(MARKER, data))

    # ---- what operators ask for ---------------------------------------------------------------------------

    def repair(self) -> dict[str, int]:
        """Make the others what the first is; returns how many objects each was given. Objects that the first
        does not have are left alone. Raises StorageFailed where the first may not decide."""
        self._checked_at = -CHECK_S
        self._check()
        given = {store.url: 0 for store in self._others}
        for path in self._first.list(""):
            data = self._first.get(path)
            for store in self._others:
                try:
                    same = store.get(path) == data
                except NotFound:
                    same = False
                if not same:
                    store.put(path, data)
                    given[store.url] += 1
        return given

    def promote(self) -> Marker:
        """Make the first store the one that decides, under a new term. Those that answer are told, so that who
        still takes another for the first stops within seconds; one that does not answer must be gone."""
        mine = _marker(self._first)
        if mine is None:
            raise StorageFailed(
                "a store without this mirror's objects cannot be promoted",
                where=self._first.url,
                remedy="name the store that has them first",
            )
        terms = [mine.term]
        for store in self._others:
            try:
                theirs = _marker(store)
            except AWAY as error:
                self._tell(f"{store.url} does not answer, so it must be gone: {error.one_line()}")
                continue
            if theirs and theirs.id == mine.id:
                terms.append(theirs.term)
        marker = Marker(mine.id, max(terms) + 1, self._first.url)
        data = msgspec.json.encode(marker)
        self._first.put(MARKER, data)
        for store in self._others:
            try:
                if (there := _marker(store)) and there.id == marker.id:
                    store.put(MARKER, data)
            except AWAY as error:
                self._tell(f"{store.url} was not told: {error.one_line()}")
        return marker


def _may_decide(first: Marker, other: Marker) -> bool:
    return first.id == other.id and first.term >= other.term


def _marker(store: Blobs) -> Marker | None:
    """What a store says of itself; None where it was never part of a mirror. Raises StorageFailed."""
    try:
        return msgspec.json.decode(store.get(MARKER), type=Marker)
    except NotFound:
        return None
    except msgspec.DecodeError as error:
        raise StorageFailed("the marker of a mirror is damaged", where=store.url, why=str(error)) from None
