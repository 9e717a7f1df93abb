"""providers/azure against the fake: machines, markets, reservations, failures and what is left of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from caudal.domain.errors import NoCapacity, NotAllowed, NotOffered, QuotaExceeded, Unreachable
from caudal.domain.fleet import FleetSpec, Machine, MachineState, Market, ProviderSpec, RampStep
from caudal.providers.azure import AzureProvider
from caudal.providers.azure.bodies import vm_name
from caudal.providers.azure.provider import DOUBT_S, SWEEP_AFTER_S
from caudal.providers.azure_fake import FakeAzure
from caudal.simulate.kernel import Kernel
from caudal.spec.files import parse
from tests.support.azure import (
    CONTRACT,
    FLEET,
    GROUP,
    GROUP_ID,
    LOCATION,
    SCOPE,
    SITE,
    SIZE,
    azure_provider,
    fake_azure,
    user_data,
)


@pytest.fixture
def fake() -> FakeAzure:
    return fake_azure()


@pytest.fixture
def clock() -> Kernel:
    return Kernel()


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while not (found := holds()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)
    return found


def only(provider: AzureProvider) -> Machine | None:
    rows = provider.machines()
    return rows[0] if rows else None


def running(provider: AzureProvider) -> Machine:
    def look() -> Machine | None:
        machine = only(provider)
        return machine if machine and machine.state is MachineState.RUNNING else None

    found: Machine = until(look)
    return found


def nothing_is_left(fake: FakeAzure) -> bool:
    state = fake.admin("state")
    return not (state["machines"] or state["nics"] or state["disks"])


def full(fake: FakeAzure, count: int | None = 0, **more: Any) -> None:
    fake.admin("capacity", {"size": SIZE, "location": LOCATION, "count": count, **more})


def puts(fake: FakeAzure) -> int:
    return sum(
        1 for call in fake.admin("state")["calls"] if call.startswith("PUT") and "virtualMachines" in call
    )


def test_a_machine_from_its_beginning_to_its_end(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    provider.acquire("lease-1", provider.offers()[0], "t")
    machine = running(provider)
    assert machine == Machine(
        vm_name(FLEET, "lease-1"), "north", SIZE, MachineState.RUNNING, "lease-1", "127.0.0.1"
    )
    row = fake.admin("state")["machines"][0]
    assert row["tags"] == {
        "caudal-fleet": FLEET,
        "caudal-lease": "lease-1",
        "caudal-site": "north",
        "caudal-offer": f"az/north/{SIZE}/on_demand",
    }
    provider.release(machine.id)
    until(lambda: not provider.machines())
    assert nothing_is_left(fake)


def test_the_documented_fleet_file_and_role_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "azure.md").read_text()
    (fleet,) = parse(page.split("```yaml\n")[1].split("```")[0], "azure.md")
    assert isinstance(fleet, FleetSpec)
    assert fleet.contracts[0].provider == fleet.sites[0].provider == fleet.providers[0].name == "azure"
    role = json.loads(page.split("```json\n")[1].split("```")[0])
    assert all(action.startswith(("Microsoft.Compute/", "Microsoft.Network/")) for action in role["Actions"])
    assert not any("*" in action for action in role["Actions"])


def test_credentials_are_the_sdks_own_chain(clock: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Chain:
        """What azure-identity would give; it is built, and not asked until a call is made."""

        def __init__(self) -> None:
            asked.append("built")

    monkeypatch.setattr("caudal.providers.azure.client.DefaultAzureCredential", Chain)
    spec = ProviderSpec("az", "azure", account="s", resource_group="g")
    AzureProvider(spec, [SITE], [], "f", user_data, clock)
    assert asked == ["built"]


def test_names_fit_and_differ_by_fleet_and_lease() -> None:
    names = {vm_name(f, x) for f in ("a", "A!", "x" * 300) for x in ("l-1", "l-2")}
    assert len(names) == 6
    assert all(len(n) <= 60 and n.replace("-", "").isalnum() for n in names)


def test_a_long_running_operation_is_never_waited_for(fake: FakeAzure, clock: Kernel) -> None:
    fake.admin("times", {"boot_s": 3600, "delete_s": 3600})
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    started = time.monotonic()
    provider.acquire("lease-1", offer, "t")
    machine = only(provider)
    assert machine and machine.state is MachineState.PENDING and machine.address == ""
    provider.release(machine.id)
    machine = only(provider)
    assert machine and machine.state is MachineState.STOPPING and machine.lease_id == "lease-1"
    provider.release(machine.id)
    assert time.monotonic() - started < 8.0  # the SDK's own wait would be 30 s at least
    assert clock.elapsed() == 0


def test_spot_is_asked_for_as_spot_and_an_eviction_takes_it_off_the_list(
    fake: FakeAzure, clock: Kernel
) -> None:
    provider = azure_provider(fake, clock, markets=("spot", "on_demand"))
    on_demand, spot = provider.offers()
    assert (on_demand.market, spot.market) == (Market.ON_DEMAND, Market.SPOT)
    assert "at most" in spot.source and spot.price_usd_per_hour == on_demand.price_usd_per_hour
    provider.acquire("lease-1", spot, "t")
    machine = running(provider)
    assert fake.admin("state")["machines"][0]["priority"] == "Spot"
    fake.admin("evict", {"name": machine.id})
    until(lambda: not provider.machines())
    assert nothing_is_left(fake)


def test_a_lost_answer_gives_one_machine(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    fake.admin("fault", {"kind": "lost_answer", "method": "PUT", "path": "/virtualMachines/", "times": 1})
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", offer, "t")
    assert provider.offers()[0].available is None  # that says nothing about the offer
    provider.acquire("lease-1", offer, "t")
    machine = running(provider)
    assert fake.admin("state")["made"] == 1
    fake.admin("fault", {"kind": "lost_answer", "method": "DELETE", "times": 1})
    try:
        provider.release(machine.id)
    except Unreachable:
        pass  # nobody knows whether it arrived
    provider.release(machine.id)
    until(lambda: not provider.machines())
    assert nothing_is_left(fake)


def test_two_that_ask_for_one_lease_at_once_get_one_machine(fake: FakeAzure, clock: Kernel) -> None:
    one, two = azure_provider(fake, clock), azure_provider(fake, clock)
    offer = one.offers()[0]
    two.offers()
    one.acquire("lease-1", offer, "t")
    # The other looked before: its PUT carries another key, which without create-if-absent would be refused.
    two._create(vm_name(FLEET, "lease-1"), "lease-1", SITE, offer)
    assert running(one).id == running(two).id
    assert fake.admin("state")["made"] == 1


def test_another_fleets_machines_are_left_alone(fake: FakeAzure, clock: Kernel) -> None:
    ours, theirs = azure_provider(fake, clock), azure_provider(fake, clock, fleet="another fleet")
    theirs.acquire("lease-1", theirs.offers()[0], "t")
    nobodys = {"location": LOCATION, "properties": {"hardwareProfile": {"vmSize": SIZE}}}
    for kind, name in (("vm", "pet"), ("nic", "pet-nic"), ("disk", "pet-os"), ("disk", "data")):
        fake.admin("plant", {"kind": kind, "group": GROUP, "name": name, "body": nobodys})
    machine = running(theirs)
    assert ours.machines() == []
    for name in (machine.id, "pet"):
        with pytest.raises(NotAllowed, match="not of this fleet"):
            ours.release(name)
    clock.sleep(SWEEP_AFTER_S + 1)
    ours.machines()
    clock.sleep(SWEEP_AFTER_S + 1)
    ours.machines()
    assert running(theirs) == machine
    state = fake.admin("state")
    assert {"pet", machine.id} == {m["name"] for m in state["machines"]}
    assert "pet-nic" in state["nics"] and {"pet-os", "data"} <= set(state["disks"])


def test_a_making_that_fails_later_is_cleaned_up_and_remembered(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    full(fake, later=True)
    provider.acquire("lease-1", offer, "t")
    assert {m.state for m in provider.machines()} <= {MachineState.PENDING, MachineState.STOPPING}
    until(lambda: provider.offers()[0].available == 0)
    until(lambda: nothing_is_left(fake))
    assert provider.machines() == []
    with pytest.raises(NoCapacity, match="AllocationFailed"):
        provider.acquire("lease-1", offer, "t")
    assert puts(fake) == 1


def test_the_operation_tells_what_the_list_no_longer_shows(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    full(fake, later=True)
    provider.acquire("lease-1", provider.offers()[0], "t")
    url = f"{fake.url}{SCOPE}/Microsoft.Compute/virtualMachines/{vm_name(FLEET, 'lease-1')}"
    httpx.delete(url, params={"api-version": "2024-07-01"}, headers={"Authorization": "Bearer x"})
    until(lambda: not fake.admin("state")["machines"])
    until(lambda: provider.offers()[0].available == 0)


def test_the_next_process_cleans_up_and_remembers_too(fake: FakeAzure, clock: Kernel) -> None:
    first = azure_provider(fake, clock)
    full(fake, later=True)
    first.acquire("lease-1", first.offers()[0], "t")
    time.sleep(0.1)
    second = azure_provider(fake, clock)
    machine = only(second)
    assert machine and machine.state is MachineState.STOPPING and machine.lease_id == "lease-1"
    assert second.offers()[0].available == 0
    until(lambda: nothing_is_left(fake))


def test_a_failed_machine_that_runs_is_left_alone(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    provider.acquire("lease-1", provider.offers()[0], "t")
    machine = running(provider)
    fake.admin("fail", {"name": machine.id, "code": "VMExtensionProvisioningError", "message": "an agent"})
    for _ in range(3):
        assert only(provider) == machine
        clock.sleep(DOUBT_S)
    assert fake.admin("state")["machines"][0]["making"] == "Failed"


def test_where_azure_does_not_say_whether_it_runs_it_has_time(fake: FakeAzure, clock: Kernel) -> None:
    fake.admin("times", {"boot_s": 3600})
    provider = azure_provider(fake, clock)
    provider.acquire("lease-1", provider.offers()[0], "t")
    fake.admin("fail", {"name": vm_name(FLEET, "lease-1"), "code": "OSProvisioningTimedOut"})
    machine = only(provider)
    assert machine and machine.state is MachineState.PENDING
    clock.sleep(DOUBT_S - 1)
    assert only(provider) == machine
    clock.sleep(2)
    provider.machines()
    until(lambda: nothing_is_left(fake))


def test_a_stopped_machine_is_ended(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    provider.acquire("lease-1", provider.offers()[0], "t")
    machine = running(provider)
    fake.admin("power", {"name": machine.id, "power": "deallocating"})
    now = only(provider)
    assert now and now.state is MachineState.STOPPING
    fake.admin("power", {"name": machine.id, "power": "deallocated"})
    provider.machines()
    until(lambda: nothing_is_left(fake))


def test_what_outlives_its_machine_is_listed_and_swept(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    provider.acquire("lease-1", provider.offers()[0], "t")
    machine = running(provider)
    fake.admin("leftovers", {"keep": True})
    provider.release(machine.id)
    until(lambda: not fake.admin("state")["machines"])
    left = only(provider)
    assert left and (left.id, left.lease_id, left.state) == (machine.id, "lease-1", MachineState.STOPPING)
    clock.sleep(SWEEP_AFTER_S - 1)
    assert only(provider) == left
    clock.sleep(2)
    provider.machines()
    assert provider.machines() == [] and nothing_is_left(fake)


def test_a_refused_offer_is_not_asked_for_again_for_a_while(fake: FakeAzure, clock: Kernel) -> None:
    sites = (SITE, replace(SITE, name="south", zone="2"))
    provider = azure_provider(fake, clock, sites=sites)
    north, _ = provider.offers()
    full(fake, zone="")
    with pytest.raises(NoCapacity):
        provider.acquire("lease-1", north, "t")
    assert [o.available for o in provider.offers()] == [0, None]  # the other is asked on its own
    for _ in range(5):
        with pytest.raises(NoCapacity):
            provider.acquire("lease-1", north, "t")
    assert puts(fake) == 1
    clock.sleep(61)
    assert provider.offers()[0].available is None
    with pytest.raises(NoCapacity):
        provider.acquire("lease-1", north, "t")
    assert puts(fake) == 2
    clock.sleep(61)
    assert provider.offers()[0].available == 0  # twice in a row: twice as long
    clock.sleep(60)
    full(fake, None)
    provider.acquire("lease-1", north, "t")
    running(provider)
    assert provider.backoff.seconds_left(north.id) == 0


def test_a_refusal_after_the_last_machine_stays_when_that_machine_runs(
    fake: FakeAzure, clock: Kernel
) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    full(fake, 1)
    provider.acquire("lease-1", offer, "t")
    clock.sleep(1)
    with pytest.raises(NoCapacity):
        provider.acquire("lease-2", offer, "t")
    running(provider)
    assert provider.offers()[0].available == 0


def test_a_machine_given_back_makes_room(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    full(fake, 1)
    provider.acquire("lease-1", offer, "t")
    machine = running(provider)
    with pytest.raises(NoCapacity):
        provider.acquire("lease-2", offer, "t")
    provider.acquire("lease-1", offer, "t")  # has its machine: whatever holds against the offer
    provider.release(machine.id)
    until(lambda: not provider.machines())
    provider.acquire("lease-2", offer, "t")
    assert running(provider).lease_id == "lease-2"


def test_quota_is_the_accounts_and_waits_longer(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    fake.admin("quota", {"location": LOCATION, "name": "standardNDSH100v5Family", "limit": 96})
    provider.acquire("lease-1", offer, "t")
    with pytest.raises(QuotaExceeded, match="standardNDSH100v5Family"):
        provider.acquire("lease-2", offer, "t")
    assert provider.backoff.seconds_left(offer.id) == 600
    found = {q.name: (q.used, q.limit, q.left) for q in provider.quotas(LOCATION)}
    assert found["standardNDSH100v5Family"] == (96, 96, 0)
    assert "standardDSv5Family" not in found  # the fleet does not want them


def test_what_azure_restricts_is_not_offered(fake: FakeAzure, clock: Kernel) -> None:
    sites = tuple(replace(SITE, name=f"z{z}", zone=z) for z in ("1", "2", "9"))
    fake.admin("restrict", {"size": SIZE, "location": LOCATION, "zones": ["1"]})
    provider = azure_provider(fake, clock, sites=sites)
    assert [o.site for o in provider.offers()] == ["z2"]
    fake.admin("restrict", {"size": SIZE, "location": LOCATION})
    assert [o.site for o in provider.offers()] == ["z2"]  # sizes are asked for once an hour
    clock.sleep(3601)
    assert provider.offers() == []


def test_sizes_without_a_price_are_offered_under_a_contract_only(fake: FakeAzure, clock: Kernel) -> None:
    small = replace(CONTRACT, machine_type="Standard_NC4as_T4_v3", reference="", count=3)
    fields = {"machine_types": ("Standard_NC4as_T4_v3",), "markets": ()}
    provider = azure_provider(fake, clock, contracts=(small,), **fields)
    (offer,) = provider.offers()
    assert (offer.market, offer.price_usd_per_hour, offer.contract) == (Market.RESERVED, Decimal(50), "block")
    assert (offer.source, offer.as_of, offer.available) == ("contract block", "2020-01-01", 3)


def reserved(fake: FakeAzure, capacity: int) -> None:
    rows = [{"name": "one", "size": SIZE, "capacity": capacity, "zone": "1"}]
    rows.append({"name": "other", "size": "Standard_D2s_v5", "capacity": 50, "zone": "1"})
    fake.admin("reserve", {"group_id": GROUP_ID, "location": LOCATION, "reservations": rows})


def test_a_reservation_is_used_to_its_count_and_never_beyond(fake: FakeAzure, clock: Kernel) -> None:
    reserved(fake, 2)
    provider = azure_provider(fake, clock, markets=("reserved", "on_demand"), zone="1")
    mine, by_the_hour = provider.offers()
    assert (mine.available, by_the_hour.available) == (2, None)
    for number in (1, 2):
        provider.acquire(f"lease-{number}", mine, "t")
    assert provider.offers()[0].available == 0
    assert {m["reservation"] for m in fake.admin("state")["machines"]} == {GROUP_ID.lower()}
    # Azure would let a third one in, and bill it by the hour.
    with pytest.raises(NoCapacity):
        provider.acquire("lease-3", mine, "t")
    provider.acquire("lease-3", by_the_hour, "t")
    assert len(fake.admin("state")["machines"]) == 3


def test_others_in_the_same_reservation_count(fake: FakeAzure, clock: Kernel) -> None:
    reserved(fake, 2)
    other = azure_provider(fake, clock, fleet="another", markets=("reserved",), zone="1")
    other.acquire("lease-1", other.offers()[0], "t")
    provider = azure_provider(fake, clock, markets=("reserved",), zone="1")
    assert provider.offers()[0].available == 1


@pytest.mark.parametrize(
    ("change", "available"),
    [
        ({"count": 1}, [1]),
        ({"ramp": (RampStep("2020-01-01", 1), RampStep("2021-01-01", 2), RampStep("2099-01-01", 9))}, [2]),
        ({"ramp": (RampStep("2099-01-01", 9),)}, [0]),
        ({"end": "2020-06-01"}, []),
        ({"start": "2099-01-01"}, []),
        ({"sites": ("elsewhere",)}, []),
        ({"provider": "another"}, []),
        ({"machine_type": "Standard_D2s_v5"}, []),
    ],
)
def test_a_contract_holds_where_when_and_for_what_it_says(
    fake: FakeAzure, clock: Kernel, change: dict[str, Any], available: list[int]
) -> None:
    reserved(fake, 5)
    contract = replace(CONTRACT, **change)
    provider = azure_provider(fake, clock, contracts=(contract,), markets=("reserved",), zone="1")
    assert [o.available for o in provider.offers()] == available


def test_no_more_than_the_fleet_file_allows(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock, max_machines=1)
    (offer,) = provider.offers()
    assert offer.available == 1
    provider.acquire("lease-1", offer, "t")
    assert provider.offers()[0].available == 0
    with pytest.raises(NoCapacity, match="max_machines"):
        provider.acquire("lease-2", offer, "t")


def test_lists_come_in_pages(fake: FakeAzure, clock: Kernel) -> None:
    fake.admin("page", {"size": 1})
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    for number in range(3):
        provider.acquire(f"lease-{number}", offer, "t")
    until(lambda: [m.state for m in provider.machines()] == [MachineState.RUNNING] * 3)


def test_a_role_on_the_resource_group_alone_is_enough(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock)
    offer = provider.offers()[0]
    everywhere = f"{GROUP_ID.split('/resourceGroups')[0]}/providers/Microsoft.Compute/virtualMachines"
    text = {"code": "AuthorizationFailed", "message": "no"}
    fake.admin("fault", {"kind": "refuse", "status": 403, "path": everywhere, **text})
    provider.acquire("lease-1", offer, "t")
    assert running(provider).lease_id == "lease-1"


def test_the_list_is_read_at_most_so_often(fake: FakeAzure, clock: Kernel) -> None:
    provider = azure_provider(fake, clock, list_every_s=10.0)
    offer = provider.offers()[0]
    calls = len(fake.admin("state")["calls"])
    for _ in range(5):
        provider.machines()
        provider.offers()
    assert len(fake.admin("state")["calls"]) == calls
    provider.acquire("lease-1", offer, "t")
    assert len(provider.machines()) == 1  # a change of ours is seen at once
    fake.admin("reset", {})
    assert len(provider.machines()) == 1
    clock.sleep(10)
    assert provider.machines() == []


def test_doctor_says_what_is_wrong(fake: FakeAzure, clock: Kernel) -> None:
    fake.admin("quota", {"location": LOCATION, "name": "standardNDSH200v5Family", "limit": 0})
    fake.admin("restrict", {"size": "Standard_ND96isr_MI300X_v5", "location": LOCATION})
    kinds = ("Standard_ND96isr_H200_v5", "Standard_ND96isr_H100_v6", "Standard_ND96isr_MI300X_v5")
    gone = replace(SITE, name="gone", region="atlantis")
    sites = (replace(SITE, machine_types=kinds), gone)
    provider = azure_provider(fake, clock, sites=sites, contracts=())
    problems = provider.problems()
    texts = "\n".join(str(p) for p in problems)
    assert [type(p) for p in problems] == [NotOffered, NotOffered, QuotaExceeded, NotOffered]
    assert "did you mean 'Standard_ND96isr_H100_v5'?" in texts
    assert "may not have Standard_ND96isr_MI300X_v5" in texts
    assert "standardNDSH200v5Family" in texts and "atlantis" in texts
    assert azure_provider(fake, clock, contracts=()).problems() == []


def test_doctor_sees_a_reservation_that_is_not_there(fake: FakeAzure, clock: Kernel) -> None:
    (problem,) = azure_provider(fake, clock).problems()
    assert type(problem) is NotOffered and "block" in str(problem)


def test_doctor_stops_where_nobody_answers(fake: FakeAzure, clock: Kernel) -> None:
    fake.admin("fault", {"kind": "refuse", "status": 429})
    (problem,) = azure_provider(fake, clock).problems()
    assert type(problem) is Unreachable
