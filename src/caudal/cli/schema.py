"""`caudal schema`: what editors need to check files while they are written."""

from __future__ import annotations

import click

from caudal.cli.output import print_json
from caudal.spec import schema


@click.command("schema")
def verb() -> None:
    """Print the JSON Schema of fleet, train and service files."""
    print_json(schema())
