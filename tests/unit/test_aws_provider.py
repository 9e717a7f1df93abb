"""The provider of AWS against the fake: tokens, lost answers, refusals, bounds, whose a machine is."""

from __future__ import annotations

import pytest

from caudal.domain.errors import NoCapacity, NotAllowed, NotOffered, QuotaExceeded, Unreachable
from caudal.domain.fleet import Machine, MachineState, Market, Offer
from caudal.providers.aws.clients import Patience
from caudal.providers.aws.provider import AwsProvider
from caudal.providers.aws.refusals import CAPACITY_S, MAX_S, OTHERWISE_S, Refusals
from tests.support.aws import IMAGE, REGION, SMALL, ZONE, Aws, fresh_aws, site


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


def on_demand(provider: AwsProvider, site_name: str = "north") -> Offer:
    return next(o for o in provider.offers() if o.market is Market.ON_DEMAND and o.site == site_name)


def held(provider: AwsProvider, lease_id: str) -> list[Machine]:
    return [m for m in provider.machines() if m.lease_id == lease_id]


def existing(aws: Aws, lease_id: str) -> list[str]:
    """The ids of all machines that truly exist with that lease's tag."""
    pages = aws.ec2().describe_instances(Filters=[{"Name": "tag:caudal-lease", "Values": [lease_id]}])
    rows = [row for group in pages["Reservations"] for row in group["Instances"]]
    return [row["InstanceId"] for row in rows if row["State"]["Name"] != "terminated"]


@pytest.mark.parametrize("answers_lost", [1, 2, 3])
def test_an_answer_that_was_lost_is_not_a_second_machine(aws: Aws, answers_lost: int) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("times", lag_s=3600)  # the list never shows it: only the token can help
    aws.admin("fault", action="RunInstances", when="after", times=answers_lost)
    for _ in range(answers_lost):
        with pytest.raises(Unreachable):
            provider.acquire("lease-1", offer, "token-1")
    provider.acquire("lease-1", offer, "token-1")
    aws.provider().acquire("lease-1", offer, "token-1")  # the next control process
    aws.admin("clock", advance_s=3600)
    assert len(existing(aws, "lease-1")) == 1
    assert len(held(provider, "lease-1")) == 1


def test_the_sdk_itself_tries_again_under_the_same_token(aws: Aws) -> None:
    provider = aws.provider(patience=Patience(2.0, 5.0, attempts=2))
    offer = on_demand(provider)
    aws.admin("fault", action="RunInstances", when="after")
    provider.acquire("lease-1", offer, "token-1")
    assert len(existing(aws, "lease-1")) == 1
    assert len(aws.calls("RunInstances")) == 2


def test_a_list_that_lags_gives_no_second_machine_under_another_token(aws: Aws) -> None:
    provider = aws.provider()
    aws.admin("times", lag_s=3600)
    provider.acquire("lease-1", on_demand(provider), "token-1")
    provider.acquire("lease-1", on_demand(provider), "token-2")
    assert provider.machines() == []
    aws.admin("clock", advance_s=3600)
    assert len(existing(aws, "lease-1")) == 1


def test_a_machine_that_is_not_listed_yet_can_be_released(aws: Aws) -> None:
    provider = aws.provider()
    provider.acquire("lease-1", on_demand(provider), "token-1")
    machine_id = held(provider, "lease-1")[0].id
    aws.admin("times", lag_s=3600)
    provider.acquire("lease-2", on_demand(provider), "token-2")
    hidden = provider._given["lease-2"][1]
    provider.release(hidden)
    aws.admin("clock", advance_s=3600)
    assert [m.id for m in provider.machines()] == [machine_id]


def test_a_token_that_was_used_for_something_else_finds_its_machine(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("fault", action="RunInstances", when="after")
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", offer, "token-1")
    changed = aws.provider(script=lambda lease_id, offer: "#!/bin/sh\n# a newer version\n")
    changed.acquire("lease-1", offer, "token-1")
    assert len(existing(aws, "lease-1")) == 1


def test_a_token_that_was_used_for_something_that_is_not_listed_is_not_an_answer(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("times", lag_s=3600)
    aws.admin("fault", action="RunInstances", when="after")
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", offer, "token-1")
    changed = aws.provider(script=lambda lease_id, offer: "#!/bin/sh\n# a newer version\n")
    with pytest.raises(Unreachable, match="with other parameters"):
        changed.acquire("lease-1", offer, "token-1")
    aws.admin("clock", advance_s=3600)
    changed.acquire("lease-1", offer, "token-1")
    assert len(existing(aws, "lease-1")) == 1


def test_a_token_whose_machine_is_gone_gives_none(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    provider.acquire("lease-1", offer, "token-1")
    aws.admin("machine/kill", instance=held(provider, "lease-1")[0].id)
    with pytest.raises(NoCapacity):
        provider.acquire("lease-1", offer, "token-1")


def test_what_was_refused_is_not_asked_for_again_until_its_pause_is_over(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("capacity", region=REGION, type=SMALL, count=0)
    for round_number in range(3):
        with pytest.raises(NoCapacity):
            provider.acquire("lease-1", offer, f"token-{round_number}")
        asked = len(aws.calls("RunInstances"))
        assert asked == round_number + 1
        assert on_demand(provider).available == 0
        for _ in range(20):
            with pytest.raises(NoCapacity, match="refused a moment ago"):
                provider.acquire("lease-2", offer, "another token")
        assert len(aws.calls("RunInstances")) == asked, "nobody asked AWS"
        aws.clock.ahead_s += CAPACITY_S * 2**round_number - 1
        assert on_demand(provider).available == 0
        aws.clock.ahead_s += 1
        assert on_demand(provider).available is None
    aws.admin("capacity", region=REGION, type=SMALL, count=None)
    provider.acquire("lease-1", offer, "token-9")
    assert len(held(provider, "lease-1")) == 1


def test_other_offers_are_not_touched_by_a_refusal(aws: Aws) -> None:
    provider = aws.provider([site(), site("south", zone="us-east-1b")])
    aws.admin("capacity", region=REGION, zone=ZONE, count=0)
    with pytest.raises(NoCapacity):
        provider.acquire("lease-1", on_demand(provider), "token-1")
    assert on_demand(provider).available == 0
    provider.acquire("lease-1", on_demand(provider, "south"), "token-2")
    assert held(provider, "lease-1")[0].site == "south"


def test_room_that_comes_back_ends_the_pause(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("capacity", region=REGION, type=SMALL, count=1)
    provider.acquire("lease-1", offer, "token-1")
    with pytest.raises(NoCapacity):
        provider.acquire("lease-2", offer, "token-2")
    assert on_demand(provider).available == 0
    provider.release(held(provider, "lease-1")[0].id)
    assert on_demand(provider).available is None


def test_a_lost_answer_is_asked_about_in_spite_of_a_refusal(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("times", lag_s=3600)
    aws.admin("capacity", region=REGION, type=SMALL, count=1)
    aws.admin("fault", action="RunInstances", when="after")
    with pytest.raises(Unreachable):
        provider.acquire("lease-1", offer, "token-1")
    with pytest.raises(NoCapacity):
        provider.acquire("lease-2", offer, "token-2")
    provider.acquire("lease-1", offer, "token-1")  # its machine exists: it is not lost to a pause


def test_a_quota_rests_longer_and_stays_a_quota(aws: Aws) -> None:
    provider = aws.provider()
    offer = on_demand(provider)
    aws.admin("vcpus", region=REGION, count=0)
    with pytest.raises(QuotaExceeded):
        provider.acquire("lease-1", offer, "token-1")
    aws.clock.ahead_s += OTHERWISE_S - 1
    with pytest.raises(QuotaExceeded, match="a moment ago"):
        provider.acquire("lease-1", offer, "token-2")


def test_pauses_double_up_to_a_bound() -> None:
    refusals, now = Refusals(), 1000.0
    pauses = [refusals.note("o", NoCapacity("full"), now).until - now for _ in range(12)]
    assert pauses[:3] == [CAPACITY_S, 2 * CAPACITY_S, 4 * CAPACITY_S]
    assert pauses == sorted(pauses) and pauses[-1] == MAX_S
    assert refusals.note("p", NotOffered("gone"), now).until - now == OTHERWISE_S
    refusals.forget("o")
    assert refusals.note("o", NoCapacity("full"), now).until - now == CAPACITY_S


def test_a_bound_on_machines_is_kept(aws: Aws) -> None:
    provider = aws.provider(max_machines=2)
    assert {o.available for o in provider.offers()} == {2}
    for number in range(2):
        provider.acquire(f"lease-{number}", on_demand(provider), f"token-{number}")
    provider.machines()
    assert {o.available for o in provider.offers()} == {0}
    with pytest.raises(NoCapacity, match="2 machines already"):
        provider.acquire("lease-9", on_demand(provider), "token-9")
    provider.acquire("lease-1", on_demand(provider), "token-1")  # has its machine already


def test_machines_of_another_fleet_are_neither_listed_nor_ended(aws: Aws) -> None:
    ours, theirs = aws.provider(), aws.provider(fleet="other")
    theirs.acquire("lease-1", on_demand(theirs), "token-1")
    aws.ec2().run_instances(ImageId=IMAGE, InstanceType=SMALL, MinCount=1, MaxCount=1)  # nobody's
    assert ours.machines() == []
    other = theirs.machines()[0]
    stranger = next(i for i in aws.admin("state")["instances"] if i["id"] != other.id)["id"]
    for machine_id in (other.id, stranger):
        with pytest.raises(NotAllowed, match="not of fleet demo"):
            ours.release(machine_id)
    assert not aws.calls("TerminateInstances")
    ours.acquire("lease-1", on_demand(ours), "token-2")  # the same lease id, in another fleet
    assert len(ours.machines()) == len(theirs.machines()) == 1
    assert ours.machines()[0].id != other.id


def test_two_fleets_may_use_the_same_token_only_by_accident(aws: Aws) -> None:
    ours, theirs = aws.provider(), aws.provider(fleet="other")
    theirs.acquire("lease-1", on_demand(theirs), "token-1")
    with pytest.raises(Unreachable, match="with other parameters"):
        ours.acquire("lease-1", on_demand(ours), "token-1")
    assert ours.machines() == []


def test_states_and_addresses(aws: Aws) -> None:
    aws.admin("times", boot_s=3600, stop_s=3600)
    provider = aws.provider()
    provider.acquire("lease-1", on_demand(provider), "token-1")
    booting = held(provider, "lease-1")[0]
    assert (booting.state, booting.address, booting.leaves_at) == (MachineState.PENDING, "", None)
    aws.admin("clock", advance_s=3600)
    runs = held(provider, "lease-1")[0]
    assert (runs.state, runs.address, runs.site) == (MachineState.RUNNING, "127.0.0.1", "north")
    provider.release(runs.id)
    assert held(provider, "lease-1")[0].state is MachineState.STOPPING
    aws.admin("clock", advance_s=3600)
    assert held(provider, "lease-1") == []


def test_moto_s_made_up_addresses_never_come_through(aws: Aws) -> None:
    provider = aws.provider()
    provider.acquire("lease-1", on_demand(provider), "token-1")
    aws.admin("clock", advance_s=1)
    said = str(aws.ec2().describe_instances()["Reservations"])
    assert "'PrivateIpAddress': '127.0.0.1'" in said
    assert "172.31." not in said and ".internal" not in said and "PublicIp" not in said


def test_many_machines_come_in_pages(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.providers.aws.region.PAGE", 5)
    provider = aws.provider()
    offer = on_demand(provider)
    for number in range(12):
        provider.acquire(f"lease-{number}", offer, f"token-{number}")
    before = len(aws.calls("DescribeInstances"))
    assert len({m.lease_id for m in provider.machines()}) == 12
    assert len(aws.calls("DescribeInstances")) - before == 3


def test_slow_facts_are_kept_and_the_rest_is_asked_for(aws: Aws) -> None:
    provider = aws.provider()
    for _ in range(5):
        provider.offers()
    assert len(aws.calls("DescribeSpotPriceHistory")) == 1
    assert len(aws.calls("DescribeInstanceTypeOfferings")) == 1
    aws.admin("spot/price", type=SMALL, zone=ZONE, price="0.0123")
    aws.clock.ahead_s += 301
    spot = next(o for o in provider.offers() if o.market is Market.SPOT)
    assert str(spot.price_usd_per_hour) == "0.0123"
    assert len(aws.calls("DescribeInstanceTypeOfferings")) == 1


def test_the_sites_say_which_markets_and_types(aws: Aws) -> None:
    provider = aws.provider(
        [
            site(markets=("spot",), machine_types=("c7i.large", "m7i.large")),
            site("south", markets=("on_demand",)),
        ]
    )
    assert {(o.site, o.market.value) for o in provider.offers()} == {
        ("north", "spot"),
        ("south", "on_demand"),
    }
    assert {o.machine_type.name for o in provider.offers() if o.site == "north"} == {"c7i.large", "m7i.large"}
    assert not any(o.market is Market.SPOT for o in aws.provider([site(markets=("on_demand",))]).offers())


def test_a_price_of_another_region_is_said_to_be_one(aws: Aws) -> None:
    provider = aws.provider([site(region="eu-west-1", zone="eu-west-1a")])
    assert "eu-west-1 is not known" in on_demand(provider).source
    assert "not known" not in on_demand(aws.provider()).source


def test_neuron_machines_are_offered_by_their_cores(aws: Aws) -> None:
    zones = aws.ec2().describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["inf2.48xlarge"]}]
    )["InstanceTypeOfferings"]
    zone = zones[0]["Location"]
    provider = aws.provider([site(zone=zone, machine_types=("inf2.48xlarge",))])
    offer = on_demand(provider)
    has = offer.machine_type.resources
    assert (has.neuron_cores, has.accelerators, offer.machine_type.accelerator) == (24, 0, "Inferentia2")
    provider.acquire("lease-1", offer, "token-1")
    assert provider.machines()[0].machine_type == "inf2.48xlarge"


def test_a_type_that_a_zone_does_not_have_is_not_offered(aws: Aws) -> None:
    provider = aws.provider([site(zone="us-east-1a", machine_types=("trn1.32xlarge", "c7i.large"))])
    zones = provider._regions[REGION].facts(False, False).zones["trn1.32xlarge"]
    assert "us-east-1a" not in zones
    assert {o.machine_type.name for o in provider.offers()} == {"c7i.large"}


def test_the_placement_group_is_made_once(aws: Aws) -> None:
    provider = aws.provider([site(machine_types=("p5.48xlarge",))])
    for number in range(3):
        provider.acquire(f"lease-{number}", on_demand(provider), f"token-{number}")
    aws.provider([site(machine_types=("p5.48xlarge",))]).acquire("lease-9", on_demand(provider), "token-9")
    assert len(aws.calls("CreatePlacementGroup")) == 1
    run = aws.calls("RunInstances")[0]
    assert run["Placement.GroupName"] == "caudal-demo-north"
    assert sum(1 for key in run if key.endswith(".InterfaceType")) == 33
    assert "UserData" not in run
