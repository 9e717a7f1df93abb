"""`caudal events`: what happened."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from caudal.cli.client import Client
from caudal.cli.output import clock, console, json_option, plain, print_json
from caudal.store.home import home

PAGE = 10_000
"""As many events as the API gives at once."""


def line(event: dict[str, Any]) -> str:
    """One event on one line of rich text."""
    kind, subject, text = plain(f"{event['kind']:<20}"), plain(event["subject"]), plain(event["text"])
    return f"[dim]{clock(event['at'])}[/] {kind} [bold]{subject}[/] {text}"


def _of(client: Client, subject: str, limit: int) -> Any:
    """The last `limit` events of a subject. They may lie far apart: all of them are looked through."""
    items: list[dict[str, Any]] = []
    while True:
        after = items[-1]["seq"] if items else 0
        answer = client.get("/events", subject=subject, limit=PAGE, after=after)
        items = [*items, *answer["items"]][-limit:]
        if len(answer["items"]) < PAGE:
            return {**answer, "items": items}


@click.command("events")
@click.argument("subject", required=False)
@click.option("-n", "limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on as they come.")
@json_option
@click.pass_obj
def verb(root: str | None, subject: str | None, limit: int, follow: bool, as_json: bool) -> None:
    """Show the newest events, of everything or of one SUBJECT (a workload, slot, node or model)."""
    client = Client(home(root))
    answer = _of(client, subject, limit) if subject else client.get("/events", limit=limit, newest=True)
    items = answer["items"]
    if as_json and not follow:
        print_json(answer)
        return
    out = console()

    def show(event: dict[str, Any]) -> None:
        if as_json:
            click.echo(msgspec.json.encode(event).decode())
        else:
            out.print(line(event))

    for event in items:
        show(event)
    if follow:
        for event in client.events(items[-1]["seq"] if items else 0, subject):
            show(event)
