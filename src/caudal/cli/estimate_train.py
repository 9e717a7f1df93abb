"""`caudal estimate train`: one question by flags, a table of questions, or a table of layouts to rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from caudal.catalog.chips import Chip, chip, close_names
from caudal.cli.estimate_files import model_named, read_table, table_text, write_table, write_text
from caudal.cli.estimate_page import train_page
from caudal.cli.estimate_show import (
    as_dict,
    show_estimate,
    show_found,
    show_ranked,
    show_rounds,
)
from caudal.cli.output import json_option, print_json
from caudal.domain.errors import Impossible, NotFound, UsageError
from caudal.domain.transformer import Transformer
from caudal.estimate.answer import Estimate, estimates
from caudal.estimate.batch import COLUMNS, answered, ranked
from caudal.estimate.case import AS_NEEDED, PRECISIONS, RECOMPUTE, Job, Layout, Software
from caudal.estimate.points import Point
from caudal.estimate.search import Found, search
from caudal.estimate.sites import Rounds, across_sites
from caudal.estimate.software import TODAY
from caudal.spec.units import parse_rate

LAYOUT_FLAGS = ("tp", "pp", "dp", "ep", "cp", "vp", "zero", "micro_batch")
DEFAULT_SEQ_LEN = 4096
DEFAULT_BATCH_TOKENS = 4 << 20
MOST_CHIPS = 10_000_000
LONGEST = 10_000_000
KINDS = ("megatron", "eager", "compiled", "neuron")


def _whole(least: int, most: int) -> click.IntRange:
    return click.IntRange(least, most)


def _options(call: Any) -> Any:
    """The flags of a layout, all alike."""
    texts = {
        "tp": "Tensor parallel.", "pp": "Pipeline stages.", "dp": "Data parallel. Default: what is left.",
        "ep": "Expert parallel.", "cp": "Context parallel.", "vp": "Chunks per pipeline stage.",
    }  # fmt: skip
    for name, text in reversed(texts.items()):
        call = click.option(f"--{name}", type=_whole(1, MOST_CHIPS), help=text)(call)
    return call


@click.command("train")
@click.option("--model", "model_text", metavar="FILE|NAME|SIZE", help="config.json, `llama-3-70b`, or `70b`.")
@click.option("--chip", "chip_name", metavar="NAME", help="H100, GB200, trn2, ...")
@click.option("--chips", type=_whole(1, MOST_CHIPS), help="How many; with --sites, at each.")
@click.option("--seq-len", type=_whole(1, LONGEST), help=f"Tokens a sequence. Default {DEFAULT_SEQ_LEN}.")
@click.option("--global-batch", type=_whole(1, LONGEST), help="Sequences a step. Default: about 4 M tokens.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="bf16", show_default=True)
@_options
@click.option("--zero", type=click.Choice(["0", "1", "2", "3"]), help="ZeRO stage; 3 is FSDP.")
@click.option(
    "--micro-batch", type=_whole(1, LONGEST), help="Sequences at once. Default: the best that fits."
)
@click.option("--recompute", type=click.Choice(RECOMPUTE), help="Default: as much as memory asks for.")
@click.option("--software", type=click.Choice(KINDS), help="Family of framework. Default: megatron.")
@click.option("--software-year", type=click.FloatRange(2017, 2030), help="Its generation. Default: today's.")
@click.option("--search", "wants_search", is_flag=True, help="The best layouts; given ones stay as they are.")
@click.option("--best", type=_whole(1, 100), default=5, show_default=True, help="How many layouts to show.")
@click.option("--sites", type=_whole(1, 1000), default=1, help="Sites far apart, trained by `caudal train`.")
@click.option("--wan", metavar="RATE", default="1Gbit/s", show_default=True, help="Each site's link.")
@click.option("--every", type=_whole(1, 100_000), default=100, show_default=True, help="Steps of a round.")
@click.option(
    "--bits", type=click.Choice(["4", "8", "32"]), default="4", show_default=True, help="Per number."
)
@click.option(
    "--points", type=click.Path(path_type=Path), help="A CSV of questions; see docs/howto/estimate.md."
)
@click.option("--layouts", type=click.Path(path_type=Path), help="A CSV of layouts to rank.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where --points writes. Default: standard output."
)
@click.option("--explain", is_flag=True, help="Time and memory item by item.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with pictures.")
@json_option
def verb(**given: Any) -> None:
    """Estimate a step of training: time, memory, tokens a second, with an 80 % interval.

    Without a layout (or with --search) the best ones are searched. Exit code 4 where the model does not fit.
    """
    if given["points"] is not None:
        _points(given)
    elif given["layouts"] is not None:
        _layouts(given)
    else:
        _question(given)


def _chip(name: str | None) -> Chip:
    if not name:
        raise UsageError("no chip", remedy="--chip H100")
    found = chip(name)
    if found is None:
        close = close_names(name)
        raise NotFound(
            f"there is no chip {name!r} in the catalogue",
            remedy=f"did you mean {' or '.join(close)}?" if close else "names like H100, MI300X, Trainium2",
        )
    if not found.peaks:
        raise UsageError(f"the peak of {found.name} is not known")
    return found


def _job(given: dict[str, Any]) -> tuple[Job, list[str]]:
    notes: list[str] = []
    if not given["model_text"] or not given["chips"]:
        raise UsageError(
            "no model or no chips", remedy="--model 70b --chips 64 --chip H100, or --points FILE"
        )
    model: Transformer = model_named(given["model_text"])
    which = _chip(given["chip_name"])
    seq = given["seq_len"] or DEFAULT_SEQ_LEN
    batch = given["global_batch"]
    if batch is None:
        ranks = given["dp"] or given["chips"]
        batch = max(ranks, DEFAULT_BATCH_TOKENS // seq // ranks * ranks)
        notes.append(f"global batch taken as {batch} sequences")
    kind = given["software"] or ("neuron" if which.vendor == "AWS" else "megatron")
    software = Software(kind, given["software_year"] or TODAY)
    return Job(model, which, given["chips"], seq, batch, given["precision"], software), notes


def _pinned(given: dict[str, Any]) -> dict[str, int]:
    pinned = {name: int(given[name]) for name in LAYOUT_FLAGS if given[name] is not None}
    if given["recompute"] is not None:
        pinned["recompute"] = RECOMPUTE.index(given["recompute"])
    return pinned


def _point(job: Job, pinned: dict[str, int], notes: list[str]) -> Point:
    """The layout that the flags say, with what they leave out."""
    stated: dict[str, Any] = dict(pinned)
    layout = replace(Layout(recompute=AS_NEEDED), **stated)
    units = job.chips
    inside = layout.tp * layout.pp * layout.cp
    if job.chip.cores > 1 and ("dp" not in pinned or layout.chips != units):
        units = job.chips * job.chip.cores
    if "dp" not in pinned:
        if inside > units or units % inside:
            raise UsageError(
                f"tp x pp x cp = {inside} does not divide {units} devices",
                remedy=f"a product that divides {units}",
            )
        layout = replace(layout, dp=units // inside)
    elif layout.chips != units:
        raise UsageError(f"tp x pp x cp x dp = {layout.chips} is not the number of devices, {units}")
    if job.global_batch % (layout.dp * layout.micro_batch):
        raise UsageError(
            f"a batch of {job.global_batch} does not divide by dp {layout.dp} x micro-batch {layout.micro_batch}",
            remedy=f"--global-batch {layout.dp * layout.micro_batch * 8}, for example",
        )
    layout = replace(layout, sequence_parallel=layout.tp > 1)
    still_open = {name for name in ("micro_batch", "zero") if name not in pinned}
    return Point(job, layout, tuple(notes), frozenset(still_open))


def _question(given: dict[str, Any]) -> None:
    job, notes = _job(given)
    pinned = _pinned(given)
    found: Found | None = None
    if given["wants_search"] or not pinned:
        found = search(job, best=given["best"], pinned=pinned)
        if not found.layouts:
            raise Impossible(found.why, where=f"{job.model.name} on {job.chips} {job.chip.name}")
        point = Point(job, found.layouts[0].layout, tuple(notes), frozenset())
    else:
        point = _point(job, pinned, notes)
    answer = estimates([point])[0]
    if not answer.fits:
        raise _does_not_fit(answer)
    rounds = _rounds(given, answer)
    if given["html"] is not None:
        write_text(given["html"], train_page(answer))
    if given["as_json"]:
        print_json({"shape": "estimate-train/1", **as_dict(answer, found, rounds)})
        return
    show_estimate(answer, explain=given["explain"])
    if found is not None:
        show_found(found, job)
    if rounds is not None:
        show_rounds(rounds, answer)


def _does_not_fit(answer: Estimate) -> Impossible:
    more = (answer.memory_bytes - answer.memory_allowed_bytes) / 2**30
    items = sorted(((size, name) for name, size in answer.memory_items.items()), reverse=True)[:2]
    largest = " and ".join(f"{name} {size / 2**30:.1f} GiB" for size, name in items)
    better = search(answer.job, best=1)
    if better.layouts:
        found = better.layouts[0].layout
        remedy = f"--search; tp {found.tp}, pp {found.pp}, cp {found.cp}, dp {found.dp} fits"
    else:
        remedy = better.why
    return Impossible(
        f"the layout needs {more:.1f} GiB a chip more than there is",
        where=f"{answer.job.model.name} on {answer.job.chips} {answer.job.chip.name}",
        why=f"{largest} of {answer.memory_allowed_bytes / 2**30:.1f} GiB",
        remedy=remedy,
    )


def _rounds(given: dict[str, Any], answer: Estimate) -> Rounds | None:
    if given["sites"] < 2:
        return None
    rate = parse_rate(given["wan"])
    if rate is None:
        raise UsageError(f"--wan {given['wan']!r} is not a rate", remedy="100Mbit/s, 1Gbit/s or 12MB/s")
    return across_sites(
        answer.job.model.parameters, answer.step_time_s, sites=given["sites"], every=given["every"],
        bits=int(given["bits"]), rate_bytes_per_s=rate,
    )  # fmt: skip


def _defaults(given: dict[str, Any]) -> dict[str, str]:
    """Flags stand in for what a table leaves out."""
    names = {"model_text": "model", "chip_name": "chip", "global_batch": "global_batch_seqs"}
    kept = ("model_text", "chip_name", "chips", "seq_len", "global_batch", *LAYOUT_FLAGS, "recompute")
    made = {names.get(name, name): str(given[name]) for name in kept if given[name] is not None}
    if "zero" in made:
        made["fsdp_zero"] = f"ZeRO-{made.pop('zero')}"
    if given["precision"] != "bf16":
        made["precision"] = given["precision"]
    return made


def _points(given: dict[str, Any]) -> None:
    lines = answered(read_table(given["points"], ("id", "model", "chip")), _defaults(given))
    rows = [line.cells() for line in lines]
    done = sum(line.estimate is not None for line in lines)
    if given["out"] is not None:
        write_table(given["out"], COLUMNS, rows)
        click.echo(f"{done} of {len(rows)} rows estimated: {given['out']}")
    elif given["as_json"]:
        print_json({"shape": "estimate-points/1", "rows": [dict(zip(COLUMNS, r, strict=True)) for r in rows]})
    else:
        click.echo(table_text(COLUMNS, rows), nl=False)


def _layouts(given: dict[str, Any]) -> None:
    lines = ranked(
        answered(read_table(given["layouts"], ("tp", "pp", "dp", "micro_batch")), _defaults(given))
    )
    if given["out"] is not None:
        write_table(given["out"], ("rank", *COLUMNS), [(str(n), *x.cells()) for n, x in enumerate(lines, 1)])
    elif given["as_json"]:
        rows = [
            dict(zip(("rank", *COLUMNS), (str(n), *x.cells()), strict=True)) for n, x in enumerate(lines, 1)
        ]
        print_json({"shape": "estimate-layouts/1", "rows": rows})
    else:
        show_ranked(lines)
