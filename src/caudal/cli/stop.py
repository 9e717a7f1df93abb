"""`caudal stop`: want it no longer."""

from __future__ import annotations

import click

from caudal.cli.client import Client, path
from caudal.cli.output import console, json_option, print_json
from caudal.store.home import home


@click.command("stop")
@click.argument("name")
@json_option
@click.pass_obj
def verb(root: str | None, name: str, as_json: bool) -> None:
    """Stop the run or service NAME. A run keeps what it committed; applying its file again goes on."""
    answer = Client(home(root)).post(path("workloads", name, "stop"))
    if as_json:
        print_json(answer)
        return
    console().print(f"{answer['kind']} {name}: no longer wanted; {len(answer['gangs'])} gangs are stopping")
