"""`caudal up`, `cost` and `down` over the fake of AWS: a machine is rented under a contract for what does not fit here, and
given back. Gangs run on this machine, which is where the fake's machines are, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest

from caudal.catalog.aws_types import BY_NAME
from caudal.providers.aws_fake import launcher
from tests.support.fleet import RUN, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

REGION, ZONE = "eu-north-1", "eu-north-1a"
CORES = len(os.sched_getaffinity(0))
KIND = min(
    (k for k in BY_NAME.values() if k.machine_type.resources.cpus > CORES + 1),
    key=lambda k: (k.computes, k.machine_type.resources.cpus, k.name),
).name

FLEET = """\
type: fleet
name: rents
sites:
  - {{name: here}}
  - {{name: there, provider: amazon, region: {region}, zone: {zone}, machine_types: [{kind}], markets: [reserved],
      image: ami-0123456789abcdef0}}
providers:
  - {{name: amazon, kind: aws, endpoint: fake}}
contracts:
  - {{name: signed, kind: reserved, provider: amazon, machine_type: {kind}, start: 2026-01-01, end: 2036-01-01,
      count: 1, price_usd_per_hour: 3600, reference: {reference}}}
api: {{port: {api}}}
gateway: {{port: {gateway}}}
"""


@pytest.fixture
def rents(tmp_path: Path) -> Iterator[tuple[Fleet, str]]:
    """A fleet with a contract whose machine is reserved at the fake, and the fake's address."""
    one = Fleet(tmp_path / "f", tokens=50_000_000)
    state = launcher.folder(one.home, "amazon")
    url = launcher.start(state)
    try:
        keys = {"aws_access_key_id": "fake", "aws_secret_access_key": "fake"}
        ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=url, **keys)
        made = ec2.create_capacity_reservation(
            InstanceType=KIND,
            InstancePlatform="Linux/UNIX",
            AvailabilityZone=ZONE,
            InstanceCount=1,
            InstanceMatchCriteria="targeted",
        )
        reference = made["CapacityReservation"]["CapacityReservationId"]
        given = {"region": REGION, "zone": ZONE, "kind": KIND, "reference": reference}
        ports = {"api": one.api_port, "gateway": one.gateway_port}
        (one.files / "fleet.yaml").write_text(FLEET.format(**given, **ports))
        run = RUN.format(tokens=50_000_000).replace("cpus: 0.4", f"cpus: {CORES + 1}") + "sites: 1\n"
        (one.files / "run.yaml").write_text(run)
        yield one, url
    finally:
        one.kill_everything()
        launcher.stop(state)


def machines(url: str) -> list[str]:
    """What the fake lists."""
    rows = httpx.get(f"{url}/_caudal/state", timeout=10.0, trust_env=False).json()["instances"]
    return [row["id"] for row in rows if row["state"] != "terminated"]


def test_a_machine_is_rented_under_a_contract_billed_and_given_back(rents: tuple[Fleet, str]) -> None:
    one, url = rents
    one.up()
    one.wait_for(lambda: one.pids("tiny.worker.0"), 120, "the worker to run")
    (mine,) = machines(url)
    events = one.get("/events?after=0")["items"]
    asked = next(e["text"] for e in events if e["kind"] == "lease.requested" and "signed" in e["text"])
    assert "draws on contract signed" in asked
    nodes = {s["name"]: s for s in one.get("/status")["sites"]}
    assert "tiny.worker.0-1" in nodes["there"]["gangs"]
    assert nodes["there"]["machine_type"] == KIND
    one.wait_for(
        lambda: (one.home / "fakes" / "amazon" / "machines" / mine / ".caudal" / "node" / "token").exists(),
        60,
        "the machine's own agent to have changed its join token",
    )
    one.kill_control()  # the fake is a cloud: it does not mind, and the next one finds it and its machine
    one.up()
    assert machines(url) == [mine]
    one.wait_for(lambda: one.pids("tiny.worker.0"), 60, "the worker to be adopted")
    cost = one.caudal("cost", "--by", "workload", "--json")
    assert cost.returncode == 0, cost.stderr
    assert '"tiny"' in cost.stdout and '"signed"' in cost.stdout
    down = one.caudal("down", "--end-fakes", timeout_s=150)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "nothing is left" in down.stdout and "the fake of amazon has ended" in down.stdout
    assert launcher.running(launcher.folder(one.home, "amazon")) == ""


def test_down_leaves_the_fakes_list_empty(rents: tuple[Fleet, str]) -> None:
    one, url = rents
    one.up()
    one.wait_for(lambda: machines(url), 120, "a machine")
    down = one.caudal("down", timeout_s=150)
    assert down.returncode == 0, down.stdout + down.stderr
    assert machines(url) == []
    assert "--end-fakes" in down.stdout
