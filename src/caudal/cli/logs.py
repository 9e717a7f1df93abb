"""`caudal logs`: what a gang printed."""

from __future__ import annotations

import click

from caudal.cli.client import Client, path
from caudal.cli.output import json_option, print_json
from caudal.store.home import home


@click.command("logs")
@click.argument("name")
@click.option(
    "--bytes",
    "tail_bytes",
    default=65536,
    show_default=True,
    type=click.IntRange(1, 4 << 20),
    help="How much of the end.",
)
@json_option
@click.pass_obj
def verb(root: str | None, name: str, tail_bytes: int, as_json: bool) -> None:
    """Show the end of what NAME printed: a gang's id, a slot (starter.worker.0) or a workload."""
    answer = Client(home(root)).get(path("gangs", name, "logs"), tail_bytes=tail_bytes)
    if as_json:
        print_json(answer)
        return
    click.echo(answer["text"], nl=not answer["text"].endswith("\n"))
