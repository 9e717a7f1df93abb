"""What every provider promises: `ports.Provider`, said as tests."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from caudal.domain.errors import NoCapacity
from caudal.domain.fleet import Machine, MachineState, Offer
from tests.conformance.ports import PROVIDERS, ProviderCase, unreachable


@pytest.fixture(params=PROVIDERS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProviderCase]:
    with request.param(tmp_path) as built:
        yield built


def offer(case: ProviderCase) -> Offer:
    """The first thing that can be had."""
    return case.provider.offers()[0]


def listed(case: ProviderCase, lease_id: str) -> list[Machine]:
    """The machines that carry a lease's tag."""
    return [m for m in case.provider.machines() if m.lease_id == lease_id]


def running(case: ProviderCase, lease_id: str) -> Machine:
    """Wait until the lease's machine runs."""
    return case.until(
        lambda: next((m for m in listed(case, lease_id) if m.state is MachineState.RUNNING), None)
    )


def test_offers_are_complete(case: ProviderCase) -> None:
    offers = case.provider.offers()
    assert offers
    assert len({o.id for o in offers}) == len(offers)
    for one in offers:
        assert one.site and one.machine_type.name and one.source and one.as_of
        assert one.machine_type.resources.cpus > 0
        assert one.machine_type.resources.memory_bytes > 0
        assert isinstance(one.price_usd_per_hour, Decimal) and one.price_usd_per_hour >= 0
        assert one.available is None or one.available >= 0


def test_nothing_is_held_at_first(case: ProviderCase) -> None:
    assert [m for m in case.provider.machines() if m.lease_id] == []


def test_an_acquired_machine_runs_in_the_end(case: ProviderCase) -> None:
    wanted = offer(case)
    case.provider.acquire("lease-1", wanted, "token-1")
    machine = running(case, "lease-1")
    assert machine.site == wanted.site
    assert machine.machine_type == wanted.machine_type.name


def test_the_same_token_gives_one_machine(case: ProviderCase) -> None:
    wanted = offer(case)
    for _ in range(3):
        case.provider.acquire("lease-1", wanted, "token-1")
    running(case, "lease-1")
    case.provider.acquire("lease-1", wanted, "token-1")
    case.pass_time(2.0 if case.patience_s > 10 else 0.1)
    assert len(listed(case, "lease-1")) == 1


def test_a_lease_that_has_a_machine_gets_no_second_one(case: ProviderCase) -> None:
    case.provider.acquire("lease-1", offer(case), "token-1")
    case.provider.acquire("lease-1", offer(case), "another token")
    running(case, "lease-1")
    assert len(listed(case, "lease-1")) == 1


def test_two_leases_have_two_machines(case: ProviderCase) -> None:
    wanted = offer(case)
    if wanted.available is not None and wanted.available < 2:
        wanted = next((o for o in case.provider.offers() if o.id != wanted.id), wanted)
        case.provider.acquire("lease-2", wanted, "token-2")
        case.provider.acquire("lease-1", offer(case), "token-1")
    else:
        case.provider.acquire("lease-1", wanted, "token-1")
        case.provider.acquire("lease-2", wanted, "token-2")
    assert running(case, "lease-1").id != running(case, "lease-2").id


def test_a_released_machine_leaves_the_list(case: ProviderCase) -> None:
    case.provider.acquire("lease-1", offer(case), "token-1")
    machine = running(case, "lease-1")
    case.provider.release(machine.id)
    case.provider.release(machine.id)
    case.until(lambda: not listed(case, "lease-1"))
    case.provider.release(machine.id)


def test_releasing_nobody_is_fine(case: ProviderCase) -> None:
    case.provider.release("no-such-machine")


def test_room_comes_back_with_a_release(case: ProviderCase) -> None:
    if case.limit is None:
        pytest.skip("this provider cannot be told how much it has")
    case.limit(1)
    wanted = offer(case)
    assert wanted.available == 1
    case.provider.acquire("lease-1", wanted, "token-1")
    assert offer(case).available == 0
    with pytest.raises(NoCapacity):
        case.provider.acquire("lease-2", wanted, "token-2")
    case.provider.acquire("lease-1", wanted, "token-1")  # has its machine already: nothing is asked for
    case.provider.release(running(case, "lease-1").id)
    case.until(lambda: not listed(case, "lease-1"))
    case.provider.acquire("lease-2", wanted, "token-2")
    running(case, "lease-2")


def test_the_next_control_process_sees_the_same_list(case: ProviderCase) -> None:
    case.provider.acquire("lease-1", offer(case), "token-1")
    machine = running(case, "lease-1")
    provider = case.again()
    assert machine in provider.machines()
    provider.acquire("lease-1", offer(case), "token-1")
    assert len(listed(case, "lease-1")) == 1


def test_without_contact_nothing_is_known_and_nothing_changes(case: ProviderCase) -> None:
    if case.silence is None:
        pytest.skip("this provider cannot lose contact: it is in the same process")
    wanted = offer(case)
    case.provider.acquire("lease-1", wanted, "token-1")
    machine = running(case, "lease-1")
    case.silence(True)
    unreachable(case.provider.machines)
    unreachable(case.provider.offers)
    unreachable(lambda: case.provider.acquire("lease-2", wanted, "token-2"))
    unreachable(lambda: case.provider.release(machine.id))
    case.silence(False)
    assert case.provider.machines() == [machine]
