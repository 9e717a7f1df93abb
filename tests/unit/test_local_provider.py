"""providers/local.py: one machine per site, held by one lease, in a list that outlives us."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path

import pytest

from caudal.domain.errors import NoCapacity, Unreachable
from caudal.domain.fleet import Machine, MachineState, Market, Offer, SiteSpec
from caudal.providers.local import LocalProvider

GIB = 1 << 30
SITES = (SiteSpec("north"), SiteSpec("south"), SiteSpec("rented", provider="aws"))


def provider(path: Path) -> LocalProvider:
    return LocalProvider(path / "machines", SITES, cpus=2, memory_bytes=8 * GIB, as_of="2026-11-22")


def offer(source: LocalProvider, site: str) -> Offer:
    return next(o for o in source.offers() if o.site == site)


def test_the_machine_is_shared_out_between_its_sites(tmp_path: Path) -> None:
    offers = provider(tmp_path).offers()
    assert [o.site for o in offers] == ["north", "south"]
    assert sum(o.machine_type.resources.cpus for o in offers) == 2
    assert sum(o.machine_type.resources.memory_bytes for o in offers) == 8 * GIB
    assert {(o.market, o.price_usd_per_hour, o.available, o.as_of) for o in offers} == {
        (Market.OWN, Decimal(0), 1, "2026-11-22")
    }


def test_acquire_and_release(tmp_path: Path) -> None:
    source = provider(tmp_path)
    wanted = offer(source, "north")
    assert source.machines() == []
    source.acquire("lease-1", wanted, "t-1")
    (machine,) = source.machines()
    assert machine == Machine(
        machine.id, "north", wanted.machine_type.name, MachineState.RUNNING, "lease-1", "127.0.0.1"
    )
    assert offer(source, "north").available == 0 and offer(source, "south").available == 1
    source.release(machine.id)
    source.release(machine.id)
    assert source.machines() == [] and offer(source, "north").available == 1


def test_the_same_lease_or_token_gets_no_second_machine(tmp_path: Path) -> None:
    source = provider(tmp_path)
    source.acquire("lease-1", offer(source, "north"), "t-1")
    before = source.machines()
    source.acquire("lease-1", offer(source, "north"), "t-1")
    source.acquire("lease-1", offer(source, "north"), "t-2")
    source.acquire("lease-1", offer(source, "south"), "t-3")
    assert source.machines() == before


def test_another_lease_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    source = provider(tmp_path)
    source.acquire("lease-1", offer(source, "north"), "t-1")
    before = source.machines()
    with pytest.raises(NoCapacity, match="lease-1"):
        source.acquire("lease-2", offer(source, "north"), "t-2")
    assert source.machines() == before


def test_a_site_of_somebody_else_is_refused(tmp_path: Path) -> None:
    source = provider(tmp_path)
    foreign = Offer(
        "x", "rented", offer(source, "north").machine_type, Market.SPOT, Decimal(1), "aws", "2026-11-22"
    )
    with pytest.raises(NoCapacity, match="rented"):
        source.acquire("lease-1", foreign, "t-1")


def test_a_late_release_does_not_take_the_next_leases_machine(tmp_path: Path) -> None:
    source = provider(tmp_path)
    source.acquire("lease-1", offer(source, "north"), "t-1")
    (first,) = source.machines()
    source.release(first.id)
    source.acquire("lease-2", offer(source, "north"), "t-2")
    source.release(first.id)
    assert [m.lease_id for m in source.machines()] == ["lease-2"]


def test_another_control_process_sees_the_same_list(tmp_path: Path) -> None:
    first = provider(tmp_path)
    first.acquire("lease-1", offer(first, "south"), "t-1")
    assert provider(tmp_path).machines() == first.machines()


def test_a_site_that_left_the_fleet_is_still_listed_and_can_be_released(tmp_path: Path) -> None:
    first = provider(tmp_path)
    first.acquire("lease-1", offer(first, "south"), "t-1")
    smaller = LocalProvider(tmp_path / "machines", SITES[:1], 2, 8 * GIB, "2026-11-22")
    assert [m.site for m in smaller.machines()] == ["south"]
    smaller.release(smaller.machines()[0].id)
    assert smaller.machines() == []


def test_of_many_leases_at_once_one_gets_it(tmp_path: Path) -> None:
    wanted = offer(provider(tmp_path), "north")
    outcomes: list[str] = []

    def ask(number: int) -> None:
        try:
            provider(tmp_path).acquire(f"lease-{number}", wanted, f"t-{number}")
            outcomes.append("got")
        except NoCapacity:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["got"] + ["refused"] * 15
    assert len(provider(tmp_path).machines()) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"id": "x"}'])
def test_a_damaged_list_is_an_unknown_list_not_an_empty_one(tmp_path: Path, damage: str) -> None:
    source = provider(tmp_path)
    source.acquire("lease-1", offer(source, "north"), "t-1")
    (tmp_path / "machines" / "north.json").write_text(damage)
    with pytest.raises(Unreachable, match=r"north\.json"):
        source.machines()


def test_a_folder_that_cannot_be_read_is_an_unknown_list(tmp_path: Path) -> None:
    (tmp_path / "machines").write_text("not a folder")
    with pytest.raises(Unreachable):
        provider(tmp_path).machines()
