"""A fleet's providers and drivers, built from its file: SDKs are imported for the kinds that it names, and no others."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import psutil

from caudal.composition.first_node import FirstNodeDriver, ray_token_file
from caudal.control.nodes import join_expiry, join_token, ray_token
from caudal.domain.errors import NotFound, UsageError
from caudal.domain.fleet import FleetSpec, HostSpec, Lease, Offer, ProviderSpec, Resources, SiteSpec
from caudal.drivers.local import LocalDriver
from caudal.drivers.ray.commands import head_command, join_command
from caudal.ports import Driver, Provider, World
from caudal.providers import bootstrap
from caudal.providers.local import LocalProvider
from caudal.spec.clouds import FAKE, LOCAL, is_loopback
from caudal.store.atomic import write_atomic
from caudal.store.blobs import open_blobs
from caudal.store.home import Home
from caudal.store.identity import identity
from caudal.store.site_tls import AUTHORITY

EXTRAS = {"aws": "boto3", "azure": "azure.mgmt.compute", "hosts": "asyncssh"}
CLOUDS = ("aws", "azure")
LIMIT_BYTES = {"aws": bootstrap.AWS_LIMIT_BYTES, "azure": bootstrap.AZURE_LIMIT_BYTES}
FAKE_GROUP = "caudal"  # the resource group at the fake of Azure, where the fleet file names none


@runtime_checkable
class Closing(Protocol):
    """A provider or a driver that holds connections."""

    def close(self) -> None:
        """Let go of them; what runs goes on."""
        ...


def elsewhere(fleet: FleetSpec) -> frozenset[str]:
    """The sites whose gangs are told everything by files, since they may run on another machine."""
    return frozenset(s.name for s in fleet.sites if _driver_kind(fleet, s) != LOCAL)


def build_world(bare: World, fleet: FleetSpec, place: Home, api_url: Callable[[], str]) -> World:
    """The world of a fleet: `bare` with its providers and drivers. A fake that a provider names is started, or found
    where it runs. Raises UsageError (what cannot be, what is not installed), Failed."""
    for site in fleet.sites:
        _check_site(fleet, site)
    makers = _Makers(bare, fleet, place, api_url)
    providers: dict[str, Provider] = {}
    for spec in fleet.providers:
        if spec.kind != LOCAL and any(site.provider == spec.name for site in fleet.sites):
            providers[spec.name] = makers.provider(spec)
    if any(site.provider == LOCAL for site in fleet.sites):
        providers[LOCAL] = makers.local()
    drivers = {site.name: makers.driver(site) for site in fleet.sites}
    return replace(bare, providers=providers, drivers=drivers)


@dataclass(frozen=True)
class _Makers:
    world: World
    fleet: FleetSpec
    place: Home
    api_url: Callable[[], str]

    def local(self) -> Provider:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory_bytes = psutil.virtual_memory().total
        return LocalProvider(self.place.machines, self.fleet.sites, cores, memory_bytes, as_of=_today())

    def provider(self, spec: ProviderSpec) -> Provider:
        need(spec.kind)
        who = identity(self.place, open_blobs(self.place.blobs_url), self.fleet.name)
        clock, sites, contracts = self.world.clock, self.fleet.sites, self.fleet.contracts
        if spec.kind == "hosts":
            from caudal.providers.hosts import HostsProvider  # noqa: PLC0415 - an extra

            joins = any(self._joins(s) for s in sites if s.provider == spec.name)
            boots = self._host_script if joins else None
            return HostsProvider(spec, who, self.place.root / "hosts", _today(), bootstrap=boots)

        def user_data(lease_id: str, offer: Offer) -> str:
            return self.script(spec, self._lease(lease_id), offer.machine_type.resources)

        if spec.kind == "aws":
            from caudal.providers.aws.provider import AwsProvider  # noqa: PLC0415 - an extra

            if spec.endpoint == FAKE:
                spec = replace(spec, endpoint=_aws_fake(self.place, spec.name))
            return AwsProvider(spec, sites, contracts, who, user_data, clock)
        from caudal.providers.azure import AzureProvider, FakeCredential  # noqa: PLC0415 - an extra

        credential = None
        if spec.endpoint == FAKE:
            from caudal.providers.azure_fake import SUBSCRIPTION, launcher  # noqa: PLC0415 - only for this

            url, token = launcher.start(launcher.folder(self.place.root, spec.name))
            account, group = spec.account or SUBSCRIPTION, spec.resource_group or FAKE_GROUP
            spec = replace(spec, endpoint=url, account=account, resource_group=group)
            credential = FakeCredential(token)
        return AzureProvider(spec, sites, contracts, who, user_data, clock, credential=credential)

    def driver(self, site: SiteSpec) -> Driver:
        spec = self.fleet.driver_of(site.name)
        if spec is None or spec.kind == LOCAL:
            return LocalDriver(site.name, self.place.gangs, self.world.clock)
        if spec.kind == "slurm":
            from caudal.drivers.slurm.driver import open_driver  # noqa: PLC0415 - only for whoever has it

            return open_driver(site.name, spec)
        if spec.address:
            from caudal.drivers.ray.driver import RayDriver  # noqa: PLC0415 - as above

            return RayDriver(site.name, spec.address)
        secret = ray_token(self.place.token(), site.name)
        write_atomic(ray_token_file(self.place, site.name), secret.encode(), mode=0o600)
        return FirstNodeDriver(site.name, self.world.store, self.world.clock, self.place)

    def script(self, spec: ProviderSpec, lease: Lease, promised: Resources) -> str:
        """The user data of a lease: always the same text, since all in it follows from the lease and the fleet file."""
        here = bool(spec.endpoint)
        words = self._join_words(lease, promised)
        plan = bootstrap.NodePlan(
            lease=lease.id,
            api_url=self.api_url(),
            join_token=join_token(self.place.token(), lease.id, join_expiry(lease)),
            promised=Resources() if here else promised,  # a fake's machine is a share of this one
            ca_pem=(self.place.certificates / AUTHORITY).read_text() if self.fleet.api.tls else "",
            here=here,
            join=words.get("join", ()),
            head=words.get("head", ()),
            member=words.get("member", ()),
        )
        return bootstrap.script(plan, self._source(here), LIMIT_BYTES.get(spec.kind, 0))

    def _join_words(self, lease: Lease, has: Resources) -> dict[str, tuple[str, ...]]:
        driver = self.fleet.driver_of(lease.site)
        if driver is None or driver.kind != "ray" or "://" in driver.address:
            return {}  # a cluster that is known by its Jobs URL only takes its nodes by itself
        more = ("--temp-dir={temp_dir}", "--dashboard-agent-listen-port={agent_port}")
        if driver.address:
            return {"join": tuple(join_command(lease.id, driver.address, has, token_file=""))}
        token_file = "{token_file}"
        head = head_command(
            lease.id,
            has,
            node_address="{address}",
            token_file=token_file,
            port="{port}",
            jobs_host="{address}",
            jobs_port="{jobs_port}",
            more=(*more, "--ray-client-server-port={client_port}"),
        )
        member = join_command(
            lease.id, "{head}", has, token_file=token_file, node_address="{address}", more=more
        )
        return {"head": tuple(head), "member": tuple(member)}

    def _source(self, here: bool) -> bootstrap.Source:
        nodes = self.fleet.nodes
        if here:
            return bootstrap.Source(installed=sys.executable)
        if not nodes.wheel:
            return bootstrap.Source(installed=nodes.python)
        lock = bootstrap.Artefact(nodes.lock, nodes.lock_sha256) if nodes.lock else None
        return bootstrap.Source(bootstrap.Artefact(nodes.wheel, nodes.wheel_sha256), lock, nodes.python)

    def _host_script(self, lease_id: str, host: HostSpec) -> str:
        spec = next(p for p in self.fleet.providers if host in p.hosts)
        return self.script(spec, self._lease(lease_id), host.resources)

    def _joins(self, site: SiteSpec) -> bool:
        return _driver_kind(self.fleet, site) == "ray"

    def _lease(self, lease_id: str) -> Lease:
        found = next((x for x in self.world.store.read().leases if x.id == lease_id), None)
        if found is None:
            raise NotFound(f"no lease {lease_id}")
        return found


def need(kind: str) -> None:
    """Raises UsageError where what a kind of provider needs is not installed."""
    package = EXTRAS.get(kind)
    if package and not is_installed(package):
        raise UsageError(
            f"{package} is not installed, and the fleet has a provider of kind {kind}",
            remedy=f"pip install 'caudal[{kind}]'",
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def fakes(fleet: FleetSpec) -> list[ProviderSpec]:
    """The providers that are fakes which a control process starts."""
    return [p for p in fleet.providers if p.endpoint == FAKE]


def end_fakes(place: Home, fleet: FleetSpec) -> list[str]:
    """End the fakes of a fleet, with their machines; returns whose ended."""
    for spec in fakes(fleet):
        launcher = _launcher(spec.kind)
        launcher.stop(launcher.folder(place.root, spec.name))
    return [spec.name for spec in fakes(fleet)]


class _Launcher(Protocol):
    def folder(self, home: Path, provider: str) -> Path: ...

    def stop(self, state: Path) -> None: ...


def _launcher(kind: str) -> _Launcher:
    if kind == "aws":
        from caudal.providers.aws_fake import launcher as aws  # noqa: PLC0415 - only for whoever has one

        return aws
    from caudal.providers.azure_fake import launcher as azure  # noqa: PLC0415 - as above

    return azure


def _aws_fake(place: Home, name: str) -> str:
    if not is_installed("moto"):
        raise UsageError(
            f"provider {name} is a fake, and moto is not installed", remedy="pip install 'caudal[fakes]'"
        )
    from caudal.providers.aws_fake import launcher  # noqa: PLC0415 - only for whoever has one

    return launcher.start(launcher.folder(place.root, name))


def _check_site(fleet: FleetSpec, site: SiteSpec) -> None:
    """Raises UsageError where a site's provider and driver do not go together."""
    spec = next((p for p in fleet.providers if p.name == site.provider), None)
    kind = spec.kind if spec is not None else LOCAL
    driver = fleet.driver_of(site.name)
    runs = driver.kind if driver is not None else LOCAL
    what = f"site {site.name}: provider {site.provider!r} with driver {site.driver!r}"
    here = kind == LOCAL or (spec is not None and bool(spec.endpoint))
    if kind == LOCAL and site.provider != LOCAL:
        raise UsageError(
            what, why="a provider of kind local is this machine", remedy="write `provider: local`"
        )
    if runs == LOCAL and not here:
        why = "driver local runs everything on this machine, and never on the ones that are rented"
        raise UsageError(what, why=why, remedy="give the site a driver of kind ray or slurm")
    if runs == "ray" and driver is not None and not driver.address and kind == LOCAL:
        why = "nobody begins the site's Ray cluster: this machine is no node that boots"
        raise UsageError(what, why=why, remedy="give the driver the `address` of a Ray head that runs")
    if not here and runs == "ray" and is_loopback(fleet.api.host):
        hosts: Sequence[HostSpec] = spec.hosts if spec is not None else ()
        if not hosts or any(not is_loopback(host.address) for host in hosts):
            raise UsageError(
                f"{what}: its nodes cannot reach the control API",
                why=f"it listens on {fleet.api.host}, which is this machine's own",
                remedy="give `api: {host: ADDRESS, tls: true}` with an address that the nodes reach",
            )


def _driver_kind(fleet: FleetSpec, site: SiteSpec) -> str:
    driver = fleet.driver_of(site.name)
    return driver.kind if driver is not None else LOCAL


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
