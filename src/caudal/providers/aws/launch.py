"""What RunInstances is asked for one machine: an offer and its site in EC2's words. Pure.

An on-demand machine never uses a capacity reservation (preference `none`): it was chosen at the price of on demand, and
what a contract reserves is for the offers under that contract. The same offer, lease and user data give the same
request, byte for byte, or its token would be refused as used for something else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caudal.catalog.aws_types import AwsType, lookup
from caudal.domain.errors import NotOffered, UsageError
from caudal.domain.fleet import Contract, Market, Offer, SiteSpec

FLEET_TAG = "caudal-fleet"
LEASE_TAG = "caudal-lease"
SITE_TAG = "caudal-site"
CONTRACT_TAG = "caudal-contract"

OPEN = "open"
"""A contract's `reference` that means: whichever open reservation of the account fits."""

MAX_USER_DATA_BYTES = 16 * 1024  # EC2's own limit, before base64 (EC2 user guide, read 2026-11)
MAX_TOKEN = 64  # characters of a ClientToken (EC2 API reference, read 2026-11)
HOPS = 2  # IMDSv2 answers from inside a container, too, and no further


@dataclass(frozen=True, slots=True)
class Wish:
    """One machine that is wanted. `reservation_zone` and `reservation_group` are where the contract's reservation is,
    and its placement group; empty: unknown, none."""

    fleet: str
    lease_id: str
    token: str
    site: SiteSpec
    offer: Offer
    contract: Contract | None
    user_data: str
    reservation_zone: str = ""
    reservation_group: str = ""


def request(wish: Wish) -> dict[str, Any]:
    """The parameters of RunInstances, with a placement group where `placement_group` names one. Raises NotOffered
    where the site says no image or the contract no reservation, UsageError where the user data is too long."""
    site, offer = wish.site, wish.offer
    kind = lookup(offer.machine_type.name)
    if not site.image:
        raise NotOffered(
            f"site {site.name} has no image", remedy="put an AMI's id of its region into `image`"
        )
    if len(wish.user_data.encode()) > MAX_USER_DATA_BYTES:
        raise UsageError(f"the user data of lease {wish.lease_id} is over {MAX_USER_DATA_BYTES} bytes")
    asked: dict[str, Any] = {
        "ImageId": site.image,
        "InstanceType": kind.name,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": client_token(wish.token),
        "UserData": wish.user_data,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": HOPS,
        },
        "NetworkInterfaces": _interfaces(site, kind),
        "TagSpecifications": _tags(wish),
        **_market(wish),
    }
    placement = {}
    if zone := site.zone or wish.reservation_zone:
        placement["AvailabilityZone"] = zone  # EC2 would choose any, and most have no reservation
    if group := placement_group(wish):
        placement["GroupName"] = group
    return {**asked, "Placement": placement} if placement else asked


def client_token(token: str) -> str:
    """The token as EC2 takes it: one that is too long, or not plain ASCII, by its hash."""
    plain = len(token) <= MAX_TOKEN and token.isascii() and token.isprintable()
    return token if plain else hashlib.sha256(token.encode()).hexdigest()


def placement_group(wish: Wish) -> str:
    """The cluster placement group that it is to be in; empty: none.

    Machines whose EFA interfaces are to talk to each other stand together. A reservation decides by itself (a
    machine cannot be in another group than its reservation), and capacity blocks stand together anyhow.
    """
    if wish.offer.market is Market.BLOCK:
        return ""
    if wish.offer.market is Market.RESERVED:
        return wish.reservation_group
    kind = lookup(wish.offer.machine_type.name)
    return group_name(wish.fleet, wish.site.name) if kind.computes and kind.efa_interfaces else ""


def group_name(fleet: str, site: str) -> str:
    """The name of a site's own placement group."""
    return f"caudal-{fleet}-{site}"


def network(site: SiteSpec) -> tuple[str, list[str]]:
    """The subnet and the security groups of `network: subnet-1, sg-1, sg-2`; each may be left away. Raises
    NotOffered where it is anything else."""
    subnet, groups = "", []
    for word in re.split(r"[,\s]+", site.network.strip()) if site.network.strip() else []:
        if word.startswith("sg-"):
            groups.append(word)
        elif word.startswith("subnet-") and not subnet:
            subnet = word
        else:
            raise NotOffered(
                f"site {site.name}: {word!r} is not a network of AWS",
                remedy="`network` is one subnet and its security groups: `subnet-0ab1, sg-0cd2`",
            )
    return subnet, groups


def _interfaces(site: SiteSpec, kind: AwsType) -> list[dict[str, Any]]:
    """An ordinary interface first, then EFA ones: one on each network card, for traffic between nodes only.

    So recommended for types with several cards (EC2 user guide, "Maximize network bandwidth", read 2026-11).
    """
    subnet, groups = network(site)
    common: dict[str, Any] = {"DeleteOnTermination": True}
    if subnet:
        common["SubnetId"] = subnet
    if groups:
        common["Groups"] = groups
    first = {"NetworkCardIndex": 0, "DeviceIndex": 0, "InterfaceType": "interface", **common}
    if not kind.efa_interfaces:
        # With more than one interface EC2 gives no public address, and refuses to be told so.
        return [{**first, "AssociatePublicIpAddress": False}]
    efa = [
        {
            "NetworkCardIndex": card,
            "DeviceIndex": 1 if card == 0 else 0,
            "InterfaceType": "efa-only",
            **common,
        }
        for card in range(kind.efa_interfaces)
    ]
    return [first, *efa]


def _tags(wish: Wish) -> list[dict[str, Any]]:
    tags: Mapping[str, str] = {
        "Name": f"{wish.fleet}/{wish.site.name}/{wish.lease_id}",
        FLEET_TAG: wish.fleet,
        LEASE_TAG: wish.lease_id,
        SITE_TAG: wish.site.name,
        **({CONTRACT_TAG: wish.offer.contract} if wish.offer.contract else {}),
    }
    rows = [{"Key": key, "Value": value} for key, value in tags.items()]
    kinds = ["instance", "volume", "network-interface"]
    if wish.offer.market is Market.SPOT:
        kinds.append("spot-instances-request")
    return [{"ResourceType": kind, "Tags": rows} for kind in kinds]


def _market(wish: Wish) -> dict[str, Any]:
    market = wish.offer.market
    if market is Market.ON_DEMAND:
        return {"CapacityReservationSpecification": {"CapacityReservationPreference": "none"}}
    if market is Market.SPOT:
        spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        return {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot}}
    asked = {"CapacityReservationSpecification": _reservation(wish)}
    if market is Market.BLOCK:
        return {**asked, "InstanceMarketOptions": {"MarketType": "capacity-block"}}
    return asked


def _reservation(wish: Wish) -> dict[str, Any]:
    reference = wish.contract.reference if wish.contract is not None else ""
    if wish.offer.market is Market.RESERVED and reference == OPEN:
        # Plain `open` would quietly give a machine on demand where the reservation is used up.
        return {"CapacityReservationPreference": "capacity-reservations-only"}
    if reference.startswith("cr-"):
        return {"CapacityReservationTarget": {"CapacityReservationId": reference}}
    raise NotOffered(
        f"contract {wish.offer.contract!r} does not say which reservation",
        remedy="`reference` is the id of a capacity reservation (cr-…), or `open`; a block's is always an id",
    )
