"""`caudal blocks`: the capacity blocks that are on sale, and the one way to buy one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from caudal.catalog.aws_types import known_types
from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.domain.errors import NotFound, Unreachable, UsageError
from caudal.domain.fleet import FleetSpec, ProviderSpec
from caudal.providers.aws.blocks import Block, BlockOffering, BlockWish, buy, offerings
from caudal.providers.aws.clients import Clients, Patience
from caudal.providers.aws_fake import launcher
from caudal.spec.files import load
from caudal.store.home import Home, home
from caudal.store.state import open_store

SHAPE = "caudal.blocks.v1"


class _Clock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Return after that long."""
        time.sleep(seconds)


@click.command("blocks")
@click.option(
    "--fleet", "file", type=click.Path(path_type=Path), help="A fleet file. Default: what was applied."
)
@click.option("--provider", "name", help="The provider's name, where the fleet has several of AWS.")
@click.option("--region", "regions", multiple=True, help="Default: the regions of the provider's sites.")
@click.option(
    "--type", "types", multiple=True, help="Default: what its sites may take, and blocks are sold of."
)
@click.option("--count", default=1, show_default=True, help="Machines in the block.")
@click.option("--hours", default=24, show_default=True, help="How long it is.")
@click.option("--buy", "offering_id", help="Buy this offering. It is paid in full at once, with no way back.")
@click.option("--price", help="With --buy: what the offering costs, as it was listed.")
@json_option
@click.pass_obj
def verb(
    root: str | None,
    file: Path | None,
    name: str | None,
    regions: tuple[str, ...],
    types: tuple[str, ...],
    count: int,
    hours: int,
    offering_id: str | None,
    price: str | None,
    as_json: bool,
) -> None:
    """List the capacity blocks that AWS has on sale for your sites, the cheapest first.

    `caudal blocks --buy OFFERING --price 123.45` buys one, if it still costs exactly that. Nothing else in Caudal
    ever buys a block.
    """
    if (offering_id is None) != (price is None):
        raise UsageError(
            "--buy and --price go together", remedy="--buy OFFERING --price 123.45, as it is listed"
        )
    place = home(root)
    fleet = _fleet(place, file)
    spec = _provider(fleet, name)
    clients = Clients(spec.name, spec.account, _endpoint(place, spec), _Clock(), Patience())
    found = [
        offering
        for wish in _wishes(fleet, spec, regions, types, count, hours)
        for offering in offerings(clients, wish)
    ]
    found.sort(key=lambda offering: (offering.price_usd, offering.start, offering.id))
    if offering_id is None or price is None:
        _show(found, as_json)
        return
    _show_bought(buy(clients, fleet.name, found, offering_id, price), spec, as_json)


def _fleet(place: Home, file: Path | None) -> FleetSpec:
    if file is not None:
        fleets = [spec for spec in load(file) if isinstance(spec, FleetSpec)]
        if not fleets:
            raise NotFound("no fleet in this file", where=str(file))
        return fleets[0]
    store = open_store(place.database_url)
    try:
        fleet = store.read().fleet
    finally:
        store.close()
    if fleet is None:
        raise NotFound("no fleet was applied yet", where=str(place.root), remedy="name its file with --fleet")
    return fleet


def _provider(fleet: FleetSpec, name: str | None) -> ProviderSpec:
    of_aws = [p for p in fleet.providers if p.kind == "aws" and name in (None, p.name)]
    if len(of_aws) != 1:
        names = ", ".join(p.name for p in fleet.providers if p.kind == "aws") or "none"
        raise UsageError(
            "which provider of AWS?", why=f"the fleet has {names}", remedy="name one with --provider"
        )
    return of_aws[0]


def _endpoint(place: Home, spec: ProviderSpec) -> str:
    if spec.endpoint != "fake":
        return spec.endpoint
    url = launcher.running(launcher.folder(place.root, spec.name))
    if not url:
        raise Unreachable(f"the fake of provider {spec.name} does not run", remedy="`caudal up` starts it")
    return url


def _wishes(
    fleet: FleetSpec,
    spec: ProviderSpec,
    regions: Sequence[str],
    types: Sequence[str],
    count: int,
    hours: int,
) -> list[BlockWish]:
    """One for each region and type. Raises NotOffered for a type or region that AWS does not have."""
    sites = [site for site in fleet.sites if site.provider == spec.name]
    allowed = types or sorted(
        {kind.name for s in sites for kind in known_types(s.machine_types) if kind.blocks}
    )
    wish = BlockWish("", "", count, hours)
    return [
        replace(wish, region=region, machine_type=kind)
        for region in regions or sorted({site.region for site in sites})
        for kind in allowed
    ]


def _show(found: Sequence[BlockOffering], as_json: bool) -> None:
    if as_json:
        print_json({"shape": SHAPE, "offerings": [_row(offering) for offering in found]})
        return
    if not found:
        console().print("No block of that kind is on sale now.")
        return
    rows = [
        [
            plain(one.id),
            plain(one.machine_type),
            f"{one.count:>5}",
            plain(one.zone),
            _when(one.start),
            _when(one.end),
            f"{one.price_usd:>12,.2f}",
            f"{one.price_usd_per_machine_hour:>8}",
        ]
        for one in found
    ]
    columns = ["offering", "type", "count", "zone", "from (UTC)", "to (UTC)", "USD in all", "an hour"]
    console().print(table(columns, rows))


def _show_bought(block: Block, spec: ProviderSpec, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "shape": SHAPE,
                "bought": _row(block.offering),
                "reservation": block.reservation_id,
                "state": block.state,
            }
        )
        return
    one = block.offering
    out = console()
    out.print(f"Bought {plain(one.id)} for {one.price_usd} USD: reservation {plain(block.reservation_id)}.")
    out.print("Put it into the fleet file, and apply that:\n")
    out.print(
        "contracts:\n"
        f"  - name: block-{block.reservation_id[-6:]}\n"
        "    kind: block\n"
        f"    provider: {plain(spec.name)}\n"
        f"    start: {_when(one.start)[:10]}\n"
        f"    end: {_when(one.end + 86_399)[:10]}\n"
        f"    machine_type: {plain(one.machine_type)}\n"
        f"    count: {one.count}\n"
        f"    price_usd_per_hour: {one.price_usd_per_machine_hour}\n"
        f"    prepayment_usd: {one.price_usd}\n"
        f"    reference: {plain(block.reservation_id)}"
    )


def _row(one: BlockOffering) -> dict[str, Any]:
    return {**asdict(one), "price_usd": str(one.price_usd), "start": _when(one.start), "end": _when(one.end)}


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
