"""docs/howto/aws.md says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from caudal.domain.fleet import FleetSpec
from caudal.providers.aws.checkup import permissions
from caudal.providers.aws.launch import network
from caudal.spec.files import parse
from tests.support.aws import SMALL, fresh_aws, site

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "howto" / "aws.md").read_text()
CALLED = re.compile(r'"((?:describe|run|terminate|create|list|purchase)_[a-z_]+)"')


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_fleet_file_is_one() -> None:
    (fleet,) = parse(block("yaml"), "aws.md")
    assert isinstance(fleet, FleetSpec)
    assert network(fleet.sites[0]) == ("subnet-0aaa", ["sg-0bbb"])
    offers = fresh_aws().provider([fleet.sites[0]], fleet.contracts).offers()
    assert {o.machine_type.name for o in offers} == {"p5.48xlarge", "g6e.12xlarge"}
    assert offers[0].contract == "h100" or not offers[0].contract


def test_the_policy_allows_what_is_called_and_buying_is_left_out() -> None:
    statements = json.loads(block("json"))["Statement"]
    allowed = {
        a for s in statements for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    }
    sources = "".join(p.read_text() for p in (ROOT / "src/caudal/providers/aws").glob("*.py"))
    called = {"".join(word.capitalize() for word in name.split("_")) for name in CALLED.findall(sources)}
    assert {a.partition(":")[2] for a in allowed} == called - {"PurchaseCapacityBlock"} | {"CreateTags"}
    assert {p.action for p in permissions(fresh_aws().provider().clients, "lab", site(), SMALL)} <= allowed


def test_ending_a_machine_is_bound_to_the_tag() -> None:
    statements = json.loads(block("json"))["Statement"]
    ending = next(s for s in statements if s["Action"] == "ec2:TerminateInstances")
    assert ending["Condition"] == {"StringLike": {"aws:ResourceTag/caudal-fleet": "lab-*"}}
