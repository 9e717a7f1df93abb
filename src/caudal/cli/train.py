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
from caudal.spec.data import BUILTIN, is_path, resolved
from caudal.store.home import home
from caudal.train.sources.corpus import open_corpus

RECORD_ENTRIES = 4_096
"""Of the tokenizer for records: words of a language, where the built-in world has a few hundred."""


def run_name(data: str) -> str:
    """A run's name made from that of its data: of a pattern, the last folder without wildcards."""
    parts = [part for part in data.rstrip("/").split("/") if part and not set(part) & set("*?[")]
    stem = parts[-1].partition(".")[0] if parts else ""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower())[:60].strip("-._") or "run"


def _chosen(file: Path | None, data: str | None) -> tuple[TrainSpec, str]:
    """The run; and what its data was found to be, where the run was derived from that."""
    if (file is None) == (data is None):
        raise UsageError("give either a train file or --data DATA", remedy="caudal train --help")
    if data is None:
        assert file is not None
        return _only_run(file), ""
    return derived(resolved(data, Path.cwd()) if is_path(data) else data)


def _only_run(path: Path) -> TrainSpec:
    runs = [spec for spec in load(path) if isinstance(spec, TrainSpec)]
    if len(runs) != 1:
        raise UsageError(f"{path} holds {len(runs)} `type: train` documents; one is needed")
    return runs[0]


def derived(data: str) -> tuple[TrainSpec, str]:
    """A run on this data with the recipe that fits it, and what the data was found to be. Raises DataError, Unreachable,
    StorageFailed."""
    named = {"name": run_name(data), "publish": "", "data": data}
    recipe = dataclasses.replace(_only_run(example("shakespeare") / "train.yaml"), **named)  # type: ignore[arg-type]
    check(recipe, "caudal train")
    if data.startswith(BUILTIN):
        starter = _only_run(example("starter") / "train.yaml")
        return starter, "the built-in tiny world"
    corpus = open_corpus(data)
    if corpus.single_text is not None:
        return recipe, "one text"
    kind = corpus.kind()
    starter = _only_run(example("starter") / "train.yaml")
    stages = tuple(stage for stage in starter.stages if stage.kind == "text" or kind == "dialogues")
    tokenizer = dataclasses.replace(starter.tokenizer, entries=RECORD_ENTRIES)
    recipe = dataclasses.replace(starter, **named, stages=stages, tokenizer=tokenizer)  # type: ignore[arg-type]
    return recipe, "dialogues" if kind == "dialogues" else "texts"


def _in_words(data: str, spec: TrainSpec) -> str:
    """The recipe on one line."""
    shape, tokenizer = spec.model, spec.tokenizer
    entries = f"BPE of {tokenizer.entries:,} entries" if tokenizer.kind == "bpe" else "characters"
    stages = ", ".join(f"{s.name} ({s.kind}, {s.tokens / 1e6:.4g}M tokens)" for s in spec.stages)
    model = f"{shape.layers} layers, {shape.width} wide, context {shape.context}"
    return f"{spec.name}: {data}, so {entries}; {model}; stages {stages}; {spec.sites} sites"


def _finished(name: str) -> Any:
    def done(status: dict[str, Any]) -> bool:
        state = next((w["state"] for w in status["workloads"] if w["name"] == name), "")
        return state in ("finished", "failed", "stopped")

    return done


@click.command("train")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--data", help="Text or records: a file, a folder, a pattern or a URL. The recipe is derived.")
@click.option("--name", help="The run's name. Default: the file's.")
@click.option("--sites", type=click.IntRange(1, 16), help="Over how many sites. Default: as the file says.")
@click.pass_obj
def verb(root: str | None, file: Path | None, data: str | None, name: str | None, sites: int | None) -> None:
    """Train one run and wait until its model is published.

    FILE is a `type: train` file. With --data the recipe is derived, and printed: for one text file it is
    examples/shakespeare's (characters, 4 layers, 128 wide, 1.54 million tokens); for records (JSON Lines,
    Parquet, folders of `datasets`) and folders of texts it is examples/starter's with a BPE of 4,096 entries,
    and a chat stage where the records are dialogues. Where a control process runs for this state directory, the run is
    applied to it; else this command is one until the run is over. Started again, it goes on where it was.
    """
    spec, found = _chosen(file, data)
    spec = dataclasses.replace(spec, name=name or spec.name, sites=sites or spec.sites)
    check(spec, "caudal train")
    if found:
        console().print(_in_words(found, spec), highlight=False)
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
