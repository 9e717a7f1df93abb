"""`caudal offers`: what can be rented, from what Caudal ships and what was imported, filtered and sorted."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from caudal.catalog.as_demand import as_demand
from caudal.catalog.choose import Order, Wanted, choose
from caudal.catalog.rows import COLUMNS, OLD_DAYS, CatalogRow, to_csv
from caudal.cli.offers_import import import_
from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.domain.errors import UsageError
from caudal.domain.fleet import Market
from caudal.store.home import home
from caudal.store.price_files import PriceFiles

SHOWN = 40


@click.group("offers", invoke_without_command=True)
@click.option("--chip", "chips", multiple=True, help="H100 is every H100; may be repeated, as all below may.")
@click.option("--provider", "providers", multiple=True, help="aws, azure, gcp, …")
@click.option("--region", "regions", multiple=True, help="As the provider names it.")
@click.option("--market", "markets", multiple=True, type=click.Choice([m.value for m in Market]))
@click.option("--min-chips", type=click.IntRange(0, 100_000), default=0, help="In one machine, at least.")
@click.option("--max-price", help="Dollars an hour: of a chip, or of a machine with --sort price.")
@click.option(
    "--sort", type=click.Choice(["price", "price-per-chip"]), default="price-per-chip", show_default=True
)
@click.option("--all", "everything", is_flag=True, help="Machines without chips, too, and every line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with all columns.")
@click.option("--as-demand", "demand", is_flag=True, help="Print `offers:` for a file of `caudal plan`.")
@json_option
@click.pass_context
def verb(
    context: click.Context,
    chips: tuple[str, ...],
    providers: tuple[str, ...],
    regions: tuple[str, ...],
    markets: tuple[str, ...],
    min_chips: int,
    max_price: str | None,
    sort: Order,
    everything: bool,
    as_csv: bool,
    demand: bool,
    as_json: bool,
) -> None:
    """List what can be rented, the cheapest chip first; every price with its source and date.

    What was imported (`caudal offers import`) goes before what is shipped where it is newer.
    """
    if context.invoked_subcommand is not None:
        return
    if as_csv + demand + as_json > 1:
        raise UsageError("--csv, --json and --as-demand exclude each other")
    rows = PriceFiles(home(context.find_root().obj).catalog).rows()
    wanted = Wanted(
        chips, providers, regions, tuple(Market(m) for m in markets),
        max(min_chips, 0 if everything else 1), _dollars(max_price), sort,
    )  # fmt: skip
    found = choose(rows, wanted)
    today = _today()
    if as_json:
        print_json({"version": 1, "offers": [_plain(row, today) for row in found]})
    elif as_csv:
        click.echo(to_csv(found), nl=False)
    elif demand:
        for line in as_demand(found):
            click.echo(line)
    else:
        _show(found, today, everything)
        _elsewhere(rows, wanted, bool(regions))


verb.add_command(import_)


def _today() -> date:
    return datetime.now(UTC).date()


def _dollars(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        value = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value <= 0:
        raise UsageError(f"--max-price: {text!r} is no amount of dollars", remedy="write it as 12.50")
    return value


def _plain(row: CatalogRow, today: date) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in COLUMNS}
    per_chip = row.price_usd_per_chip_hour
    return told | {
        "price_usd_per_hour": None if row.price_usd_per_hour is None else f"{row.price_usd_per_hour:f}",
        "price_usd_per_chip_hour": None if per_chip is None else f"{round(per_chip, 6):f}",
        "old": row.old(today),
    }


def _show(found: list[CatalogRow], today: date, everything: bool) -> None:
    out = console()
    shown = found if everything else found[:SHOWN]
    cells = []
    for row in shown:
        per_chip = row.price_usd_per_chip_hour
        cells.append(
            [
                "-" if per_chip is None else f"${per_chip:,.3f}",
                "-" if row.price_usd_per_hour is None else f"${row.price_usd_per_hour:,.3f}",
                f"{row.chips} × {plain(row.chip or 'unknown')}" if row.chips else "-",
                plain(row.provider),
                plain(row.machine_type),
                plain(row.region) or "-",
                _market(row),
                plain(row.source),
                (row.as_of or "unknown") + (" old" if row.old(today) and row.price_usd_per_hour else ""),
            ]
        )
    names = ["$/chip-hour", "$/hour", "chips", "provider", "type", "region", "market", "source", "as of"]
    out.print(table(names, cells))
    if len(found) > len(shown):
        out.print(f"and {len(found) - len(shown):,} more: narrow it down, or --all", style="dim")
    if not found:
        out.print("nothing is offered that is all of this")
    if any(row.old(today) and row.price_usd_per_hour is not None for row in shown):
        note = (
            f"old: more than {OLD_DAYS} days, or of an unknown date; `caudal offers import` takes newer ones"
        )
        out.print(note, style="dim")


def _market(row: CatalogRow) -> str:
    term = f" {row.term_months} months" if row.term_months else ""
    prepaid = f", {row.prepaid:.0%} prepaid" if row.prepaid else ""
    return f"{row.market}{term}{prepaid}"


def _elsewhere(rows: list[CatalogRow], wanted: Wanted, by_region: bool) -> None:
    """Who asks for a region is told how much is left out because nobody says where it is."""
    if not by_region:
        return
    anywhere = Wanted(
        wanted.chips, wanted.providers, (), wanted.markets, wanted.min_chips, wanted.max_price, wanted.sort
    )
    unknown = sum(1 for row in choose(rows, anywhere) if not row.region)
    if unknown:
        console().print(f"{unknown} more are of no known region", style="dim")
