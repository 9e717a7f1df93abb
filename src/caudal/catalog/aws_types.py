"""AWS's machine types that Caudal knows: what each has, and its dated list price.

What a machine has is what EC2's DescribeInstanceTypes says of it. Prices are AWS's list prices for Linux on demand in
us-east-1; other regions differ, and of what no source says the price is None: such a type is offered only under a
contract, or as spot, whose price EC2 itself gives. Knows nothing about sites, and asks nobody.

A Neuron machine has `neuron_cores` and no `accelerators`, so that what asks for GPUs never lands on it. Cores are the
physical ones that EC2 counts: on Trainium2 programs see half as many where two are joined (LNC=2, Neuron's default).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from caudal.domain.errors import NotOffered
from caudal.domain.fleet import MachineType, Resources

GIB = 1 << 30
PRICE_REGION = "us-east-1"

_FILE = "AWS's public price file (us-east-1, Linux)"
_FILE_DATE = "2026-09-19"
_NEURON = "AWS's list price as the Neuron documentation repeats it (us-east-1, Linux)"
_LIST = "AWS's list price as public cost tools repeat it (us-east-1, Linux)"
_READ = "2026-11-29"


@dataclass(frozen=True, slots=True)
class AwsType:
    """One type. `efa_interfaces`: how many EFA interfaces it may have, one on each network card. `blocks`: whether
    it is sold in capacity blocks. `as_of` is the price's date."""

    machine_type: MachineType
    efa_interfaces: int = 0
    blocks: bool = False
    price_usd_per_hour: Decimal | None = None
    source: str = ""
    as_of: str = ""

    @property
    def name(self) -> str:
        """`p5.48xlarge`."""
        return self.machine_type.name

    @property
    def computes(self) -> bool:
        """Whether it has GPUs or Neuron cores."""
        resources = self.machine_type.resources
        return bool(resources.accelerators or resources.neuron_cores)


def _type(
    name: str,
    vcpus: int,
    memory_gib: int,
    price: str = "",
    source: tuple[str, str] = ("", ""),
    *,
    gpus: tuple[int, str] = (0, ""),
    neuron: tuple[int, str] = (0, ""),
    efa: int = 0,
    blocks: bool = False,
) -> AwsType:
    resources = Resources(float(vcpus), memory_gib * GIB, gpus[0], neuron[0])
    return AwsType(
        MachineType(name, resources, gpus[1] or neuron[1]),
        efa,
        blocks,
        Decimal(price) if price else None,
        *source,
    )


_A = (_FILE, _FILE_DATE)
_N = (_NEURON, _READ)
_L = (_LIST, _READ)

AWS_TYPES = (
    _type("p4d.24xlarge", 96, 1152, "21.9576", _A, gpus=(8, "A100-40GB"), efa=4, blocks=True),
    _type("p4de.24xlarge", 96, 1152, "27.44705", _A, gpus=(8, "A100-80GB"), efa=4, blocks=True),
    _type("p5.4xlarge", 16, 256, gpus=(1, "H100-SXM"), efa=1, blocks=True),
    _type("p5.48xlarge", 192, 2048, "55.04", _A, gpus=(8, "H100-SXM"), efa=32, blocks=True),
    _type("p5e.48xlarge", 192, 2048, gpus=(8, "H200"), efa=32, blocks=True),
    _type("p5en.48xlarge", 192, 2048, "63.296", _A, gpus=(8, "H200"), efa=16, blocks=True),
    _type("p6-b200.48xlarge", 192, 2048, "113.9328", _A, gpus=(8, "B200"), efa=8, blocks=True),
    _type("trn1.2xlarge", 8, 32, "1.34375", _L, neuron=(2, "Trainium1")),
    _type("trn1.32xlarge", 128, 512, "21.50", _N, neuron=(32, "Trainium1"), efa=8, blocks=True),
    _type("trn1n.32xlarge", 128, 512, "24.78", _L, neuron=(32, "Trainium1"), efa=16),
    _type("trn2.3xlarge", 12, 128, neuron=(8, "Trainium2"), efa=1, blocks=True),
    _type("trn2.48xlarge", 192, 2048, neuron=(128, "Trainium2"), efa=16, blocks=True),
    _type("inf2.xlarge", 4, 16, "0.7582", _L, neuron=(2, "Inferentia2")),
    _type("inf2.8xlarge", 32, 128, "1.96786", _L, neuron=(2, "Inferentia2")),
    _type("inf2.24xlarge", 96, 384, "6.49063", _L, neuron=(12, "Inferentia2")),
    _type("inf2.48xlarge", 192, 768, "12.98127", _N, neuron=(24, "Inferentia2")),
    _type("g5.xlarge", 4, 16, "1.006", _L, gpus=(1, "A10G")),
    _type("g5.12xlarge", 48, 192, "5.672", _L, gpus=(4, "A10G"), efa=1),
    _type("g5.48xlarge", 192, 768, "16.288", _L, gpus=(8, "A10G"), efa=1),
    _type("g6.xlarge", 4, 16, "0.8048", _L, gpus=(1, "L4")),
    _type("g6.12xlarge", 48, 192, "4.6016", _L, gpus=(4, "L4"), efa=1),
    _type("g6.48xlarge", 192, 768, "13.3504", _L, gpus=(8, "L4"), efa=1),
    _type("g6e.xlarge", 4, 32, "1.861", _L, gpus=(1, "L40S")),
    _type("g6e.12xlarge", 48, 384, "10.49264", _L, gpus=(4, "L40S"), efa=1),
    _type("g6e.48xlarge", 192, 1536, "30.13118", _L, gpus=(8, "L40S"), efa=4),
    _type("c7i.large", 2, 4, "0.08925", _L),
    _type("c7i.xlarge", 4, 8, "0.1785", _L),
    _type("c7i.2xlarge", 8, 16, "0.357", _L),
    _type("m7i.large", 2, 8, "0.1008", _L),
    _type("m7i.xlarge", 4, 16, "0.2016", _L),
    _type("m7i.2xlarge", 8, 32, "0.4032", _L),
)

BY_NAME = {known.name: known for known in AWS_TYPES}

REGIONS = (
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "ca-west-1", "mx-central-1", "sa-east-1",
    "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3",
    "ap-east-1", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2",
    "ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6",
    "ap-southeast-7", "af-south-1", "il-central-1", "me-central-1", "me-south-1", "us-gov-east-1", "us-gov-west-1",
)  # fmt: skip
"""AWS's regions, as botocore 1.44 lists them (2026-11-29), without China's, which need accounts of their own."""


def lookup(name: str) -> AwsType:
    """The type of that name. Raises NotOffered, with what may have been meant."""
    known = BY_NAME.get(name)
    if known is None:
        raise NotOffered(
            f"AWS has no machine type {name!r} that Caudal knows",
            remedy=_meant(_likely_types(name), f"the catalogue has {', '.join(sorted(BY_NAME))}"),
        )
    return known


def check_region(name: str) -> str:
    """The region's name. Raises NotOffered, with what may have been meant; a zone's name says its region."""
    if name in REGIONS:
        return name
    if name[:-1] in REGIONS:
        remedy = f"{name} is a zone: write `region: {name[:-1]}` and `zone: {name}`"
    else:
        remedy = _meant(difflib.get_close_matches(name, REGIONS, 1), "see AWS's list of regions")
    raise NotOffered(f"AWS has no region {name!r}", remedy=remedy)


def check_zone(region: str, zone: str) -> str:
    """The zone's name, which is its region's and a letter; empty is any. Raises NotOffered."""
    if zone and not re.fullmatch(re.escape(region) + r"(-[a-z]{3}-\d)?[a-z]", zone):
        raise NotOffered(f"{zone!r} is no zone of region {region}", remedy=f"write it as {region}a")
    return zone


def known_types(names: Sequence[str]) -> list[AwsType]:
    """The types of those names; all where there are none. Raises NotOffered."""
    return [lookup(name) for name in names] if names else list(AWS_TYPES)


def _likely_types(name: str) -> list[str]:
    """Names like it, the likest first; those of the same family before all others, since sizes are what is mistyped."""
    written = name.lower()
    family = written.partition(".")[0]
    found = [known for known in BY_NAME if known.partition(".")[0] == family]
    found = found or difflib.get_close_matches(written, BY_NAME, 3, 0.75)

    def unlike(known: str) -> float:
        return -difflib.SequenceMatcher(None, written, known).ratio()

    return sorted(found, key=unlike)[:3]


def _meant(close: Sequence[str], otherwise: str) -> str:
    return f"did you mean {' or '.join(close)}?" if close else otherwise
