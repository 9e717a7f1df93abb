"""Reads from the nearest store of a mirror: the next one answers where it cannot."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from caudal.domain.errors import NotFound, Unreachable
from caudal.store.blobs import ObjectBlobs, open_blobs
from caudal.store.mirror import Mirror
from caudal.store.nearest import Nearest, nearest


class Far:
    """A store that answers late, or not at all; it counts what it is asked."""

    def __init__(self, inner: ObjectBlobs, delay_s: float) -> None:
        self.inner, self.url, self.delay_s, self.away, self.asked = inner, inner.url, delay_s, False, 0

    def get(self, path: str) -> bytes:
        self.asked += 1
        time.sleep(self.delay_s)
        if self.away:
            raise Unreachable(f"{self.url} is away")
        return self.inner.get(path)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Mirror, Far, Far]:
    far = Far(open_blobs((tmp_path / "far").as_uri()), 0.05)  # type: ignore[arg-type]
    near = Far(open_blobs((tmp_path / "near").as_uri()), 0.0)  # type: ignore[arg-type]
    mirror = Mirror((far, near), lambda _: None)  # type: ignore[arg-type]
    mirror.put("states/x", b"state")
    return mirror, far, near


def test_the_nearest_is_asked_first_and_the_others_where_it_cannot_answer(
    two: tuple[Mirror, Far, Far],
) -> None:
    mirror, far, near = two
    blobs = nearest(mirror)
    assert isinstance(blobs, Nearest) and blobs.stores[0] is near
    asked = far.asked
    assert blobs.get("states/x") == b"state" and far.asked == asked
    near.inner.delete("states/x")  # owed to it still
    assert blobs.get("states/x") == b"state" and far.asked == asked + 1
    near.away = True
    assert blobs.get("states/x") == b"state"


def test_that_an_object_is_nowhere_is_only_said_where_all_stores_say_so(two: tuple[Mirror, Far, Far]) -> None:
    mirror, far, _ = two
    blobs = nearest(mirror)
    with pytest.raises(NotFound):
        blobs.get("states/y")
    far.away = True
    with pytest.raises(Unreachable):
        blobs.get("states/y")


def test_a_store_that_does_not_answer_comes_last_and_writes_are_the_mirrors(
    two: tuple[Mirror, Far, Far],
) -> None:
    mirror, far, near = two
    near.away = True
    blobs = nearest(mirror)
    assert isinstance(blobs, Nearest) and blobs.stores[0] is far
    near.away = False
    blobs.put("states/z", b"new", if_absent=True)
    assert far.inner.get("states/z") == near.inner.get("states/z") == b"new"


def test_a_single_store_is_what_it_is(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path.as_uri())
    assert nearest(blobs) is blobs
