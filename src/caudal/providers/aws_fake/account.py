"""What the account has: its regions, all of the common partition, and its vCPU quotas, at the limit that was given."""

from __future__ import annotations

from typing import Any

from caudal.catalog.aws_types import REGIONS
from caudal.providers.aws_fake.wire import Answer, Ask, xml
from caudal.providers.aws_fake.world import World

USUAL = 1152.0
NAMES = (
    ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"),
    ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("L-417A185B", "Running On-Demand P instances"),
    ("L-2C3B7624", "Running On-Demand Trn instances"),
    ("L-1945791B", "Running On-Demand Inf instances"),
    ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
    ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("L-C4BD4855", "All P5 Spot Instance Requests"),
    ("L-6B0D517C", "All Trn Spot Instance Requests"),
    ("L-B5D1601B", "All Inf Spot Instance Requests"),
)


def quotas(world: World, region: str) -> list[dict[str, Any]]:
    """The rows of ListServiceQuotas."""
    value = float(world.vcpus.get(region, USUAL))
    return [
        {"ServiceCode": "ec2", "QuotaCode": code, "QuotaName": name, "Value": value, "Adjustable": True}
        for code, name in NAMES
    ]


def regions(ask: Ask) -> Answer:
    """DescribeRegions. moto's has China's, too, which no account has besides the others."""
    rows = [
        {
            "regionName": name,
            "regionEndpoint": f"ec2.{name}.amazonaws.com",
            "optInStatus": "opt-in-not-required",
        }
        for name in REGIONS
        if not name.startswith("us-gov-")
    ]
    return xml(ask.action, {"regionInfo": rows})
