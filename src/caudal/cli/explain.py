"""`caudal explain`: why it runs where it runs, or what it waits for."""

from __future__ import annotations

import click

from caudal.cli.client import Client, path
from caudal.cli.output import console, json_option, plain, print_json
from caudal.store.home import home


@click.command("explain")
@click.argument("name")
@json_option
@click.pass_obj
def verb(root: str | None, name: str, as_json: bool) -> None:
    """Say why NAME runs where it runs, or what it waits for, with the alternatives that were rejected."""
    answer = Client(home(root)).get(path("workloads", name, "explain"))
    if as_json:
        print_json(answer)
        return
    out = console()
    for item in answer["items"]:
        out.print(f"[bold]{plain(item['subject'])}[/]\n  {plain(item['text'])}")
        for rejected in item.get("rejected", ()):
            out.print(f"    [dim]not {plain(rejected['what'])}: {plain(rejected['text'])}[/]")
