"""Reservations, blocks and spot: what is left, what draws on what, and when a machine is taken back."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from caudal.domain.errors import NoCapacity
from caudal.domain.fleet import Contract, Market, Offer, RampStep
from caudal.providers.aws.contracts import count_on, holds
from caudal.providers.aws.provider import AwsProvider
from caudal.providers.aws.rows import BLOCK_EARLY_S, SPOT_NOTICE_S
from tests.support.aws import REGION, ZONE, Aws, fresh_aws, reserved, site

P5 = "p5.48xlarge"


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


def of(provider: AwsProvider, market: Market) -> Offer:
    return next(o for o in provider.offers() if o.market is market)


def test_committed_capacity_comes_first_and_is_counted(aws: Aws) -> None:
    provider = aws.provider(contracts=[reserved(aws.reserve(3), 3)])
    first = provider.offers()[0]
    assert (first.market, first.available, first.contract) == (Market.RESERVED, 3, "steady")
    assert str(first.price_usd_per_hour) == "0.05" and first.source == "contract steady"
    for number in range(3):
        provider.acquire(f"lease-{number}", first, f"token-{number}")
        assert provider.offers()[0].available == 2 - number
    with pytest.raises(NoCapacity):
        provider.acquire("lease-9", first, "token-9")
    assert {run["CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId"]
            for run in aws.calls("RunInstances")} == {provider._contracts["steady"].reference}  # fmt: skip


@pytest.mark.parametrize(("reserved_count", "contracted", "left"), [(5, 2, 2), (2, 5, 2), (0, 5, 0)])
def test_the_smaller_number_counts(aws: Aws, reserved_count: int, contracted: int, left: int) -> None:
    reference = aws.reserve(1)
    aws.admin("reservation", id=reference, count=reserved_count)
    assert aws.provider(contracts=[reserved(reference, contracted)]).offers()[0].available == left


def test_what_a_contract_holds_elsewhere_counts(aws: Aws) -> None:
    reference = aws.reserve(5)
    provider = aws.provider([site(), site("twin")], [reserved(reference, 2)])
    north = next(o for o in provider.offers() if o.contract and o.site == "north")
    provider.acquire("lease-1", north, "token-1")
    provider.machines()
    assert {o.site: o.available for o in provider.offers() if o.contract} == {"north": 1, "twin": 1}


def test_on_demand_leaves_reservations_alone(aws: Aws) -> None:
    provider = aws.provider(contracts=[reserved(aws.reserve(2, match="open"), 2)])
    provider.acquire("lease-1", of(provider, Market.ON_DEMAND), "token-1")
    assert of(provider, Market.RESERVED).available == 2


def test_open_reservations_are_used_up_and_then_refused(aws: Aws) -> None:
    aws.reserve(1, match="open")
    aws.reserve(1, match="open")
    aws.reserve(7, match="targeted")
    provider = aws.provider(contracts=[reserved("open", 5)])
    offer = of(provider, Market.RESERVED)
    assert offer.available == 2
    for number in range(2):
        provider.acquire(f"lease-{number}", offer, f"token-{number}")
    with pytest.raises(NoCapacity):  # and no machine on demand in its place
        provider.acquire("lease-9", offer, "token-9")
    assert len(provider.machines()) == 2


@pytest.mark.parametrize(
    "why",
    ["no such reservation", "another zone", "another type", "cancelled", "another kind", "not this site"],
)
def test_a_reservation_that_does_not_fit_gives_nothing(aws: Aws, why: str) -> None:
    reference = aws.reserve(3, zone="us-east-1b" if why == "another zone" else ZONE)
    contract = reserved(reference, 3)
    if why == "no such reservation":
        contract = reserved("cr-00000000", 3)
    elif why == "another type":
        contract = reserved(reference, 3, machine_type="c7i.xlarge")
    elif why == "another kind":
        contract = reserved(reference, 3, kind="block")
    elif why == "not this site":
        contract = reserved(reference, 3, sites=("elsewhere",))
    elif why == "cancelled":
        aws.ec2().cancel_capacity_reservation(CapacityReservationId=reference)
    types = ("c7i.large", "c7i.xlarge")
    offers = aws.provider([site(machine_types=types)], [contract]).offers()
    assert [o.available for o in offers if o.contract] == ([] if why == "not this site" else [0])


def test_a_site_of_no_zone_goes_where_its_reservation_is(aws: Aws) -> None:
    reference = aws.reserve(1, zone="us-east-1c")
    provider = aws.provider([site(zone="")], [reserved(reference, 1)])
    provider.acquire("lease-1", of(provider, Market.RESERVED), "token-1")
    assert aws.calls("RunInstances")[0]["Placement.AvailabilityZone"] == "us-east-1c"
    provider.acquire("lease-2", of(provider, Market.ON_DEMAND), "token-2")
    assert "Placement.AvailabilityZone" not in aws.calls("RunInstances")[1]


def test_a_machine_is_in_the_group_of_its_reservation(aws: Aws) -> None:
    group = "arn:aws:ec2:us-east-1:123456789012:placement-group/theirs"
    answer = aws.ec2().create_capacity_reservation(
        InstanceType=P5,
        InstancePlatform="Linux/UNIX",
        AvailabilityZone=ZONE,
        InstanceCount=1,
        InstanceMatchCriteria="targeted",
        PlacementGroupArn=group,
    )
    reference = answer["CapacityReservation"]["CapacityReservationId"]
    provider = aws.provider([site(machine_types=(P5,))], [reserved(reference, 1, machine_type=P5)])
    provider.acquire("lease-1", of(provider, Market.RESERVED), "token-1")
    assert aws.calls("RunInstances")[0]["Placement.GroupName"] == "theirs"


def test_terms_and_ramps() -> None:
    contract = Contract("c", "reserved", "cloud", "2026-01-01", "2027-01-01", count=4)
    assert not holds(contract, "2025-12-31") and holds(contract, "2026-01-01")
    assert holds(contract, "2026-12-31") and not holds(contract, "2027-01-01")
    assert count_on(contract, "2026-06-01") == 4
    ramp = (RampStep("2026-07-01", 8), RampStep("2026-03-01", 2))
    stepped = Contract("c", "reserved", "cloud", "2026-01-01", "2027-01-01", count=4, ramp=ramp)
    on = [count_on(stepped, day) for day in ("2026-02-01", "2026-03-01", "2026-06-30", "2026-07-01")]
    assert on == [0, 2, 2, 8]


def test_a_contract_out_of_its_term_is_not_offered(aws: Aws) -> None:
    contract = reserved(aws.reserve(3), 3, start="2020-01-01", end="2020-02-01")
    assert not any(o.contract for o in aws.provider(contracts=[contract]).offers())


def test_contracts_of_others_and_of_other_kinds_are_left_out(aws: Aws) -> None:
    theirs = Contract(
        "theirs", "reserved", "azure", "2020-01-01", "2040-01-01", machine_type="c7i.large", count=1
    )
    plan = Contract("plan", "savings", "cloud", "2020-01-01", "2040-01-01")
    assert not any(o.contract for o in aws.provider(contracts=[theirs, plan]).offers())


def test_an_interruption_is_told_two_minutes_ahead(aws: Aws) -> None:
    provider = aws.provider()
    provider.acquire("lease-1", of(provider, Market.SPOT), "token-1")
    provider.acquire("lease-2", of(provider, Market.ON_DEMAND), "token-2")
    assert [m.leaves_at for m in provider.machines()] == [None, None]
    before = time.time()
    told = aws.admin("spot/interrupt")["told"]
    leaving = {m.id: m.leaves_at for m in provider.machines() if m.leaves_at is not None}
    assert list(leaving) == told and len(told) == 1
    assert before - 1 <= leaving[told[0]] - SPOT_NOTICE_S <= time.time() + 1
    aws.admin("clock", advance_s=SPOT_NOTICE_S - 5)
    assert len(provider.machines()) == 2
    aws.admin("clock", advance_s=6)
    aws.admin("clock", advance_s=1)
    assert [m.lease_id for m in provider.machines()] == ["lease-2"]


def test_a_block_begins_and_ends_and_takes_its_machines_with_it(aws: Aws) -> None:
    start = (time.time() // 3600 + 2) * 3600
    offering = aws.admin(
        "offering", region=REGION, zone=ZONE, type=P5, count=2, starts_at=start, hours=24, fee="1000.00"
    )["id"]
    bought = aws.ec2().purchase_capacity_block(
        CapacityBlockOfferingId=offering, InstancePlatform="Linux/UNIX"
    )
    reference = bought["CapacityReservation"]["CapacityReservationId"]
    assert bought["CapacityReservation"]["State"] == "scheduled"
    contract = reserved(reference, 2, kind="block", machine_type=P5)
    provider = aws.provider([site(machine_types=(P5,))], [contract])
    assert of(provider, Market.BLOCK).available == 0, "it has not begun"
    aws.admin("clock", advance_s=start - time.time() + 1)
    offer = of(provider, Market.BLOCK)
    assert offer.available == 2
    provider.acquire("lease-1", offer, "token-1")
    end = start + 86400
    assert provider.machines()[0].leaves_at == pytest.approx(end - BLOCK_EARLY_S, abs=1)
    aws.admin("clock", advance_s=86400 - BLOCK_EARLY_S)
    aws.admin("clock", advance_s=1)
    assert provider.machines() == []
    aws.admin("clock", advance_s=BLOCK_EARLY_S)
    assert of(provider, Market.BLOCK).available == 0


def test_days_are_those_of_utc(aws: Aws) -> None:
    today = datetime.now(UTC).date().isoformat()
    contract = reserved(aws.reserve(1), 1, start=today, end="2040-01-01")
    assert aws.provider(contracts=[contract]).offers()[0].contract == "steady"
