"""`caudal train`: one run, from start to published model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from caudal.cli.client import Client
from caudal.cli.live import follow_lines, follow_live
from caudal.cli.output import console
from caudal.cli.up import example, leave_on_sigterm
from caudal.composition import Control, Spec
from caudal.domain.errors import Failed, UsageError
from caudal.domain.fleet import FleetSpec, SiteSpec
from caudal.domain.workload import TrainSpec
from caudal.spec import check, load, to_dict
from caudal.store.home import home


def run_name(data: Path) -> str:
    """A run's name made from its data file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", data.stem.lower()).strip("-._") or "run"


def _chosen(file: Path | None, data: Path | None) -> TrainSpec:
    if (file is None) == (data is None):
        raise UsageError("give either a train file or --data FILE", remedy="caudal train --help")
    path = file if file is not None else example("shakespeare") / "train.yaml"
    runs = [spec for spec in load(path) if isinstance(spec, TrainSpec)]
    if len(runs) != 1:
        raise UsageError(f"{path} holds {len(runs)} `type: train` documents; one is needed")
    if data is None:
        return runs[0]
    name = run_name(data)
    return dataclasses.replace(runs[0], name=name, publish="", data=str(data.resolve()))


def _finished(name: str) -> Any:
    def done(status: dict[str, Any]) -> bool:
        state = next((w["state"] for w in status["workloads"] if w["name"] == name), "")
        return state in ("finished", "failed", "stopped")

    return done


@click.command("train")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="A text file: characters, a small model.")
@click.option("--name", help="The run's name. Default: the file's.")
@click.option("--sites", type=click.IntRange(1, 16), help="Over how many sites. Default: as the file says.")
@click.pass_obj
def verb(root: str | None, file: Path | None, data: Path | None, name: str | None, sites: int | None) -> None:
    """Train one run and wait until its model is published.

    FILE is a `type: train` file. With --data TEXT the recipe is examples/shakespeare's: characters, 4
    layers, 128 wide, 1.54 million tokens. Where a control process runs for this state directory, the run is
    applied to it; else this command is one until the run is over. Started again, it goes on where it was.
    """
    spec = _chosen(file, data)
    spec = dataclasses.replace(spec, name=name or spec.name, sites=sites or spec.sites)
    check(spec, "caudal train")
    place = home(root)
    client = Client(place)
    out = console()
    if client.answers():
        client.post("/apply", {"specs": [to_dict(spec)]})
        _follow(client, spec.name)
    else:
        leave_on_sigterm()
        names = ["north", "south"] if spec.sites <= 2 else [f"site-{i + 1}" for i in range(spec.sites)]
        specs: list[Spec] = [spec]
        fleet = FleetSpec(name="laptop", sites=tuple(SiteSpec(n) for n in names[: max(spec.sites, 2)]))
        control = Control(place, specs, name="caudal train", default_fleet=fleet)
        try:
            control.start()
            _follow(Client(place), spec.name)
        except KeyboardInterrupt:
            raise click.exceptions.Abort from None
        finally:
            control.stop()
    out.print(f"model [bold]{spec.model_id}[/] is published; `caudal audit {spec.name}` proves the run")


def _follow(client: Client, name: str) -> None:
    out = console()
    (follow_live if out.is_terminal else follow_lines)(client, out, _finished(name))
    workload = client.get(f"/workloads/{name}")
    if workload["state"] != "finished":
        raise Failed(
            f"the run {name} is {workload['state']}",
            why=workload["reason"],
            remedy=f"caudal explain {name}; caudal logs {name}",
        )
