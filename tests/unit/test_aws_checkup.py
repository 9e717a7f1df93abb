"""What stands in the way, said before anything is bought."""

from __future__ import annotations

import time

import pytest

from caudal.providers.aws.checkup import Probe, clock_skew_s, permissions
from tests.support.aws import FLEET, REGION, SMALL, Aws, fresh_aws, site


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


def probes(aws: Aws) -> dict[str, Probe]:
    return {p.action: p for p in permissions(aws.provider().clients, FLEET, site(), SMALL)}


def test_all_is_allowed_and_nothing_was_made(aws: Aws) -> None:
    found = probes(aws)
    assert len(found) == 8 and all(p.allowed for p in found.values())
    assert aws.admin("state")["instances"] == []
    assert aws.ec2().describe_placement_groups()["PlacementGroups"] == []


@pytest.mark.parametrize("name", ["RunInstances", "DescribeSpotPriceHistory", "CreatePlacementGroup"])
def test_the_missing_one_is_named(aws: Aws, name: str) -> None:
    aws.admin(
        "fault", action=name, code="UnauthorizedOperation", status=403, message="You are not authorized."
    )
    found = probes(aws)
    assert [action for action, probe in found.items() if not probe.allowed] == [f"ec2:{name}"]
    assert f"allow the IAM action ec2:{name}" in found[f"ec2:{name}"].remedy


def test_what_cannot_be_known_is_not_guessed(aws: Aws) -> None:
    aws.admin("fault", action="DescribeInstances", code="Unavailable", status=503)
    aws.admin("fault", action="RunInstances", code="InvalidAMIID.NotFound", status=400)
    found = probes(aws)
    unknown = {action: probe.why for action, probe in found.items() if probe.allowed is None}
    assert unknown.keys() == {"ec2:DescribeInstances", "ec2:RunInstances"} and all(unknown.values())


def test_a_clock_that_is_wrong(aws: Aws) -> None:
    clients = aws.provider().clients
    right = clock_skew_s(clients, REGION, time.time())
    assert right is not None and abs(right) < 30
    wrong = clock_skew_s(clients, REGION, time.time() + 1000)
    assert wrong is not None and wrong > 900
