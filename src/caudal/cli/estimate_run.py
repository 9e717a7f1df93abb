"""`caudal estimate run`: a whole training run by flags, or a table of runs: time, failures, dollars, energy."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from caudal.catalog.chips import chip, close_names
from caudal.cli.estimate_files import model_named, read_table, write_text
from caudal.cli.estimate_page import run_page
from caudal.cli.estimate_serve import write_lines
from caudal.cli.estimate_show import layout_words
from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.cli.spark import sparkline
from caudal.domain.errors import NotFound, UsageError
from caudal.estimate.answer import estimates
from caudal.estimate.case import LAYOUT_FIELDS, Software
from caudal.estimate.failures import CHECKPOINT_S, DETECT_S, RESTART_S
from caudal.estimate.points import Point
from caudal.estimate.ranges import Range
from caudal.estimate.run_points import COLUMNS, answered_runs
from caudal.estimate.software import TODAY
from caudal.estimate.whole_run import (
    MOST_CHIPS,
    PRECISIONS,
    RunQuestion,
    WholeRun,
    job_of,
    over_chips,
    whole_run,
)

SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
DEFAULT_SEQ_LEN = 4096


def _positive(most: float) -> click.FloatRange:
    return click.FloatRange(0, most, min_open=True)


@click.command("run")
@click.option("--model", "model_text", metavar="FILE|NAME|SIZE", help="config.json, `llama-3-70b`, or `70b`.")
@click.option("--tokens", metavar="N", help="To train on: 15T, 300B, 1.5e12.")
@click.option("--chip", "chip_name", metavar="NAME", help="H100, GB200, trn2, ...")
@click.option("--chips", type=click.IntRange(1, MOST_CHIPS), help="How many.")
@click.option(
    "--seq-len", type=click.IntRange(1, 10_000_000), help=f"Tokens a sequence. Default {DEFAULT_SEQ_LEN}."
)
@click.option(
    "--global-batch", type=click.IntRange(1, 10_000_000), help="Sequences a step. Default: about 4 M tokens."
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="bf16", show_default=True)
@click.option(
    "--practice",
    type=click.FloatRange(1, 100),
    help="Time beside the best layout's; 1 is ideal. Default: published runs'.",
)
@click.option("--price", type=click.FloatRange(0, 1000), help="Dollars per chip-hour.")
@click.option(
    "--pue", type=click.FloatRange(1, 5), default=1.1, show_default=True, help="Of the data centre."
)
@click.option(
    "--utilisation", type=_positive(1.5), default=0.95, show_default=True, help="Of the rated board power."
)
@click.option("--grid-g-per-kwh", type=click.FloatRange(0, 2000), help="CO2 of the grid.")
@click.option(
    "--checkpoint-s",
    type=_positive(86400),
    default=CHECKPOINT_S,
    show_default=True,
    help="What a checkpoint holds the run up.",
)
@click.option(
    "--restart-s",
    type=_positive(86400),
    default=DETECT_S + RESTART_S,
    show_default=True,
    help="From a failure until it steps again.",
)
@click.option("--points", type=click.Path(path_type=Path), help="A CSV of runs; see docs/howto/estimate.md.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where --points writes. Default: standard output."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with pictures.")
@click.option("--explain", is_flag=True, help="The same run on fewer and on more chips.")
@json_option
def verb(**given: Any) -> None:
    """Estimate a whole training run: chip-hours, days, interruptions, goodput, dollars, energy.

    Exit code 4 where the model does not fit on the chips.
    """
    if given["points"] is not None:
        lines = answered_runs(read_table(given["points"], ("id", "model", "chip")), _defaults(given))
        write_lines(COLUMNS, [line.cells() for line in lines], sum(bool(line.found) for line in lines), given)
        return
    question = _question(given)
    made = whole_run(question)
    others = (
        over_chips(question, _counts(made.chips)) if given["explain"] or given["html"] is not None else []
    )
    if given["html"] is not None:
        step = estimates([Point(job_of(question, made.chips), made.layout)])[0]
        write_text(given["html"], run_page(made, step, others))
    if given["as_json"]:
        print_json(
            {"shape": "estimate-run/1", **run_dict(made), "other_chips": [run_dict(x) for x in others]}
        )
    else:
        show_run(made, others)
        if given["html"] is not None:
            console().print(f"  page      {given['html']}", markup=False)


def tokens_of(text: str | None) -> float:
    """`15T`, `300B`, `1.5e12`; raises `UsageError`."""
    found = re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kmbt]?)\s*", text or "")
    if not found:
        raise UsageError(
            f"--tokens {text!r} is no number of tokens" if text else "no tokens", remedy="--tokens 15T"
        )
    return float(found[1]) * SCALE[found[2].lower()]


def _question(given: dict[str, Any]) -> RunQuestion:
    if not given["model_text"] or not given["chip_name"]:
        raise UsageError(
            "no model or no chip", remedy="--model 70b --tokens 2T --chip H100 --chips 1024, or --points FILE"
        )
    model = model_named(given["model_text"])
    which = chip(given["chip_name"])
    if which is None:
        close = close_names(given["chip_name"])
        raise NotFound(
            f"there is no chip {given['chip_name']!r} in the catalogue",
            remedy=f"did you mean {' or '.join(close)}?" if close else "names like H100, MI300X, Trainium2",
        )
    software = Software("neuron" if which.vendor == "AWS" else "megatron", TODAY)
    return RunQuestion(
        model, which, given["chips"], tokens_of(given["tokens"]), given["seq_len"] or DEFAULT_SEQ_LEN, software,
        given["precision"], given["global_batch"], given["practice"], given["price"], given["pue"],
        given["utilisation"], given["grid_g_per_kwh"], given["checkpoint_s"], given["restart_s"],
    )  # fmt: skip


def _counts(chips: int) -> list[int]:
    """From a quarter to sixteen times as many, by doubling."""
    return sorted(
        {max(1, int(chips * 2.0**power)) for power in range(-3, 5) if chips * 2.0**power <= MOST_CHIPS}
    )


def _defaults(given: dict[str, Any]) -> dict[str, str]:
    names = {
        "model_text": "model",
        "chip_name": "chip",
        "chips": "chips",
        "seq_len": "seq_len",
        "global_batch": "global_batch_seqs",
    }
    row = {column: str(given[flag]) for flag, column in names.items() if given[flag] is not None}
    if given["tokens"] is not None:
        row["tokens_t"] = str(tokens_of(given["tokens"]) / 1e12)
    if given["precision"] != "bf16":
        row["precision"] = given["precision"]
    return row


def run_dict(made: WholeRun) -> dict[str, Any]:
    """What `--json` prints."""

    def of(found: Range | None) -> dict[str, float] | None:
        return None if found is None else asdict(found)

    q, kept = made.question, made.resilience
    return {
        "model": q.model.name, "chip": q.chip.name, "chips": made.chips, "tokens": q.tokens, "seq_len": q.seq_len,
        "layout": {name: getattr(made.layout, name) for name in LAYOUT_FIELDS}, "step_time_s": made.step_time_s,
        "chip_hours": of(made.chip_hours), "days": of(made.days), "mfu": made.mfu,
        "interruptions": of(made.interruptions), "hours_between_interruptions": kept.between_s / 3600,
        "checkpoint_every_s": kept.interval_s, "goodput": kept.goodput, "usd": of(made.usd), "mwh": of(made.mwh),
        "co2_t": of(made.co2_t), "notes": list(made.notes),
    }  # fmt: skip


def _said(found: Range | None, unit: str, otherwise: str) -> str:
    if found is None:
        return otherwise
    return f"[bold]{found.value:,.4g}{unit}[/] (80 %: {found.low:,.3g} to {found.high:,.3g})"


def show_run(made: WholeRun, others: list[WholeRun]) -> None:
    """The answer in a few lines; on other numbers of chips as a table and a line of blocks."""
    out, q, kept = console(), made.question, made.resilience
    out.print(
        f"[bold]{plain(q.model.name)}[/]: {q.tokens / 1e12:.4g} T tokens on {made.chips:,} {q.chip.name}, {q.precision}"
    )
    out.print(
        f"  time      {_said(made.days, ' days', 'days unknown')}, {_said(made.chip_hours, ' chip-hours', '')}"
    )
    out.print(
        f"  step      {made.step_time_s:.4g} s by the best layout ({layout_words(made.layout)}); "
        f"MFU of the whole run {made.mfu:.0%}"
    )
    out.print(
        f"  failures  {_said(made.interruptions, ' interruptions', '')}, one in {kept.between_s / 3600:,.3g} h; "
        f"a checkpoint every {kept.interval_s / 60:.1f} min; goodput {kept.goodput:.1%}"
    )
    out.print(
        f"  energy    {_said(made.mwh, ' MWh', 'unknown')}"
        + (f", {_said(made.co2_t, ' t CO2', '')}" if made.co2_t else "")
    )
    if made.usd is not None:
        out.print(f"  dollars   {_said(made.usd, '', '')}")
    for note in made.notes:
        out.print(f"  note      {plain(note)}")
    if not others:
        return
    rows = [
        (f"{x.chips:,}", f"{x.days.value:,.1f}" if x.days else "", f"{x.chip_hours.value:,.0f}",
         f"{x.resilience.goodput:.1%}",
         f"{x.usd.value:,.0f}" if x.usd else "") for x in others
    ]  # fmt: skip
    out.print(table(("chips", "days", "chip-hours", "goodput", "dollars"), rows))
    out.print(f"  days by chips  {sparkline([x.days.value for x in others if x.days])}")
