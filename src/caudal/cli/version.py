"""`caudal version`."""

from __future__ import annotations

import platform

import click

import caudal
from caudal.cli.output import json_option, print_json


@click.command("version")
@json_option
def verb(as_json: bool) -> None:
    """Print the version of Caudal and of Python."""
    if as_json:
        print_json({"shape": "version/1", "caudal": caudal.__version__, "python": platform.python_version()})
    else:
        click.echo(f"caudal {caudal.__version__} (Python {platform.python_version()})")
