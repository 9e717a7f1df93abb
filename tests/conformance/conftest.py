"""What the conformance suites run on: every database and every object store that this machine can offer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caudal.store.state import SqlStore, open_store
from tests.support import ray_site
from tests.support.postgres import new_schema, postgres
from tests.support.slurm import slurm

__all__ = ["postgres", "slurm"]  # fixtures

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_ray_site() -> Iterator[None]:
    """Ends the session's Ray cluster, if a test has started it."""
    yield
    ray_site.SHARED.close()


@pytest.fixture(params=["file", "memory", "postgres"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of a database that nobody has used, as often as it is called."""
    if request.param == "file":
        return lambda: f"sqlite:///{tmp_path / f'{next(_numbers)}.db'}"
    if request.param == "memory":
        return lambda: "sqlite://"
    postgres_url = request.getfixturevalue("postgres")
    return lambda: new_schema(postgres_url)


@pytest.fixture
def shared_url(new_url: Callable[[], str]) -> str:
    """The URL of a database that several processes can open."""
    url = new_url()
    if url == "sqlite://":
        pytest.skip("a database in memory belongs to one process")
    return url


@pytest.fixture
def store(new_url: Callable[[], str]) -> Iterator[SqlStore]:
    """An empty store."""
    opened = open_store(new_url())
    yield opened
    opened.close()
