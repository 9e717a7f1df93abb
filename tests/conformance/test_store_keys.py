"""Keys and usage in every database: kept, added once, brought forward from the step before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from alembic import command
from sqlalchemy import text

from caudal.domain.errors import Stale
from caudal.domain.key import ApiKey, KeyLimits, Slo, Usage, UsageBatch, UsageHour
from caudal.ports import Change
from caudal.store.database import Database
from caudal.store.migrate import HEAD, VERSION_TABLE, config
from caudal.store.state import SqlStore, open_store
from tests.support import rows

KEY = ApiKey("key-1", "alice", "ab" * 32, 100.0, KeyLimits(slo=Slo.BATCH, models=("small",)), 200.0)
HOUR = 7200


def used(key: str = "key-1", model: str = "small", hour: int = HOUR, times: int = 1) -> UsageHour:
    return UsageHour(key, model, hour, times, 0, Usage(7 * times, 3 * times, 2 * times, 10**15 * times))


def batch(source: str, seq: int, *hours: UsageHour) -> UsageBatch:
    return UsageBatch(source, seq, hours or (used(),))


def test_keys_are_read_as_they_were_committed(store: SqlStore) -> None:
    other = ApiKey("key-0", "bob", "cd" * 32, 50.0)
    assert store.api_keys() == []
    store.commit(Change(keys=[KEY, other]))
    assert store.api_keys() == [other, KEY]
    revoked = replace(KEY, revoked_at=150.0)
    store.commit(Change(keys=[revoked]))
    assert store.api_keys() == [other, revoked]


def test_a_key_decided_on_an_old_version_is_not_kept(store: SqlStore) -> None:
    version = store.read().version
    store.commit(Change(keys=[KEY]))
    with pytest.raises(Stale):
        store.commit(Change(keys=[replace(KEY, id="key-2")]), expect_version=version)
    assert store.api_keys() == [KEY]


def test_usage_is_summed_by_key_model_and_hour(store: SqlStore) -> None:
    store.add_usage([batch("a", 1, used(), used(model="big")), batch("a", 2, used(), used("key-2"))])
    store.add_usage([batch("b", 1, used(hour=HOUR + 3600, times=4))])
    assert store.usage() == [
        used(model="big"),
        used(times=2),
        used(hour=HOUR + 3600, times=4),
        used("key-2"),
    ]
    assert store.usage(key_id="key-2") == [used("key-2")]
    assert store.usage(since=HOUR + 0.5) == [used(hour=HOUR + 3600, times=4)]
    assert store.usage(until=HOUR) == []
    assert store.usage(until=HOUR + 0.5, key_id="key-1") == [used(model="big"), used(times=2)]


def test_a_batch_counts_once_however_often_it_comes(store: SqlStore) -> None:
    one, two = batch("a", 1), batch("a", 2)
    for brought in ([one], [one], [one, two], [two], [one], [two, two], []):
        store.add_usage(brought)
    assert store.usage() == [used(times=2)]
    store.add_usage([batch("a", 7)])  # numbers may be left out, and then are never filled in
    store.add_usage([batch("a", 6)])
    assert store.usage() == [used(times=3)]


def test_large_sums_fit(store: SqlStore) -> None:
    many = UsageHour("key-1", "small", HOUR, 10**15, 10**15, Usage(10**15, 10**15, 10**15))
    store.add_usage([batch("a", 1, many), batch("a", 2, many)])
    assert store.usage() == [many.plus(many)]


def test_many_who_add_at_once_neither_lose_nor_wait_for_ever(shared_url: str) -> None:
    stores = [open_store(shared_url) for _ in range(3)]

    def add(store: SqlStore, source: str) -> None:
        for seq in range(1, 11):
            hours = (used("key-1"), used("key-2")) if source == "a" else (used("key-2"), used("key-1"))
            brought = [batch(source, seq, *hours), batch("shared", seq)]
            store.add_usage(brought if source == "a" else brought[::-1])

    threads = [
        threading.Thread(target=add, args=(s, name)) for s, name in zip(stores, ("a", "b", "c"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = stores[0].usage()
    for one in stores:
        one.close()
    assert found[1] == used("key-2", times=30)
    # Of the source that all three bring, in the same order each, every number counts once.
    assert found[0] == used("key-1", times=40)


def test_it_is_there_after_opening_again(shared_url: str) -> None:
    first = open_store(shared_url)
    first.commit(Change(keys=[KEY]))
    first.add_usage([batch("a", 1)])
    first.close()
    second = open_store(shared_url)
    second.add_usage([batch("a", 1)])
    assert (second.api_keys(), second.usage()) == ([KEY], [used()])
    second.close()


def test_a_database_without_keys_is_brought_forward(shared_url: str) -> None:
    database = Database(shared_url)
    with database.writing() as connection:
        command.upgrade(config(connection), "0001")
    with database.writing() as connection:
        insert = "INSERT INTO workloads (name, kind, state, doc) VALUES (:name, 'train', 'pending', :doc)"
        seed = open_store("sqlite://")
        seed.commit(Change(workloads=[rows.run()]))
        with seed._database.reading() as memory:
            doc = memory.execute(text("SELECT doc FROM workloads")).scalar_one()
        connection.execute(text(insert), {"name": rows.run().name, "doc": doc})
    store = open_store(shared_url)
    assert (store.read().workloads, store.api_keys(), store.usage()) == ((rows.run(),), [], [])
    store.commit(Change(keys=[KEY]))
    assert store.api_keys() == [KEY]
    with database.reading() as connection:
        step = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one()
    assert step == HEAD
    database.close()
    store.close()


def test_what_others_forget_is_committed_to_the_disk(new_url: Callable[[], str]) -> None:
    database = Database(new_url())
    if database.sqlite:
        for durable, level in ((False, 1), (True, 2), (False, 1)):
            with database.writing(durable) as connection:
                assert connection.execute(text("PRAGMA synchronous")).scalar_one() == level
    database.close()
