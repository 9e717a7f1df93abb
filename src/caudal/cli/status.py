"""`caudal status`: the fleet at a glance."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from caudal.cli.client import Client, path
from caudal.cli.live import progress_text
from caudal.cli.output import ago, console, json_option, plain, print_json, size, state, table
from caudal.store.home import home


@click.command("status")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def verb(root: str | None, name: str | None, as_json: bool) -> None:
    """Show the whole fleet, or one workload by NAME."""
    client = Client(home(root))
    answer = client.get(path("workloads", name) if name else "/status")
    if as_json:
        print_json(answer)
        return
    out = console()
    if name:
        _workload(out, answer)
        return
    out.print(f"fleet [bold]{answer['fleet']}[/]  gateway {answer['gateway_url']}/v1")
    if len(answer["gateways"]) > 1:
        out.print(table(("GATEWAY", "SITE", "STATE"), [_gateway(g) for g in answer["gateways"]]))
        out.print()
    out.print(
        table(
            ("SITE", "NODE", "STATE", "CPUS", "MEMORY", "$/H", "GANGS"), [_site(s) for s in answer["sites"]]
        )
    )
    out.print()
    rows = [
        (w["name"], w["kind"], state(w["state"]), str(w["restarts"]), _what(w)) for w in answer["workloads"]
    ]
    out.print(table(("WORKLOAD", "KIND", "STATE", "RESTARTS", "WHAT"), rows))
    out.print()
    models = [
        (m["id"], str(m["version"]), size(m["size_bytes"]), str(m["ready_replicas"]))
        for m in answer["models"]
    ]
    out.print(table(("MODEL", "VERSION", "SIZE", "REPLICAS"), models))


def _gateway(gateway: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{gateway['url']}/v1",
        gateway["site"] or "-",
        state("ready" if gateway["ready"] else "starting"),
    )


def _site(site: dict[str, Any]) -> tuple[str, ...]:
    return (
        site["name"],
        site["node"] or "-",
        state(site["node_state"]),
        f"{site['cpus']:g}",
        size(site["memory_bytes"]),
        site["price_usd_per_hour"] or "-",
        str(len(site["gangs"])),
    )


def _what(workload: dict[str, Any]) -> str:
    if workload["progress"] and workload["state"] in ("running", "finished"):
        return plain(progress_text(workload["progress"]))
    return plain(workload["reason"])


def _workload(out: Console, workload: dict[str, Any]) -> None:
    out.print(f"{workload['kind']} [bold]{workload['name']}[/] {state(workload['state'])}  {_what(workload)}")
    rows = [
        (
            g["slot"],
            g["site"],
            g["node"],
            str(g["incarnation"]),
            ago(g["reported_at"]),
            _reported(g["status"]),
        )
        for g in workload["gangs"]
    ]
    out.print(table(("SLOT", "SITE", "NODE", "START", "REPORTED", "STATUS"), rows))


def _reported(status: dict[str, Any]) -> str:
    if "ready" in status:
        return plain(status.get("error") or ("ready" if status["ready"] else "starting"))
    return plain(progress_text(status)) if status else "-"
