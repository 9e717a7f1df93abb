"""The fake of AWS as a product: its process, machines that are processes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from caudal.domain.errors import Failed
from caudal.domain.fleet import Machine, Market, Offer, ProviderSpec
from caudal.providers.aws.provider import AwsProvider
from caudal.providers.aws_fake import launcher
from caudal.providers.aws_fake.keeper import descendants
from caudal.providers.aws_fake.wire import Ask, Refused, fill, moment, parse, scope, when
from caudal.providers.aws_fake.world import Instance, Times, World
from tests.support.aws import FLEET, IMPATIENT, PROVIDER, REGION, Aws, TestClock, fresh_aws, site

PATIENCE_S = 60.0

SCRIPT = """#!/bin/sh
echo "$CAUDAL_INSTANCE_ID $CAUDAL_REGION $CAUDAL_ADDRESS" > told
(trap "" TERM; while :; do sleep 1; done) &
setsid sh -c 'trap "" TERM; echo $$ > far.pid; while :; do sleep 1; done' > /dev/null 2>&1 &
echo $$ > shell.pid
echo up
"""
"""A child that heeds no signal, and one in a session of its own: what a machine's shutdown has to end all the same."""


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Up:
    """A fake as a process, and a provider on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.url = launcher.start(state, boot_s=0.1, stop_s=0.2)
        self.pid = json.loads((state / launcher.RECORD).read_text())["pid"]
        spec = ProviderSpec(PROVIDER, "aws", endpoint=self.url)
        self.provider = AwsProvider(spec, [site()], [], FLEET, lambda *_: SCRIPT, TestClock(), IMPATIENT)

    def offer(self) -> Offer:
        return next(o for o in self.provider.offers() if o.market is Market.ON_DEMAND)

    def machine(self, lease_id: str) -> Machine:
        self.provider.acquire(lease_id, self.offer(), f"token-{lease_id}")
        return next(m for m in self.provider.machines() if m.lease_id == lease_id)

    def folder(self, machine: Machine) -> Path:
        return self.state / "machines" / machine.id

    def pids(self, machine: Machine) -> list[int]:
        """Everybody that lives for the machine, once it is up."""
        folder = self.folder(machine)
        until(lambda: (folder / "far.pid").exists() and (folder / "shell.pid").exists(), "it does not boot")
        keeper = json.loads((folder / "keeper.json").read_text())["pid"]
        return [keeper, *descendants(keeper)]

    def admin(self, verb: str, **body: Any) -> Any:
        asked = urllib.request.Request(f"{self.url}/_caudal/{verb}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    started = Up(tmp_path / "fake")
    yield started
    launcher.stop(started.state)


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_a_machine_runs_its_user_data_and_ends_with_all_that_came_of_it(up: Up) -> None:
    machine = up.machine("lease-1")
    pids = up.pids(machine)
    assert len(pids) >= 3
    told = (up.folder(machine) / "told").read_text().split()
    assert told == [machine.id, REGION, "127.0.0.1"]
    assert "up" in (up.folder(machine) / "console.log").read_text()
    other = up.machine("lease-2")
    others = up.pids(other)
    up.provider.release(machine.id)
    until(lambda: [m.id for m in up.provider.machines()] == [other.id], "it is listed still")
    assert gone(pids), "something of the machine lives on, and it is not listed"
    assert not gone(others), "another machine went with it"


def test_a_power_cut_ends_a_machine_at_once(up: Up) -> None:
    machine = up.machine("lease-1")
    pids = up.pids(machine)
    up.admin("machine/kill", instance=machine.id)
    until(lambda: gone(pids), "it has power still")
    assert up.provider.machines() == []


def test_a_region_that_fails_may_take_its_machines_with_it(up: Up) -> None:
    pids = up.pids(up.machine("lease-1"))
    up.admin("region", region=REGION, mode="down", machines="lose_power")
    until(lambda: gone(pids), "it has power still")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_machines_never_outlive_the_fake(up: Up, number: int) -> None:
    pids = up.pids(up.machine("lease-1"))
    os.kill(up.pid, number)
    until(lambda: gone([*pids, up.pid]), "something lives on")


def test_one_that_runs_is_found_again_and_ended_once(up: Up) -> None:
    assert launcher.start(up.state) == up.url
    assert launcher.running(up.state) == up.url
    launcher.stop(up.state)
    launcher.stop(up.state)
    assert launcher.running(up.state) == ""
    assert gone([up.pid])


def test_a_second_one_does_not_take_the_first_one_s_folder(up: Up) -> None:
    (up.state / launcher.RECORD).rename(up.state / "elsewhere")
    with pytest.raises(Failed, match="does not start") as told:
        launcher.start(up.state)
    assert "another fake has" in told.value.why
    (up.state / "elsewhere").rename(up.state / launcher.RECORD)
    assert launcher.running(up.state) == up.url


def test_the_fake_can_be_asked_and_says_what_it_does_not_know(up: Up) -> None:
    with urllib.request.urlopen(f"{up.url}/_caudal/state", timeout=30) as answer:
        assert json.load(answer)["instances"] == []
    for verb, body in (("nothing", b"{}"), ("capacity", b"{}"), ("region", b"[]"), ("region", b"no JSON")):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(f"{up.url}/_caudal/{verb}", body, timeout=30)
        assert told.value.code in (400, 404)


@pytest.mark.parametrize("header", [("Origin", "http://example.com"), ("Host", "example.com:80")])
def test_no_web_page_drives_it(header: tuple[str, str]) -> None:
    aws = fresh_aws()
    asked = urllib.request.Request(f"{aws.server.url}/_caudal/reset", b"{}", dict([header]), method="POST")
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(asked, timeout=30)
    assert told.value.code == 403


def test_the_newest_calls_are_kept_without_user_data() -> None:
    aws = fresh_aws()
    aws.ec2().run_instances(
        ImageId="ami-1", InstanceType="c7i.large", MinCount=1, MaxCount=1, UserData="#!/bin/sh\n# a secret\n"
    )
    assert "UserData" not in aws.calls("RunInstances")[0]
    assert "secret" not in json.dumps(aws.admin("state"))


def test_an_action_that_nobody_knows_is_refused() -> None:
    aws = fresh_aws()
    with pytest.raises(Exception, match="InvalidAction"):
        aws.ec2().describe_fast_launch_images()


def test_several_machines_in_one_call_are_refused() -> None:
    aws = fresh_aws()
    with pytest.raises(Exception, match="one instance for each call"):
        aws.ec2().run_instances(ImageId="ami-1", InstanceType="c7i.large", MinCount=2, MaxCount=2)


@pytest.fixture
def aws() -> Aws:
    return fresh_aws()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"InstanceType": "c99.huge"}, "InvalidParameterValue"),
        ({"ImageId": "nonsense"}, "InvalidAMIID.Malformed"),
        ({"Placement": {"AvailabilityZone": "eu-west-1a"}}, "InvalidParameterValue"),
        ({"SubnetId": "subnet-00000000"}, "InvalidSubnetID.NotFound"),
        ({"InstanceMarketOptions": {"MarketType": "capacity-block"}}, "InvalidParameterCombination"),
    ],
)
def test_what_ec2_would_refuse_is_refused(aws: Aws, changes: dict[str, Any], code: str) -> None:
    asked = {"ImageId": "ami-1", "InstanceType": "c7i.large", "MinCount": 1, "MaxCount": 1, **changes}
    with pytest.raises(Exception, match=code.replace(".", r"\.")):
        aws.ec2().run_instances(**asked)
    assert aws.admin("state")["instances"] == []


def test_lists_follow_tags_and_know_their_filters(aws: Aws) -> None:
    ec2 = aws.ec2()
    asked = {"ImageId": "ami-1", "InstanceType": "c7i.large", "MinCount": 1, "MaxCount": 1}
    first, second = (ec2.run_instances(**asked)["Instances"][0]["InstanceId"] for _ in range(2))
    ec2.create_tags(Resources=[first], Tags=[{"Key": "team", "Value": "red"}])

    def found(name: str, *values: str) -> list[str]:
        pages = ec2.describe_instances(Filters=[{"Name": name, "Values": list(values)}])["Reservations"]
        return [row["InstanceId"] for group in pages for row in group["Instances"]]

    assert found("tag:team", "red") == found("tag:team", "blue", "r*") == [first]
    assert found("instance-id", second) == [second]
    assert found("availability-zone", "us-east-1a") == [first, second]
    ec2.delete_tags(Resources=[first], Tags=[{"Key": "team"}])
    assert found("tag:team", "*") == []
    with pytest.raises(Exception, match="does not know the filter"):
        found("owner-id", "x")
    with pytest.raises(Exception, match=r"InvalidInstanceID\.NotFound"):
        ec2.describe_instances(InstanceIds=["i-0"])


def test_what_is_gone_is_shown_for_an_hour(aws: Aws) -> None:
    ec2 = aws.ec2()
    asked = {"ImageId": "ami-1", "InstanceType": "c7i.large", "MinCount": 1, "MaxCount": 1}
    ec2.terminate_instances(InstanceIds=[ec2.run_instances(**asked)["Instances"][0]["InstanceId"]])
    aws.admin("clock", advance_s=60)
    (group,) = ec2.describe_instances()["Reservations"]
    assert group["Instances"][0]["State"]["Name"] == "terminated"
    aws.admin("clock", advance_s=3600)
    assert ec2.describe_instances()["Reservations"] == []


def test_other_services_are_motos(aws: Aws) -> None:
    answer = aws.provider().clients.call(REGION, "get_caller_identity", "sts")
    assert answer["Account"] == "123456789012"


def test_reservations_can_be_asked_for_by_id_and_page(aws: Aws) -> None:
    ids = [aws.reserve(1) for _ in range(5)]
    ec2 = aws.ec2()
    assert (
        len(ec2.describe_capacity_reservations(CapacityReservationIds=ids[:2])["CapacityReservations"]) == 2
    )
    first = ec2.describe_capacity_reservations(MaxResults=3)
    rest = ec2.describe_capacity_reservations(MaxResults=3, NextToken=first["NextToken"])
    found = [r["CapacityReservationId"] for page in (first, rest) for r in page["CapacityReservations"]]
    assert found == ids
    with pytest.raises(Exception, match="NotFound"):
        ec2.describe_capacity_reservations(CapacityReservationIds=["cr-0"])


def test_a_cancelled_reservation_leaves_its_machines(aws: Aws) -> None:
    reference = aws.reserve(1)
    ec2 = aws.ec2()
    target = {"CapacityReservationTarget": {"CapacityReservationId": reference}}
    ec2.run_instances(
        ImageId="ami-1",
        InstanceType="c7i.large",
        MinCount=1,
        MaxCount=1,
        Placement={"AvailabilityZone": "us-east-1a"},
        CapacityReservationSpecification=target,
    )
    assert ec2.cancel_capacity_reservation(CapacityReservationId=reference)["Return"] is True
    assert [i["reservation_id"] for i in aws.admin("state")["instances"]] == [""]


def test_placement_groups_come_and_go(aws: Aws) -> None:
    ec2 = aws.ec2()
    ec2.create_placement_group(GroupName="g", Strategy="cluster")
    with pytest.raises(Exception, match="Duplicate"):
        ec2.create_placement_group(GroupName="g", Strategy="cluster")
    assert [g["GroupName"] for g in ec2.describe_placement_groups()["PlacementGroups"]] == ["g"]
    ec2.delete_placement_group(GroupName="g")
    assert ec2.describe_placement_groups()["PlacementGroups"] == []


def test_the_wire() -> None:
    form = parse(
        b"Action=X&Filter.2.Name=b&Filter.2.Value.1=2&Filter.1.Name=a&Filter.1.Value.2=y&Filter.1.Value.1=x"
    )
    assert Ask("r", "X", form).filters() == {"a": ["x", "y"], "b": ["2"]}
    assert Ask("r", "X", {"MaxResults": "2"}).page([1, 2, 3]) == ([1, 2], "2")
    assert Ask("r", "X", {"MaxResults": "2", "NextToken": "2"}).page([1, 2, 3]) == ([3], "")
    assert scope("AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/ec2/aws4_request, X=y") == (
        "eu-west-1",
        "ec2",
    )
    assert scope("Basic abc") == ("", "")
    assert moment(when(1_800_000_000.25)) == 1_800_000_000.25
    with pytest.raises(Refused):
        parse(b"\xff\xfe")
    from xml.etree import ElementTree

    root = ElementTree.Element("x")
    fill(root, {"a": None, "b": "", "c": False, "d": [1, {"e": "<"}], "f": Decimal("1.50")})
    shown = ElementTree.tostring(root).decode()
    assert "false" in shown and "&lt;" in shown and "1.50" in shown
    assert shown.count("item>") == 4


def test_capacity_is_by_region_zone_and_type() -> None:
    world = World(times=Times())
    world.capacity = {("r", "*", "*"): 2, ("r", "ra", "t"): 1}
    assert not world.full("r", "ra", "t")
    world.instances["i"] = Instance("i", "r", "ra", "t", "", 0.0, 0.0, 0.0)
    assert world.full("r", "ra", "t") and not world.full("r", "rb", "t") and not world.full("r", "ra", "u")
    world.instances["j"] = Instance("j", "r", "rb", "u", "", 0.0, 0.0, 0.0)
    assert world.full("r", "rb", "u") and not world.full("s", "rb", "u")
    world.instances["j"].reservation_id = "cr"
    assert not world.full("r", "rb", "u"), "what is reserved does not count"
