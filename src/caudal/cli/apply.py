"""`caudal apply`: files become wishes."""

from __future__ import annotations

from pathlib import Path

import click

from caudal.cli.client import Client
from caudal.cli.output import console, json_option, print_json
from caudal.spec import load, to_dict
from caudal.store.home import home


@click.command("apply")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|DIR...")
@json_option
@click.pass_obj
def verb(root: str | None, paths: tuple[Path, ...], as_json: bool) -> None:
    """Make the fleet want what these files say.

    All of it is checked first; with any error nothing is changed. Applying the same file again changes
    nothing. A directory stands for the *.yaml files in it.
    """
    specs = [to_dict(spec) for path in paths for spec in load(path)]
    answer = Client(home(root)).post("/apply", {"specs": specs})
    if as_json:
        print_json(answer)
        return
    for item in answer["items"]:
        console().print(f"{item['kind']} {item['name']}: {item['change']}")
