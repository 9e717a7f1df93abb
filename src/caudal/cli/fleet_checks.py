"""The checkups of a fleet's providers: which is built how, and what is said where one cannot be built.

The SDKs are extras: one that is missing is a finding, and no crash.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from contextlib import closing

from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec, ProviderSpec, SiteSpec
from caudal.ports import Check
from caudal.store.home import Home

PACKAGES = {"aws": "boto3", "azure": "azure.mgmt.compute", "hosts": "asyncssh"}
CALL_S = 5


def fleet_checks(fleet: FleetSpec, place: Home) -> list[Check]:
    """What every provider of a fleet says. Raises nothing."""
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
    return found


def _of(spec: ProviderSpec, fleet: FleetSpec, place: Home) -> Sequence[Check]:
    sites = [site for site in fleet.sites if site.provider == spec.name]
    if spec.kind == "hosts":
        from caudal.providers.hosts import HostsProvider  # noqa: PLC0415 - an extra

        with closing(HostsProvider(spec, fleet.name, place.root / "hosts", "")) as hosts:
            return hosts.checks()
    if spec.kind == "aws":
        return [check for region, site in _by_region(sites).items() for check in _aws(spec, region, site)]
    if spec.kind == "azure":
        return [check for region, _ in _by_region(sites).items() for check in _azure(spec, region)]
    return [Check(f"provider {spec.name}", "ok", "this machine")]


def _by_region(sites: Sequence[SiteSpec]) -> dict[str, SiteSpec]:
    return {site.region: site for site in reversed(sites)}


def _aws(spec: ProviderSpec, region: str, site: SiteSpec) -> Sequence[Check]:
    import boto3  # noqa: PLC0415 - an extra
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    from caudal.providers.aws_checks import AwsChecks  # noqa: PLC0415

    if spec.endpoint == "fake":
        return [Check(f"aws {region}", "ok", "a fake on this machine; `caudal up` starts it")]
    try:
        session = boto3.Session(profile_name=spec.account or None, region_name=region)
        config = Config(connect_timeout=CALL_S, read_timeout=CALL_S, retries={"max_attempts": 1})
        sts, ec2, quotas = (
            session.client(name, config=config, endpoint_url=spec.endpoint or None)
            for name in ("sts", "ec2", "service-quotas")
        )
    except BotoCoreError as error:
        return [
            Check(f"aws {region}", "fail", str(error)[:200], "correct `account` (a profile) and `region`")
        ]
    kind = site.machine_types[0] if site.machine_types else "m5.large"
    return AwsChecks(region, sts, ec2, quotas, site.image, kind, time.time).checks()


def _azure(spec: ProviderSpec, region: str) -> Sequence[Check]:
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - an extra
    from azure.mgmt.compute import ComputeManagementClient  # noqa: PLC0415

    from caudal.providers.azure_checks import AzureChecks  # noqa: PLC0415

    if spec.endpoint:
        return [Check(f"azure {region}", "ok", "a fake on this machine; it asks for no credentials")]
    credential = DefaultAzureCredential()
    compute = ComputeManagementClient(
        credential, spec.account, connection_timeout=CALL_S, read_timeout=CALL_S, retry_total=1
    )
    return AzureChecks(region, credential, compute, spec.resource_group, time.time).checks()


def _there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
