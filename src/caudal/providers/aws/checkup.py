"""What may stand in the way in a region before anything is bought: permissions, and a clock that is wrong.

Each permission is tried: a list is asked for, and what would change something is asked with EC2's DryRun, which does
nothing. Knows nothing about how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from caudal.domain.errors import CaudalError, Failed, NotAllowed
from caudal.domain.fleet import SiteSpec
from caudal.providers.aws.clients import Clients
from caudal.providers.aws.launch import group_name

DRY_RUN = "DryRunOperation"
SKEW_S = 240.0  # AWS refuses signatures that are five minutes off


@dataclass(frozen=True, slots=True)
class Probe:
    """One IAM action that Caudal needs, and whether it is allowed; None: nobody knows, and why."""

    region: str
    action: str
    allowed: bool | None
    why: str = ""
    remedy: str = ""


def permissions(clients: Clients, fleet: str, site: SiteSpec, machine_type: str) -> list[Probe]:
    """Each action that a fleet needs at a site. Raises nothing: what cannot be known says why."""
    machine: dict[str, Any] = {
        "ImageId": site.image,
        "InstanceType": machine_type,
        "MinCount": 1,
        "MaxCount": 1,
    }
    tried: list[tuple[str, str, Mapping[str, Any]]] = [
        ("ec2:DescribeInstances", "describe_instances", {"MaxResults": 5}),
        ("ec2:DescribeInstanceTypeOfferings", "describe_instance_type_offerings", {"MaxResults": 5}),
        ("ec2:DescribeSpotPriceHistory", "describe_spot_price_history", {"MaxResults": 5}),
        ("ec2:DescribeSpotInstanceRequests", "describe_spot_instance_requests", {"MaxResults": 5}),
        ("ec2:DescribeCapacityReservations", "describe_capacity_reservations", {"MaxResults": 5}),
        ("ec2:DescribePlacementGroups", "describe_placement_groups", {}),
        ("ec2:RunInstances", "run_instances", {**machine, "DryRun": True}),
        (
            "ec2:CreatePlacementGroup",
            "create_placement_group",
            {"GroupName": group_name(fleet, site.name), "Strategy": "cluster", "DryRun": True},
        ),
    ]
    return [_probe(clients, site.region, *one) for one in tried]


def clock_skew_s(clients: Clients, region: str, now: float) -> float | None:
    """How far this machine's clock is ahead of AWS's; None where AWS does not say. Over SKEW_S nothing will be
    accepted soon. Raises as any call."""
    answer = clients.call(region, "describe_instances", MaxResults=5)
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return now - parsedate_to_datetime(said).timestamp()
    except (TypeError, ValueError):
        return None


def _probe(clients: Clients, region: str, action: str, operation: str, asked: Mapping[str, Any]) -> Probe:
    try:
        clients.call(region, operation, **asked)
    except NotAllowed as error:
        return Probe(region, action, False, error.why or error.what, error.remedy)
    except Failed as error:
        if error.why.startswith(DRY_RUN):
            return Probe(region, action, True)
        return Probe(region, action, None, error.one_line(), error.remedy)
    except CaudalError as error:  # an image that is gone, say: the permission may be there or not
        return Probe(region, action, None, error.one_line(), error.remedy)
    return Probe(region, action, True)
