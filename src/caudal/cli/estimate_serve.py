"""`caudal estimate serve`: one load by flags, a table of loads, or replicas for a traffic curve under an SLO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from caudal.cli.estimate_files import model_named, read_table, table_text, write_table
from caudal.cli.estimate_serve_show import serve_dict, show_serve, show_spread, spread_dict
from caudal.cli.output import json_option, print_json
from caudal.domain.errors import Impossible, NotFound, UsageError
from caudal.estimate.points import Missing, number
from caudal.estimate.serving_answer import (
    COLUMNS,
    DoesNotFit,
    ServeEstimate,
    answered_serving,
    serve_estimates,
)
from caudal.estimate.serving_case import LATEST, Question
from caudal.estimate.serving_points import question_of, smallest_group
from caudal.estimate.serving_replicas import Slo, Spread, spread

MOST = 1_000_000
LONGEST = 4_000_000
DEFAULT_ISL, DEFAULT_OSL = 1000, 300
MOST_MOMENTS = 100_000
KINDS = ("trtllm", "vllm", "sglang", "neuron", "other")


def _positive(most: float) -> click.FloatRange:
    return click.FloatRange(0, most, min_open=True)


@click.command("serve")
@click.option("--model", "model_text", metavar="FILE|NAME|SIZE", help="config.json, `llama-3-70b`, or `70b`.")
@click.option("--chip", metavar="NAME", help="H100, GB200, trn2, ...")
@click.option("--chips", type=click.IntRange(1, MOST), help="How many in all. Default: one replica.")
@click.option(
    "--tp", type=click.IntRange(1, MOST), help="Tensor parallel (of Trainium: cores). Default: what fits."
)
@click.option("--ep", type=click.IntRange(1, MOST), help="Expert parallel.")
@click.option("--precision", metavar="TEXT", help="bf16, fp8, fp4, w4a16, `FP16/w:int8`, ... Default: bf16.")
@click.option("--isl", type=click.IntRange(1, LONGEST), help=f"Tokens of a prompt. Default {DEFAULT_ISL}.")
@click.option("--osl", type=click.IntRange(1, LONGEST), help=f"Tokens of an answer. Default {DEFAULT_OSL}.")
@click.option("--concurrency", type=_positive(1e8), help="So many clients, each with one request under way.")
@click.option("--qps", type=_positive(1e9), help="Requests a second, arriving by chance.")
@click.option("--static", type=_positive(1e8), help="One batch of so many, begun and ended together.")
@click.option("--max", "at_most", is_flag=True, help="As many as fit, more always waiting. The default.")
@click.option("--engine", type=click.Choice(KINDS), help="Default: vllm (AWS chips: neuron).")
@click.option("--engine-version", metavar="TEXT", help="Its release. Default: today's.")
@click.option("--curve", type=click.Path(path_type=Path), help="A CSV with a column qps, one row a moment.")
@click.option("--slo-ttft-ms", type=_positive(1e9), help="Time to the first token, 95th percentile.")
@click.option("--slo-tpot-ms", type=_positive(1e9), help="Time per token, mean.")
@click.option(
    "--providers", type=click.IntRange(1, 100), default=1, show_default=True, help="Of which one may go."
)
@click.option("--points", type=click.Path(path_type=Path), help="A CSV of loads; see docs/howto/estimate.md.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where --points writes. Default: standard output."
)
@click.option("--explain", is_flag=True, help="An iteration item by item.")
@json_option
def verb(**given: Any) -> None:
    """Estimate serving: tokens a second, time to the first token and per token, each with an 80 % interval.

    Exit code 4 where the model does not fit, or no load keeps the SLO.
    """
    if given["points"] is not None:
        _points(given)
        return
    question = _question(given)
    if given["curve"] is not None:
        _curve(given, question)
        return
    found = serve_estimates([question])[0]
    if isinstance(found, DoesNotFit):
        raise _misfit(question, found)
    if given["as_json"]:
        print_json({"shape": "estimate-serve/1", **serve_dict(found)})
    else:
        show_serve(found, explain=given["explain"])


def _defaults(given: dict[str, Any]) -> dict[str, str]:
    """Flags as the cells of a row; for a table they stand in for cells that are empty."""
    names = {
        "model_text": "model", "chip": "chip", "chips": "chips", "tp": "tp", "ep": "ep", "precision": "precision",
        "isl": "isl", "osl": "osl", "qps": "qps", "engine": "engine", "engine_version": "engine_version",
    }  # fmt: skip
    row = {column: str(given[flag]) for flag, column in names.items() if given[flag] is not None}
    batch = given["static"] or given["concurrency"]
    if batch is not None:
        row["batch_or_concurrency"] = str(batch)
    if given["static"] is not None:
        row["workload"] = "static batch"
    return row


def _question(given: dict[str, Any]) -> Question:
    loads = [name for name in ("concurrency", "qps", "static") if given[name] is not None]
    if len(loads) + bool(given["at_most"]) > 1:
        raise UsageError("more than one load", remedy="one of --concurrency, --qps, --static, --max")
    if not given["model_text"] or not given["chip"]:
        raise UsageError("no model or no chip", remedy="--model llama-3-70b --chip H100, or --points FILE")
    row = {"isl": str(DEFAULT_ISL), "osl": str(DEFAULT_OSL), "engine": "vllm", **_defaults(given)}
    try:
        model = model_named(given["model_text"])
        made = question_of(row, model)
    except Missing as error:
        kind = NotFound if "unknown chip" in str(error) else UsageError
        raise kind(str(error), remedy="see `caudal estimate serve --help`") from error
    if given["tp"] is None and given["chips"] is None:
        cores = made.chip.cores if made.chip.vendor == "AWS" else 1
        tp = smallest_group(model, made.chip, made.numbers, cores)
        made = replace(
            made,
            tp=tp,
            chips=-(-tp // cores),
            open=frozenset(),
            notes=(f"tp taken as {tp}: the least that fits",),
        )
    if given["engine_version"] is None:
        made = replace(made, year=LATEST)
    return made


def _misfit(question: Question, found: DoesNotFit) -> Impossible:
    cores = question.chip.cores if question.chip.vendor == "AWS" else 1
    enough = smallest_group(question.model, question.chip, question.numbers, cores)
    remedy = f"--tp {enough}" if enough > question.group else "a shorter prompt and answer, or more chips"
    return Impossible(
        str(found), where=f"{question.model.name} on {question.chips} {question.chip.name}",
        remedy=f"{remedy}, or a lower precision",
    )  # fmt: skip


def _points(given: dict[str, Any]) -> None:
    lines = answered_serving(read_table(given["points"], ("id", "model", "chip")), _defaults(given))
    write_lines(
        COLUMNS, [line.cells() for line in lines], sum(line.estimate is not None for line in lines), given
    )


def write_lines(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], done: int, given: dict[str, Any]
) -> None:
    """A table of answers: into a file, as JSON, or to standard output."""
    if given["out"] is not None:
        write_table(given["out"], columns, rows)
        click.echo(f"{done} of {len(rows)} rows estimated: {given['out']}")
    elif given["as_json"]:
        print_json({"shape": "estimate-points/1", "rows": [dict(zip(columns, r, strict=True)) for r in rows]})
    else:
        click.echo(table_text(columns, rows), nl=False)


def curve_of(path: Path) -> list[float]:
    """Requests a second, row by row. Raises `UsageError` for the first row that has none."""
    rows = read_table(path, ("qps",))
    if len(rows) > MOST_MOMENTS:
        raise UsageError(f"{path} has more than {MOST_MOMENTS:,} moments", remedy="coarser steps")
    curve = []
    for at, row in enumerate(rows, start=1):
        try:
            value = number(row, "qps")
        except Missing as error:
            raise UsageError(f"{path}, row {at}: {error}") from error
        if value is None or row.get(""):
            raise UsageError(f"{path}, row {at} has no qps", why=row.get("") or "the cell is empty")
        curve.append(value)
    return curve


def _curve(given: dict[str, Any], question: Question) -> None:
    curve = curve_of(given["curve"])
    slo = Slo(given["slo_ttft_ms"], given["slo_tpot_ms"])
    made: Spread = spread(question, curve, slo, given["providers"])
    if given["as_json"]:
        print_json({"shape": "estimate-replicas/1", **spread_dict(made, slo)})
    else:
        show_spread(made, curve, slo)
    assert isinstance(made.capacity.at, ServeEstimate)
