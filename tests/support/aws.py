"""AWS on this machine: one fake for the whole test process, emptied for each test that asks for it."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from caudal.domain.fleet import Contract, Offer, ProviderSpec, SiteSpec
from caudal.providers.aws.clients import Patience
from caudal.providers.aws.provider import AwsProvider
from caudal.providers.aws_fake.server import FakeServer

REGION, ZONE = "us-east-1", "us-east-1a"
FLEET = "demo"
IMAGE = "ami-0123456789abcdef0"
PROVIDER = "cloud"
SMALL = "c7i.large"
IMPATIENT = Patience(connect_s=5.0, read_s=30.0, attempts=1)


@functools.cache
def _server() -> FakeServer:
    return FakeServer()


@functools.cache
def _made_before(url: str, patience: Patience) -> dict[tuple[str, str], Any]:
    return {}


class TestClock:
    """The machine's clock, moved on by hand; for the provider, whose pauses are minutes long."""

    __test__ = False

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def user_data(lease_id: str, offer: Offer) -> str:
    """The same text for the same lease, as the provider asks for."""
    return f"#!/bin/sh\n# {lease_id} {offer.site}\n"


def site(name: str = "north", **changes: Any) -> SiteSpec:
    """A site of one zone and one small machine type."""
    fields = {
        "provider": PROVIDER,
        "region": REGION,
        "zone": ZONE,
        "machine_types": (SMALL,),
        "image": IMAGE,
        **changes,
    }
    return SiteSpec(name, **fields)


@dataclass
class Aws:
    """The fake, emptied, and what builds providers on it."""

    server: FakeServer
    clock: TestClock = field(default_factory=TestClock)

    def admin(self, verb: str, **body: Any) -> dict[str, Any]:
        """`/_caudal/VERB`."""
        return self.server.gate.admin(verb, **body)

    def provider(
        self,
        sites: Sequence[SiteSpec] = (),
        contracts: Sequence[Contract] = (),
        *,
        fleet: str = FLEET,
        max_machines: int = 0,
        patience: Patience = IMPATIENT,
        script: Any = user_data,
    ) -> AwsProvider:
        """A provider with one site of one small type, unless others are given."""
        spec = ProviderSpec(PROVIDER, "aws", endpoint=self.server.url, max_machines=max_machines)
        made = AwsProvider(spec, sites or [site()], contracts, fleet, script, self.clock, patience)
        # The SDK reads a megabyte of JSON for each session: those of one test process share what was read.
        made.clients._clients = _made_before(self.server.url, patience)
        return made

    def reserve(self, count: int, *, match: str = "targeted", kind: str = SMALL, zone: str = ZONE) -> str:
        """A capacity reservation; its id."""
        answer = self.ec2(zone[:-1]).create_capacity_reservation(
            InstanceType=kind,
            InstancePlatform="Linux/UNIX",
            AvailabilityZone=zone,
            InstanceCount=count,
            InstanceMatchCriteria=match,
        )
        return str(answer["CapacityReservation"]["CapacityReservationId"])

    def ec2(self, region: str = REGION) -> Any:
        """AWS's own client, as somebody else in the account would use it."""
        return self.provider().clients._client("ec2", region)

    def calls(self, action: str) -> list[dict[str, str]]:
        """The forms of the calls of an action so far."""
        return [call["form"] for call in self.admin("calls")["calls"] if call["action"] == action]


def fresh_aws() -> Aws:
    """The fake with nothing in it, whose machines boot and end within a blink."""
    aws = Aws(_server())
    aws.admin("reset")
    aws.admin("times", boot_s=0.02, stop_s=0.02)
    return aws


def reserved(reference: str, count: int, **changes: Any) -> Contract:
    """A contract of small machines that holds for years."""
    fields = {
        "start": "2020-01-01",
        "end": "2040-01-01",
        "machine_type": SMALL,
        "count": count,
        "price_usd_per_hour": Decimal("0.05"),
        "reference": reference,
        **changes,
    }
    return Contract("steady", fields.pop("kind", "reserved"), PROVIDER, **fields)
