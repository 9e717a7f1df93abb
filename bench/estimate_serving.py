"""How far estimates of serving are off on published points: leave one source out, every source alike.

Imported by bench/estimate.py, which writes docs/accuracy.md; `python bench/estimate_serving.py` prints the figures.
"""

from __future__ import annotations

import json

import numpy as np

from caudal.estimate.serving_answer import half_width
from caudal.estimate.serving_constants import FITTED
from serving_fit import QUANTITIES, Rows, balanced, estimated, fit, left_out, read

GOALS = {"throughput": 0.20, "ttft": 0.30, "tpot": 0.15}


def families(sources: np.ndarray) -> np.ndarray:
    """Who published, and on which engine: both Neuron tables are one, both of TensorRT-LLM's own are one."""
    return np.array([name.split("_")[0] for name in sources])


def held(rows: Rows, guess: np.ndarray) -> np.ndarray:
    """Which lines lie in their 80 % interval."""
    half = np.array(
        [
            half_width(rows.questions[at], QUANTITIES[kind])
            for at, kind in zip(rows.at, rows.kind, strict=True)
        ]
    )
    return np.asarray(np.abs(np.log(guess / rows.measured)) <= half)


def score(rows: Rows, guess: np.ndarray, kind: int, chosen: np.ndarray | None = None) -> dict[str, object]:
    """Of one quantity. `sources` is the median over sources of each source's median."""
    mine = rows.kind == kind
    mine = mine if chosen is None else mine & chosen
    error = np.abs(guess / rows.measured - 1)[mine]
    names = np.array(rows.ids)[mine]
    return {
        "rows": int(mine.sum()), "sources": balanced(error, rows.sources[mine]), "pooled": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)), "worst": float(error.max()), "worst_id": str(names[int(error.argmax())]),
    }  # fmt: skip


def figures() -> dict[str, object]:
    """For the scoreboard."""
    rows = read()
    ours, harder, seen = left_out(rows), left_out(rows, families(rows.sources)), estimated(rows, FITTED)
    inside = held(rows, ours)
    neuron = np.array([rows.questions[at].engine == "neuron" for at in rows.at])
    result: dict[str, object] = {}
    for kind, name in enumerate(QUANTITIES):
        mine = rows.kind == kind
        sources = sorted(set(rows.sources[mine]))
        result[name] = {
            "left_out": score(rows, ours, kind), "family_left_out": score(rows, harder, kind),
            "gpus_only": score(rows, ours, kind, ~neuron), "in_sample": score(rows, seen, kind),
            "interval_holds_rows": round(float(inside[mine].mean()), 3),
            "interval_holds_by_source": round(
                float(np.mean([inside[mine & (rows.sources == s)].mean() for s in sources])), 3
            ),
            "by_source": {s: _by_source(rows, ours, mine & (rows.sources == s)) for s in sources},
        }  # fmt: skip
    again = estimated(rows, fit(rows))
    result["refit_moves_estimates_by"] = round(float(np.median(np.abs(np.log(again / seen)))), 4)
    return result


def _by_source(rows: Rows, guess: np.ndarray, mine: np.ndarray) -> dict[str, float]:
    log = np.log(guess / rows.measured)[mine]
    error = np.abs(np.exp(log) - 1)
    return {
        "rows": int(mine.sum()),
        "median": float(np.median(error)),
        "worst": float(error.max()),
        "bias": float(np.median(log)),
    }


def section(found: dict[str, object]) -> str:
    """The serving part of docs/accuracy.md."""
    titles = {"throughput": "tokens a second", "ttft": "TTFT", "tpot": "TPOT"}
    lines = [
        "## Serving", "",
        "Each row by constants that had not seen its source. But the priors of the constants, and the shape of the",
        "formulas, were chosen with all of these rows in view, and both Neuron tables are of one engine: for another GPU",
        "engine read the lines \"GPUs alone\".", "",
        "| | rows | sources | all rows | p90 | worst | goal |", "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    ways = (
        ("left_out", "**ours**"), ("family_left_out", "every table of one publisher left out"),
        ("gpus_only", "GPUs alone"), ("in_sample", "in sample"),
    )  # fmt: skip
    for name in QUANTITIES:
        part = found[name]
        assert isinstance(part, dict)
        for way, title in ways:
            s = part[way]
            goal = f"{GOALS[name]:.0%}" if way == "left_out" else ""
            lines.append(
                f"| {titles[name]}, {title} | {s['rows']} | {s['sources']:.1%} | {s['pooled']:.1%} | {s['p90']:.1%} "
                f"| {s['worst']:.0%} | {goal} |"
            )
    lines += ["", "| 80 % interval holds | rows | sources alike |", "| --- | --- | --- |"]
    for name in QUANTITIES:
        part = found[name]
        assert isinstance(part, dict)
        lines.append(
            f"| {titles[name]} | {part['interval_holds_rows']:.0%} | {part['interval_holds_by_source']:.0%} |"
        )
    lines += [
        "",
        "| source | quantity | rows | median | worst | bias |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in QUANTITIES:
        part = found[name]
        assert isinstance(part, dict)
        for source, s in part["by_source"].items():
            lines.append(
                f"| {source} | {titles[name]} | {s['rows']} | {s['median']:.1%} | {s['worst']:.0%} | {s['bias']:+.1%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    made = figures()
    print(section(made))
    print(json.dumps(made, default=float))
