"""`caudal cost`: what was paid for what."""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from typing import Any, cast

import click
from rich.console import Console

from caudal.api.costs import cost_view
from caudal.cli.client import Client
from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.domain.bill import By
from caudal.domain.errors import ControlAway, UsageError
from caudal.domain.term import day_of, moment
from caudal.store.home import Home, home
from caudal.store.state import open_store

BY = ("contract", "workload", "team", "day", "provider")
COLUMNS = ("day", "provider", "contract", "workload", "team", "usd")


@click.command("cost")
@click.option("--by", type=click.Choice(BY), default="contract", show_default=True, help="What to group by.")
@click.option("--since", metavar="DAY", help="First day (UTC), such as 2027-01-01. Default: of this month.")
@click.option("--until", metavar="DAY", help="First day that is not on the bill. Default: until now.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every cell as CSV, whatever it is grouped by.")
@json_option
@click.pass_obj
def verb(
    root: str | None, by: str, since: str | None, until: str | None, as_csv: bool, as_json: bool
) -> None:
    """Show the bill: from leases at the prices at which they were opened, and from contracts.

    Every grouping adds up to the same total, to the cent. `(idle)` is time of machines that nothing had; `(unused)` is
    what a contract costs beyond what was used of it.
    """
    answer = _read(home(root), by, _day("--since", since), _day("--until", until), as_csv)
    if as_json:
        print_json(answer)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(answer["lines"])
    else:
        _show(console(), answer)


def _day(option: str, text: str | None) -> float | None:
    try:
        return None if text is None else moment(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _read(place: Home, by: str, since: float | None, until: float | None, cells: bool) -> dict[str, Any]:
    """From the control process, or, where none runs, from the state directory itself."""
    try:
        asked = {"by": by, "since": since, "until": until, "cells": "true" if cells else None}
        found: dict[str, Any] = Client(place).get("/cost", **asked)
    except ControlAway:
        if not place.root.is_dir():
            raise
        store = open_store(place.database_url)
        try:
            view = cost_view(store, time.time(), cast(By, by), since, until, cells)
        finally:
            store.close()
        found = dataclasses.asdict(view)
    return found


def _show(out: Console, answer: dict[str, Any]) -> None:
    first, last = day_of(answer["since"]), day_of(max(answer["since"], answer["until"] - 1))
    out.print(f"{first} to {last} (UTC)  total [bold]${answer['total_usd']}[/]")
    rows = [(plain(row["name"]), f"{row['usd']:>12}") for row in answer["rows"]]
    out.print(table((answer["by"].upper(), f"{'$':>12}"), rows))
    if not answer["contracts"]:
        return
    out.print()
    columns = ("CONTRACT", "KIND", "TERM", "STATE", "COMMITTED", "USED", "", "AT THE END", "", "UNUSED")
    out.print(table(columns, [_contract(c) for c in answer["contracts"]]))
    out.print(f"[dim]committed and used so far, in $; at the end by {answer['forecast']}[/]")


def _contract(c: dict[str, Any]) -> tuple[str, ...]:
    return (
        plain(c["name"]),
        c["kind"],
        f"{c['start']} to {c['end']}",
        c["state"],
        c["committed_usd"],
        c["used_usd"],
        _percent(c["used_share"]),
        c["forecast_used_usd"],
        _percent(c["forecast_share"]),
        c["forecast_unused_usd"],
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
