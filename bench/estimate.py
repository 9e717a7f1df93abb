"""How far estimates of training, serving and whole runs are off on published figures: leave one source out.

`make bench-estimate` prints the scoreboard and writes docs/accuracy.md; its last line is one JSON object. Every
figure is of rows whose source the constants had not seen. `--check` writes nothing. Some seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The next imports come late (E402): tests load this file from elsewhere, and its siblings are found by this path only.
sys.path.insert(0, str(ROOT / "bench"))
import estimate_runs  # noqa: E402
import estimate_serving  # noqa: E402
from caudal.catalog.architectures import architecture  # noqa: E402
from caudal.catalog.chips import chip  # noqa: E402
from caudal.estimate.answer import flops_per_token  # noqa: E402
from caudal.estimate.case import Job, Software, Vector, peak  # noqa: E402
from caudal.estimate.constants import FITTED  # noqa: E402
from caudal.estimate.interval import half_width  # noqa: E402
from caudal.estimate.search import search  # noqa: E402
from caudal.estimate.step_time import step_time  # noqa: E402
from caudal.estimate.training_memory import allowed_bytes, memory  # noqa: E402
from estimate_fit import Rows, balanced, families, fit, leave_one_out, read  # noqa: E402
from harness import commit, figure, machine, timed  # noqa: E402

ACCURACY = ROOT / "docs" / "accuracy.md"


@dataclass(frozen=True)
class Score:
    """Of one set of rows. `sources` is the median over sources of each source's median."""

    rows: int
    sources: float
    pooled: float
    p90: float
    worst: float
    worst_id: str


def score(rows: Rows, seconds: Vector, chosen: Vector | None = None) -> Score:
    """Relative errors of step time."""
    chosen = np.ones(len(seconds), dtype=bool) if chosen is None else chosen
    error = np.abs(seconds / rows.measured_s - 1)[chosen]
    names = np.array(rows.ids)[chosen]
    return Score(
        int(chosen.sum()), balanced(error, rows.sources[chosen]), float(np.median(error)),
        float(np.quantile(error, 0.9)), float(error.max()), str(names[int(error.argmax())]),
    )  # fmt: skip


def constant_mfu(rows: Rows) -> Vector:
    """The spreadsheet's way: one utilisation per kind of chip and precision, from the other sources."""
    flops = np.array(
        [
            flops_per_token(p.job.model, p.job.seq_len) * p.job.seq_len * p.job.global_batch
            for p in rows.points
        ]
    )
    rate = np.array([peak(p.job.chip, p.job.precision) * p.job.chips for p in rows.points])
    kinds = np.array([f"{p.job.chip.name[:4]} {p.job.precision}" for p in rows.points])
    used = flops / rate / rows.measured_s
    result = np.empty(len(used))
    for source in set(rows.sources):
        others = rows.sources != source
        for kind in set(kinds[~others]):
            same = others & (kinds == kind)
            mfu = np.median(used[same if same.any() else others])
            here = ~others & (kinds == kind)
            result[here] = flops[here] / rate[here] / mfu
    return result


def ranking(rows: Rows, seconds: Vector) -> dict[str, object]:
    """Layouts of one model on one set of chips: how near the pick is to the best, and Spearman's rank correlation."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, point in enumerate(rows.points):
        job = point.job
        key = (rows.sources[at], job.model.name, job.model.layers, job.chip.name, job.chips, job.seq_len,
               job.global_batch, job.precision)  # fmt: skip
        groups[key].append(at)
    off, correlation, used = [], [], 0
    for members in groups.values():
        layouts = {rows.points[at].layout for at in members}
        if len(layouts) < 2:
            continue
        used += 1
        measured, guessed = rows.measured_s[members], seconds[members]
        off.append(float(measured[int(np.argmin(guessed))] / measured.min() - 1))
        correlation.append(spearman(measured, guessed))
    return {"groups": used, "pick_off": off, "spearman": correlation}


def spearman(left: Vector, right: Vector) -> float:
    """Rank correlation."""
    a, b = np.argsort(np.argsort(left)), np.argsort(np.argsort(right))
    return float(np.corrcoef(a, b)[0, 1])


def held(rows: Rows, seconds: Vector) -> Vector:
    """Which rows lie in their 80 % interval."""
    half = np.array([half_width(p.job, p.layout, p.open) for p in rows.points])
    return np.asarray(np.abs(np.log(seconds / rows.measured_s)) <= half)


def by_source(values: Vector, sources: np.ndarray) -> float:
    """The mean over sources of each source's mean."""
    return float(np.mean([values[sources == name].mean() for name in sorted(set(sources))]))


def misfits(rows: Rows) -> list[str]:
    """Rows that ran, and that we would call infeasible."""
    used, room = memory(rows.columns).total, allowed_bytes(rows.columns)
    return [rows.ids[at] for at in np.flatnonzero(used > room)]


def speed() -> dict[str, object]:
    """Layouts a second on one core, and 405B on 16,384 H100."""
    h100, big = chip("H100"), architecture("Llama-3.1-405B")
    moe = architecture("DeepSeek-V3")
    assert h100 and big and moe
    software = Software("megatron", 2025.5)
    large = Job(big, h100, 16384, 8192, 2048, "bf16", software)
    many = Job(moe, h100, 2048, 4096, 16384, "fp8", software)
    whole = [timed(lambda: search(large)) for _ in range(5)]
    counts, seconds = [], []
    for job in (large, many):
        tried = search(job).tried
        for _ in range(3):
            seconds.append(timed(lambda job=job: search(job)))
            counts.append(tried / seconds[-1])
    return {
        "layouts_per_s": figure(counts, "layouts/s", 0),
        "search_405b_16384_h100": figure(whole, "s"),
    }


def table(rows: Rows, ours: Vector, plain: Vector) -> str:
    """Per source, for docs/accuracy.md."""
    lines = [
        "| source | rows | median | worst | bias | constant MFU, median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    error, other = np.abs(ours / rows.measured_s - 1), np.abs(plain / rows.measured_s - 1)
    log = np.log(ours / rows.measured_s)
    for name in sorted(set(rows.sources)):
        s = rows.sources == name
        lines.append(
            f"| {name} | {s.sum()} | {np.median(error[s]):.1%} | {error[s].max():.1%} | {np.median(log[s]):+.1%} "
            f"| {np.median(other[s]):.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Score, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    rows = read()
    ours, plain = leave_one_out(rows), constant_mfu(rows)
    harder = leave_one_out(rows, families(rows.sources))
    stated = np.array([bool(r["stated"]) for r in rows.raw])
    moe = np.array([bool(p.job.model.experts) for p in rows.points])
    gb200 = np.array([p.job.chip.name == "GB200" for p in rows.points])
    inside = held(rows, ours)
    ranks = ranking(rows, ours)
    figures = {
        "step_time": score(rows, ours, stated).__dict__,
        "step_time_derived_too": score(rows, ours).__dict__,
        "constant_mfu": score(rows, plain, stated).__dict__,
        "leave_one_family_out": score(rows, harder, stated).__dict__,
        "large_moe": score(rows, ours, moe).__dict__,
        "large_moe_constant_mfu": score(rows, plain, moe).__dict__,
        "gb200": score(rows, ours, gb200).__dict__,
        "gb200_constant_mfu": score(rows, plain, gb200).__dict__,
        "in_sample": score(rows, step_time(rows.columns, FITTED).total, stated).__dict__,
        "interval_holds_rows": round(float(inside.mean()), 3),
        "interval_holds_by_source": round(by_source(inside, rows.sources), 3),
        "ranking": ranks,
        "ran_but_called_infeasible": misfits(rows),
        "refit_moves_estimates_by": round(_refit_shift(rows), 4),
        **speed(),
    }
    serving, runs = estimate_serving.figures(), estimate_runs.figures()
    text = page(rows, ours, plain, figures) + "\n" + "\n\n".join(
        (estimate_serving.section(serving), estimate_runs.section(runs))
    ) + "\n"  # fmt: skip
    figures |= {"serving": serving, "whole_runs": runs}
    if not asked.check:
        ACCURACY.write_text(text)
    print(text)
    print(
        json.dumps({"name": "estimate", "commit": commit(), "machine": machine(), **figures}, default=float)
    )


def _refit_shift(rows: Rows) -> float:
    """Median change of estimates if the constants were fitted again: near 0, or `constants.FITTED` is stale."""
    again = step_time(rows.columns, fit(rows.columns, rows.measured_s, rows.sources)).total
    return float(np.median(np.abs(np.log(again / step_time(rows.columns, FITTED).total))))


def page(rows: Rows, ours: Vector, plain: Vector, figures: dict[str, object]) -> str:
    """docs/accuracy.md."""

    def row(title: str, key: str) -> str:
        s = figures[key]
        assert isinstance(s, dict)
        return f"| {title} | {s['rows']} | {s['sources']:.1%} | {s['pooled']:.1%} | {s['p90']:.1%} | {s['worst']:.1%} |"

    ranks = figures["ranking"]
    assert isinstance(ranks, dict)
    off, correlation = np.array(ranks["pick_off"]), np.array(ranks["spearman"])
    missed = figures["ran_but_called_infeasible"]
    assert isinstance(missed, list)
    speed_of = figures["layouts_per_s"], figures["search_405b_16384_h100"]
    assert isinstance(speed_of[0], dict) and isinstance(speed_of[1], dict)
    return f"""# How far estimates are off

Generated by `make bench-estimate`: do not edit. Errors of step time on {len(rows.ids)} published training steps from
{len(set(rows.sources))} sources (`bench/data/published/`), each row estimated by constants that had not seen its
source. "Sources" is the median over sources of each source's median, so that no source counts more than another.

## Training: step time

| | rows | sources | all rows | p90 | worst |
| --- | --- | --- | --- | --- | --- |
{row("**ours**, step time stated or derived by the source", "step_time")}
{row("a constant MFU per kind of chip and precision", "constant_mfu")}
{row("ours, by constants that had seen nothing of whoever published the row", "leave_one_family_out")}
{row("ours, with two rows whose step time follows from their MFU", "step_time_derived_too")}
{row("ours, mixtures of experts", "large_moe")}
{row("constant MFU, mixtures of experts", "large_moe_constant_mfu")}
{row("ours, GB200", "gb200")}
{row("constant MFU, GB200", "gb200_constant_mfu")}
{row("ours where the constants had seen all sources (how well they fit, not how well they predict)", "in_sample")}

The 80 % interval holds {figures["interval_holds_rows"]:.0%} of the rows, {figures["interval_holds_by_source"]:.0%} with
every source counting alike.

{table(rows, ours, plain)}

## Training: ranking of layouts

{ranks["groups"]} groups of rows of one source that differ in their layout alone. The layout that is picked is
{np.median(off):.1%} slower than the best measured (median; worst {off.max():.1%}); within 5 % in
{int((off <= 0.05).sum())} of {len(off)}. Spearman's rank correlation: median {np.median(correlation):.2f}, mean
{correlation.mean():.2f}; groups of two are +1 or -1.

## Training: memory

No open row states its memory. Rows that ran and that we would call infeasible: {len(missed)} of {len(rows.ids)}
({", ".join(missed) or "none"}).

## Search

{speed_of[0]["median"]:,.0f} layouts a second on one core ({speed_of[0]["min"]:,.0f} to {speed_of[0]["max"]:,.0f});
Llama 3.1 405B on 16,384 H100 in {speed_of[1]["median"]:.2f} s.
"""


if __name__ == "__main__":
    main()
