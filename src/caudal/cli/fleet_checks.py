"""The checkups of a fleet's providers: which is built how, and what is said where one cannot be built.

The SDKs are extras: one that is missing is a finding, and no crash.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import closing

from caudal.cli.driver_checks import driver_checks
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec, ProviderSpec, SiteSpec
from caudal.ports import Check
from caudal.store.home import Home
from caudal.store.identity import known

PACKAGES = {"aws": "boto3", "azure": "azure.mgmt.compute", "hosts": "asyncssh"}


def fleet_checks(fleet: FleetSpec, place: Home) -> list[Check]:
    """What every provider and every driver of a fleet says. Raises nothing."""
    found: list[Check] = []
    for spec in fleet.providers:
        name = f"provider {spec.name}"
        package = PACKAGES.get(spec.kind)
        if package and not _there(package):
            remedy = f"pip install 'caudal[{spec.kind}]'"
            found.append(Check(name, "fail", f"{package} is not installed", remedy))
            continue
        try:
            found += _of(spec, fleet, place)
        except CaudalError as error:
            found.append(Check(name, "fail", error.what, error.remedy or error.why))
    return [*found, *driver_checks(fleet, place)]


def _of(spec: ProviderSpec, fleet: FleetSpec, place: Home) -> Sequence[Check]:
    sites = [site for site in fleet.sites if site.provider == spec.name]
    if spec.kind == "hosts":
        from caudal.providers.hosts import HostsProvider  # noqa: PLC0415 - an extra

        with closing(
            HostsProvider(spec, known(place, fleet.name) or fleet.name, place.root / "hosts", "")
        ) as hosts:
            return hosts.checks()
    if spec.kind == "aws":
        from caudal.providers import aws_checks  # noqa: PLC0415 - an extra

        if spec.endpoint == "fake":
            return [Check(f"provider {spec.name}", "ok", "a fake on this machine; `caudal up` starts it")]
        by_region = _by_region(sites).values()
        return [check for site in by_region for check in aws_checks.checks_of(spec, site, fleet.name)]
    if spec.kind == "azure":
        from caudal.providers import azure_checks  # noqa: PLC0415 - an extra

        if spec.endpoint:
            return [
                Check(f"provider {spec.name}", "ok", "a fake on this machine: it asks for no credentials")
            ]
        return [check for region in _by_region(sites) for check in azure_checks.checks_of(spec, region)]
    return [Check(f"provider {spec.name}", "ok", "this machine")]


def _by_region(sites: Sequence[SiteSpec]) -> dict[str, SiteSpec]:
    return {site.region: site for site in reversed(sites)}


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
