"""How far estimates of whole runs and interruptions are off: leave one source out, every source alike.

Imported by bench/estimate.py; `python bench/estimate_runs.py` prints every row.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from caudal.catalog.chips import chip
from caudal.domain.errors import CaudalError
from caudal.estimate.energy import PUE, UTILISATION, energy
from caudal.estimate.failures import OBSERVED, rate_of
from caudal.estimate.points import Missing
from caudal.estimate.run_points import run_of
from caudal.estimate.whole_run import PRACTICE, PRACTICE_SPREAD, whole_run

DATA = Path(__file__).resolve().parent / "data" / "published" / "whole_runs.csv"
LLAMA3 = 419


@dataclass(frozen=True)
class Runs:
    """Rows with measured chip-hours: what the best layout would take, and what the run took."""

    ids: list[str]
    ideal: np.ndarray
    measured: np.ndarray
    sources: np.ndarray
    mwh: np.ndarray
    watts_ok: np.ndarray
    loose: np.ndarray


def source_of(row: dict[str, str]) -> str:
    """Whose figures these are: the paper or team, without the table's number or the model's size."""
    words = re.sub(
        r"(?i)paper|table.*|model card|card|report|meta|\(.*|\d+b\b|readme.*|blog|[+].*|(?<=\d)\.\d",
        " ",
        row["source"],
    )
    return " ".join(words.split())


def read(path: Path = DATA) -> Runs:
    """Every row that can be estimated."""
    ids, ideal, measured, sources, mwh, loose = [], [], [], [], [], []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["chip_hours"] or not row["tokens_t"]:
                continue
            try:
                made = whole_run(run_of(row))
            except (Missing, CaudalError):
                continue
            ids.append(row["id"])
            ideal.append(made.chip_hours.value / PRACTICE)
            measured.append(float(row["chip_hours"]))
            sources.append(source_of(row))
            mwh.append(float(row["mwh_stated"] or "nan"))
            loose.append(row["judge"] == "loose")
    return Runs(
        ids,
        np.array(ideal),
        np.array(measured),
        np.array(sources),
        np.array(mwh),
        np.isfinite(mwh),
        np.array(loose),
    )


def practice(runs: Runs, chosen: np.ndarray) -> float:
    """The median over sources of their median factor, of rows that are not loose."""
    ratio = runs.measured / runs.ideal
    used = chosen & ~runs.loose
    return float(
        median(float(np.median(ratio[used & (runs.sources == s)])) for s in sorted(set(runs.sources[used])))
    )


def left_out(runs: Runs) -> np.ndarray:
    """Estimated chip-hours, with a factor that never saw the row's source."""
    made = np.empty(len(runs.ideal))
    for name in sorted(set(runs.sources)):
        mine = runs.sources == name
        made[mine] = runs.ideal[mine] * practice(runs, ~mine)
    return made


def by_source(values: np.ndarray, sources: np.ndarray) -> float:
    """The median over sources of each source's median."""
    return float(np.median([np.median(values[sources == name]) for name in sorted(set(sources))]))


def figures() -> dict[str, object]:
    """For the scoreboard."""
    runs = read()
    guess, firm = left_out(runs), ~runs.loose
    error = np.abs(guess / runs.measured - 1)
    inside = np.abs(np.log(guess / runs.measured)) <= PRACTICE_SPREAD
    llama3_hours = 16384 * 54 * 24
    powered = [(i, w) for i, w in zip(runs.ids, runs.mwh, strict=True) if math.isfinite(w)]
    return {
        "chip_hours": {
            "rows": int(firm.sum()), "sources_n": len(set(runs.sources[firm])),
            "sources": by_source(error[firm], runs.sources[firm]),
            "pooled": float(np.median(error[firm])), "p90": float(np.quantile(error[firm], 0.9)),
            "worst": float(error[firm].max()), "worst_id": runs.ids[int(np.where(firm, error, 0).argmax())],
        },
        "chip_hours_interval_holds": round(float(inside[firm].mean()), 3),
        "practice": round(practice(runs, np.ones(len(runs.ids), dtype=bool)), 3),
        "energy_at_measured_chip_hours": energy_errors(runs),
        "energy_rows": len(powered),
        "interruptions_llama3": round(rate_of("H100-80GB").per_chip_hour * llama3_hours, 1),
        "interruptions_llama3_left_out": round(rate_of("H100-80GB", "llama3").per_chip_hour * llama3_hours, 1),
        "interruptions_llama3_measured": LLAMA3,
        "interruption_rates": {
            x.source: {"published": x.per_chip_hour, "left_out": rate_of("A100", x.source_id).per_chip_hour}
            for x in OBSERVED
        },
    }  # fmt: skip


def energy_errors(runs: Runs) -> dict[str, float]:
    """Of stated MWh, given the chip-hours that were measured: the energy model alone."""
    with DATA.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    made = {}
    for name, hours, mwh in zip(runs.ids, runs.measured, runs.mwh, strict=True):
        which = chip(rows[name]["chip"])
        if math.isfinite(mwh) and which is not None and which.watts:
            made[name] = (
                energy(float(hours), which.watts, pue=PUE, utilisation=UTILISATION).mwh / float(mwh) - 1
            )
    return made


def section(found: dict[str, object]) -> str:
    """The part of docs/accuracy.md on whole runs and failures."""
    hours, rates, power = (
        found["chip_hours"],
        found["interruption_rates"],
        found["energy_at_measured_chip_hours"],
    )
    assert isinstance(hours, dict) and isinstance(rates, dict) and isinstance(power, dict)
    powers = ", ".join(f"{name} {off:+.1%}" for name, off in power.items())
    lines = [
        "## Whole runs", "",
        f"Chip-hours of {hours['rows']} runs of {hours['sources_n']} teams: what the best layout would take, times one",
        f"factor ({found['practice']}, each team left out in turn), over the goodput that interruptions leave. Layouts and",
        "batches are not published with these rows.", "",
        "| | rows | sources | all rows | p90 | worst | goal |", "| --- | --- | --- | --- | --- | --- | --- |",
        f"| chip-hours | {hours['rows']} | {hours['sources']:.1%} | {hours['pooled']:.1%} | {hours['p90']:.1%} "
        f"| {hours['worst']:.0%} ({hours['worst_id']}) | 20% |",
        "", f"The 80 % interval holds {found['chip_hours_interval_holds']:.0%} of the rows.", "",
        f"Energy, given the chip-hours that were measured: {powers}.",
        "", "## Failures", "",
        f"Llama 3, 54 days on 16,384 H100: {found['interruptions_llama3_measured']} interruptions; estimated",
        f"{found['interruptions_llama3']}, and {found['interruptions_llama3_left_out']} by a rate that had not seen it.",
        "", "| published, per chip-hour | | by the others |", "| --- | --- | --- |",
    ]  # fmt: skip
    for source, s in rates.items():
        off = s["left_out"] / s["published"] - 1
        lines.append(f"| {source} | {s['published']:.2e} | {s['left_out']:.2e} ({off:+.0%}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = read()
    for name, source, ours, theirs in zip(
        found.ids, found.sources, left_out(found), found.measured, strict=True
    ):
        print(f"{name} {source:30s} {ours:12,.0f} {theirs:12,.0f} {ours / theirs - 1:+.0%}")
    print(figures())
