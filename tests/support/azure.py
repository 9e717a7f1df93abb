"""A provider of Azure on the fake: one fake process for all tests of a session, empty again for each."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from caudal.domain.fleet import Contract, Offer, ProviderSpec, SiteSpec
from caudal.ports import Clock
from caudal.providers.azure import AzureProvider
from caudal.providers.azure_fake import SUBSCRIPTION, FakeAzure, start

GROUP = "fleet"
LOCATION = "swedencentral"
SIZE = "Standard_ND96isr_H100_v5"
SCOPE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
GROUP_ID = f"{SCOPE}/Microsoft.Compute/capacityReservationGroups/block"
SUBNET = f"{SCOPE}/Microsoft.Network/virtualNetworks/net/subnets/nodes"
IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"
NAME = "az"
FLEET = "test fleet"

SITE = SiteSpec(
    "north", NAME, region=LOCATION, machine_types=(SIZE,), markets=("on_demand",), image=IMAGE, network=SUBNET
)
CONTRACT = Contract(
    "block",
    "reserved",
    NAME,
    "2020-01-01",
    "2100-01-01",
    machine_type=SIZE,
    count=100,
    price_usd_per_hour=Decimal(50),
    reference=GROUP_ID,
)


@cache
def _only_one() -> FakeAzure:
    fake = start(arguments=["--boot-s", "0.05", "--delete-s", "0.05"])
    atexit.register(fake.stop)  # of the tests' own process; the fake ends with it in any case
    return fake


def fake_azure() -> FakeAzure:
    """The session's fake, as at its beginning."""
    fake = _only_one()
    fake.admin("reset", {})
    fake.admin("times", {"fail_s": 0.05})
    return fake


def azure_provider(
    fake: FakeAzure,
    clock: Clock,
    *,
    sites: tuple[SiteSpec, ...] = (SITE,),
    contracts: tuple[Contract, ...] = (CONTRACT,),
    fleet: str = FLEET,
    max_machines: int = 0,
    **site: Any,
) -> AzureProvider:
    """A provider with one site, of which `site` changes fields."""
    fields = {key: site.pop(key) for key in list(site) if key in SiteSpec.__dataclass_fields__}
    if fields:
        sites = tuple(SiteSpec(**{**_fields(one), **fields}) for one in sites)
    spec = ProviderSpec(
        NAME,
        "azure",
        endpoint=fake.url,
        account=SUBSCRIPTION,
        resource_group=GROUP,
        max_machines=max_machines,
    )
    return AzureProvider(spec, sites, contracts, fleet, user_data, clock, **{"timeout_s": 5.0, **site})


def user_data(lease_id: str, offer: Offer) -> str:
    """What a test's machine starts with."""
    return f"#!/bin/sh\necho {lease_id} {offer.site}\n"


def _fields(site: SiteSpec) -> Mapping[str, Any]:
    return {name: getattr(site, name) for name in SiteSpec.__dataclass_fields__}
