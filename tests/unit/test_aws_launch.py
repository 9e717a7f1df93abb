"""What RunInstances is asked, by market and machine type."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from caudal.catalog.aws_types import lookup
from caudal.domain.errors import NotOffered, UsageError
from caudal.domain.fleet import Contract, Market, Offer
from caudal.providers.aws.launch import Wish, client_token, group_name, network, placement_group, request
from tests.support.aws import ZONE, reserved, site


def wish(kind: str, market: Market, contract: Contract | None = None, **changes: Any) -> Wish:
    name = contract.name if contract else ""
    offer = Offer(
        "o", "north", lookup(kind).machine_type, market, Decimal(1), "test", "2026-01-01", None, name
    )
    made = Wish("demo", "lease-1", "token-1", site(), offer, contract, "#!/bin/sh\n")
    return replace(made, **changes)


def tags(asked: dict[str, Any], kind: str) -> dict[str, str]:
    found = next(s for s in asked["TagSpecifications"] if s["ResourceType"] == kind)
    return {tag["Key"]: tag["Value"] for tag in found["Tags"]}


def test_a_small_machine_on_demand() -> None:
    asked = request(wish("c7i.large", Market.ON_DEMAND))
    assert (asked["MinCount"], asked["MaxCount"], asked["ClientToken"]) == (1, 1, "token-1")
    assert asked["MetadataOptions"]["HttpTokens"] == "required"
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert asked["Placement"] == {"AvailabilityZone": ZONE}
    assert asked["CapacityReservationSpecification"] == {"CapacityReservationPreference": "none"}
    assert [n["AssociatePublicIpAddress"] for n in asked["NetworkInterfaces"]] == [False]
    assert "InstanceMarketOptions" not in asked
    assert tags(asked, "instance") == tags(asked, "volume")
    assert tags(asked, "instance") == {
        "Name": "demo/north/lease-1",
        "caudal-fleet": "demo",
        "caudal-lease": "lease-1",
        "caudal-site": "north",
    }


def test_the_same_wish_is_the_same_request() -> None:
    assert request(wish("p5.48xlarge", Market.SPOT)) == request(wish("p5.48xlarge", Market.SPOT))


@pytest.mark.parametrize(("kind", "efa"), [("p5.48xlarge", 32), ("trn1.32xlarge", 8), ("g6e.48xlarge", 4)])
def test_efa_interfaces_are_one_on_each_card_and_stand_together(kind: str, efa: int) -> None:
    asked = request(wish(kind, Market.ON_DEMAND, site=site(network="subnet-1, sg-1 sg-2")))
    first, *others = asked["NetworkInterfaces"]
    assert (first["InterfaceType"], first["NetworkCardIndex"], first["DeviceIndex"]) == ("interface", 0, 0)
    assert "AssociatePublicIpAddress" not in first, "EC2 refuses it beside others"
    assert {n["InterfaceType"] for n in others} == {"efa-only"}
    assert [n["NetworkCardIndex"] for n in others] == list(range(efa))
    places = [(n["NetworkCardIndex"], n["DeviceIndex"]) for n in asked["NetworkInterfaces"]]
    assert len(set(places)) == efa + 1
    assert all(n["SubnetId"] == "subnet-1" and n["Groups"] == ["sg-1", "sg-2"] for n in [first, *others])
    assert asked["Placement"]["GroupName"] == group_name("demo", "north")


def test_machines_that_compute_nothing_together_have_no_group() -> None:
    assert placement_group(wish("c7i.large", Market.ON_DEMAND)) == ""
    assert placement_group(wish("g6e.xlarge", Market.ON_DEMAND)) == ""


def test_spot_is_asked_for_once_and_its_request_is_tagged() -> None:
    asked = request(wish("c7i.large", Market.SPOT))
    assert asked["InstanceMarketOptions"]["MarketType"] == "spot"
    assert asked["InstanceMarketOptions"]["SpotOptions"]["SpotInstanceType"] == "one-time"
    assert tags(asked, "spot-instances-request")["caudal-lease"] == "lease-1"


def test_a_targeted_reservation_and_its_group() -> None:
    contract = reserved("cr-1", 2, machine_type="p5.48xlarge")
    asked = request(wish("p5.48xlarge", Market.RESERVED, contract))
    target = asked["CapacityReservationSpecification"]["CapacityReservationTarget"]
    assert target == {"CapacityReservationId": "cr-1"}
    assert "GroupName" not in asked["Placement"], "a reservation in no group gives no machine in one"
    assert tags(asked, "instance")["caudal-contract"] == "steady"
    grouped = request(wish("p5.48xlarge", Market.RESERVED, contract, reservation_group="pg-1"))
    assert grouped["Placement"]["GroupName"] == "pg-1"


def test_an_open_reservation_never_becomes_on_demand() -> None:
    asked = request(wish("c7i.large", Market.RESERVED, reserved("open", 2)))
    assert asked["CapacityReservationSpecification"] == {
        "CapacityReservationPreference": "capacity-reservations-only"
    }


def test_a_block() -> None:
    asked = request(wish("p5.48xlarge", Market.BLOCK, reserved("cr-9", 2, kind="block")))
    assert asked["InstanceMarketOptions"] == {"MarketType": "capacity-block"}
    target = asked["CapacityReservationSpecification"]["CapacityReservationTarget"]
    assert target == {"CapacityReservationId": "cr-9"}
    assert "GroupName" not in asked["Placement"]


@pytest.mark.parametrize("reference", ["", "something"])
def test_a_contract_that_names_no_reservation_is_refused(reference: str) -> None:
    with pytest.raises(NotOffered, match="which reservation"):
        request(wish("c7i.large", Market.RESERVED, reserved(reference, 2)))
    with pytest.raises(NotOffered, match="which reservation"):
        request(wish("p5.48xlarge", Market.BLOCK, reserved("open", 2, kind="block")))


def test_a_site_without_an_image_is_refused() -> None:
    with pytest.raises(NotOffered, match="no image"):
        request(wish("c7i.large", Market.ON_DEMAND, site=site(image="")))


def test_user_data_has_ec2s_limit() -> None:
    with pytest.raises(UsageError):
        request(wish("c7i.large", Market.ON_DEMAND, user_data="x" * (16 * 1024 + 1)))


def test_tokens_fit() -> None:
    assert client_token("a token") == "a token"
    assert len(client_token("x" * 65)) == 64
    assert client_token("x" * 65) != client_token("x" * 66)
    assert client_token("ß").isascii()


def test_networks() -> None:
    assert network(site(network="")) == ("", [])
    assert network(site(network="subnet-1,sg-1")) == ("subnet-1", ["sg-1"])
    assert network(site(network="sg-1")) == ("", ["sg-1"])
    with pytest.raises(NotOffered):
        network(site(network="subnet-1 subnet-2"))
    with pytest.raises(NotOffered):
        network(site(network="vpc-1"))
