"""The catalogue of AWS's machine types, held against what DescribeInstanceTypes says (in moto's copy of it)."""

from __future__ import annotations

import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES

from caudal.catalog.accelerators import accelerator
from caudal.catalog.aws_types import (
    AWS_TYPES,
    BY_NAME,
    AwsType,
    check_region,
    check_zone,
    known_types,
    lookup,
)
from caudal.domain.errors import NotOffered


@pytest.mark.parametrize("kind", AWS_TYPES, ids=lambda kind: kind.name)
def test_what_a_type_has_is_what_ec2_says(kind: AwsType) -> None:
    said = INSTANCE_TYPES[kind.name]
    has = kind.machine_type.resources
    assert has.cpus == said["VCpuInfo"]["DefaultVCpus"]
    assert has.memory_bytes == said["MemoryInfo"]["SizeInMiB"] << 20
    assert has.accelerators == sum(g["Count"] for g in said.get("GpuInfo", {}).get("Gpus", ()))
    cores = sum(
        d["Count"] * d["CoreInfo"]["Count"] for d in said.get("NeuronInfo", {}).get("NeuronDevices", ())
    )
    assert has.neuron_cores == cores
    assert kind.efa_interfaces == said["NetworkInfo"].get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)
    assert kind.blocks is ("capacity-block" in said["SupportedUsageClasses"])


@pytest.mark.parametrize("kind", AWS_TYPES, ids=lambda kind: kind.name)
def test_every_price_has_a_source_and_a_date(kind: AwsType) -> None:
    if kind.price_usd_per_hour is None:
        assert (kind.source, kind.as_of) == ("", "")
    else:
        assert kind.price_usd_per_hour > 0 and kind.source
        assert "2026-01-01" <= kind.as_of <= "2026-12-31"


def test_accelerators_are_known_by_the_names_of_the_catalogue() -> None:
    for kind in AWS_TYPES:
        if kind.computes:
            assert accelerator(kind.machine_type.accelerator), kind.name


def test_neuron_machines_have_cores_and_no_gpus() -> None:
    for name in ("trn1.32xlarge", "trn2.48xlarge", "inf2.48xlarge"):
        has = lookup(name).machine_type.resources
        assert has.neuron_cores and not has.accelerators


@pytest.mark.parametrize(
    ("written", "meant"),
    [("p5.48xlrge", "p5.48xlarge"), ("P5.48xlarge", "p5.48xlarge"), ("trn2.32xlarge", "trn2.48xlarge")],
)
def test_a_mistyped_type_says_what_was_meant(written: str, meant: str) -> None:
    with pytest.raises(NotOffered) as told:
        lookup(written)
    assert told.value.remedy.startswith("did you mean") and meant in told.value.remedy


def test_a_type_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(NotOffered) as told:
        lookup("quantum.huge")
    assert "p5.48xlarge" in told.value.remedy


@pytest.mark.parametrize(
    ("written", "meant"),
    [("us-east1", "us-east-1"), ("eu-wset-1", "eu-west-1"), ("us-east-1a", "write `region: us-east-1`")],
)
def test_a_mistyped_region_says_what_was_meant(written: str, meant: str) -> None:
    with pytest.raises(NotOffered) as told:
        check_region(written)
    assert meant in told.value.remedy


def test_zones_belong_to_their_region() -> None:
    assert check_zone("us-east-1", "us-east-1a") == "us-east-1a"
    assert check_zone("us-west-2", "us-west-2-lax-1a") == "us-west-2-lax-1a"
    assert check_zone("us-east-1", "") == ""
    with pytest.raises(NotOffered):
        check_zone("us-east-1", "eu-west-1a")
    with pytest.raises(NotOffered):
        check_zone("us-east-1", "us-east-1")


def test_no_names_are_all_types() -> None:
    assert known_types(()) == list(AWS_TYPES)
    assert known_types(["g5.xlarge"]) == [BY_NAME["g5.xlarge"]]
