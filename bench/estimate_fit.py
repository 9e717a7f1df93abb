"""Fits the step-time model's constants on the open rows: least squares on the logarithm, every source alike.

`python bench/estimate_fit.py` prints the constants; `leave_one_out` is what bench/estimate.py scores. Gauss-Newton
with damping in numpy; priors keep what the rows do not determine where physics puts it.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from caudal.estimate.answer import flops_per_token
from caudal.estimate.case import FIELDS, Case, Vector, case, peak
from caudal.estimate.choose import settled
from caudal.estimate.constants import Constants
from caudal.estimate.points import Missing, Point, point_of
from caudal.estimate.step_time import StepTime, step_time
from robust_fit import solve

DATA = Path(__file__).resolve().parent / "data" / "published"

PRIOR = Constants()
NAMES = tuple(asdict(PRIOR))
"""What is fitted, all as logarithms."""
TIGHT = {
    "matmul": 0.06, "matmul_low": 0.06, "matmul_fp4": 0.25, "matmul_bytes": 0.15, "attention": 0.25,
    "attention_old": 0.12, "attention_hopper": 0.2, "scores": 0.3, "elementwise": 0.3, "eager": 0.3,
    "sinks": 0.25, "logits": 0.25, "young": 0.08, "up_share": 0.15, "out_share": 0.2, "hop_s": 0.4, "tensor_exposed": 0.4,
    "expert_exposed": 0.15, "expert_hidden": 0.1, "data_hidden": 0.2, "gather_hidden": 0.2, "experts": 0.08,
    "experts_a_year": 0.15, "route_s": 0.5, "launch_s": 0.5, "step_s": 0.25, "neuron": 0.3, "amd": 0.1, "tpu": 0.3,
}  # fmt: skip
"""How far, in logarithms, each may go from its prior before that costs as much as a row that is off by as much."""
LOOSE = 0.5
ROBUST = 0.12


@dataclass(frozen=True)
class Rows:
    """Rows with a measured step time."""

    points: list[Point]
    columns: Case
    measured_s: Vector
    sources: np.ndarray
    ids: list[str]
    raw: list[dict[str, str]]


def read(path: Path = DATA / "training_points.csv") -> Rows:
    """Every row that has a measured step time and can be estimated."""
    points, measured, sources, ids, raw = [], [], [], [], []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            row["stated"] = row["step_time_s"]
            if not row["step_time_s"]:
                row["step_time_s"] = derived(row)
            if not row["step_time_s"]:
                continue
            try:
                point = settled(point_of(row), PRIOR)
            except Missing as error:
                print("skipped", row["id"], error, file=sys.stderr)
                continue
            points.append(point)
            measured.append(float(row["step_time_s"]))
            sources.append(row["source_id"])
            ids.append(row["id"])
            raw.append(row)
    columns = case([(p.job, p.layout) for p in points])
    return Rows(points, columns, np.array(measured), np.array(sources), ids, raw)


def derived(row: dict[str, str]) -> str:
    """The step time that a reported utilisation implies (PaLM's convention), where a layout is stated."""
    if not (row["mfu_reported_pct"] and row["tp"] and row["layers"]):
        return ""
    point = point_of(row)
    flops = flops_per_token(point.job.model, point.job.seq_len) * point.job.seq_len * point.job.global_batch
    rate = float(row["mfu_reported_pct"]) / 100 * peak(point.job.chip, point.job.precision) * point.job.chips
    return str(flops / rate)


def taken(columns: Case, chosen: Vector) -> Case:
    """Some rows of the columns."""
    return Case(**{name: getattr(columns, name)[chosen] for name in FIELDS})


def constants_of(logs: Vector) -> Constants:
    """From logarithms, in the order of NAMES."""
    return Constants(**{name: float(np.exp(value)) for name, value in zip(NAMES, logs, strict=True)})


def weights(sources: np.ndarray) -> Vector:
    """Every source counts alike, however many rows it has; a little more where it has many."""
    counts = {name: (sources == name).sum() for name in set(sources)}
    return np.array([counts[name] ** -0.7 for name in sources])


def fit(
    columns: Case, measured_s: Vector, sources: np.ndarray, start: Constants = PRIOR, rounds: int = 40
) -> Constants:
    """The constants that explain these rows best."""
    at = np.array([np.log(getattr(start, name)) for name in NAMES])
    prior = np.array([np.log(getattr(PRIOR, name)) for name in NAMES])
    width = np.array([TIGHT.get(name, LOOSE) for name in NAMES])
    by_row = weights(sources)

    def residuals(logs: Vector) -> Vector:
        return np.log(step_time(columns, constants_of(logs)).total / measured_s)

    found = solve(
        residuals, at, prior, width, by_row, rounds=rounds, robust=ROBUST, prior_weight=0.02, most=0.5
    )
    return constants_of(found)


def families(sources: np.ndarray) -> np.ndarray:
    """Who published: all tables of one repository or one team are one family."""
    same = {"mtnlg": "megatron2021"}
    return np.array([same.get(name, name).split("_")[0] for name in sources])


def leave_one_out(rows: Rows, groups: np.ndarray | None = None) -> Vector:
    """Estimated seconds of every row by constants that never saw its source (or its group)."""
    groups = rows.sources if groups is None else groups
    names = sorted(set(groups))
    result = np.empty(len(rows.measured_s))
    for name in names:
        held = groups == name
        # From the priors, not from a fit of all rows: that one has seen what is held back.
        constants = fit(taken(rows.columns, ~held), rows.measured_s[~held], rows.sources[~held])
        result[held] = step_time(taken(rows.columns, held), constants).total
    return result


def balanced(errors: Vector, sources: np.ndarray) -> float:
    """The median over sources of each source's median."""
    return float(np.median([np.median(errors[sources == name]) for name in sorted(set(sources))]))


def _show(rows: Rows, seconds: Vector, title: str) -> None:
    log = np.log(seconds / rows.measured_s)
    error = np.abs(seconds / rows.measured_s - 1)
    print(
        f"== {title}: balanced {balanced(error, rows.sources):.3f} pooled {np.median(error):.3f} "
        f"p90 {np.quantile(error, 0.9):.3f} max {error.max():.3f} {rows.ids[int(error.argmax())]}"
    )
    for name in sorted(set(rows.sources)):
        s = rows.sources == name
        print(
            f"  {name:22s} n={s.sum():3d} median {np.median(error[s]):.3f} bias {np.median(log[s]):+.3f} "
            f"range {log[s].min():+.2f}..{log[s].max():+.2f}"
        )


def _show_rows(rows: Rows, times: StepTime) -> None:
    """Every row with its largest items: for whoever improves the model."""
    total = times.total
    for at, name in enumerate(rows.ids):
        parts = {n: float(np.broadcast_to(v, total.shape)[at]) / total[at] for n, v in times.items.items()}
        largest = sorted(parts.items(), key=lambda part: -part[1])[:7]
        point, used = rows.points[at], times.memory
        print(
            f"{name:28s} {np.log(total[at] / rows.measured_s[at]):+.3f} {total[at]:.2f}/{rows.measured_s[at]:.2f} "
            f"GiB {used.total[at] / 2**30:.0f} recomputed {used.recomputed[at]:.2f} "
            f"mb{point.layout.micro_batch} vp{point.layout.vp} {point.job.software.year:.1f} "
            + " ".join(f"{n}:{part:.2f}" for n, part in largest)
        )


def main() -> None:
    """Print the fit, per source; --loso leaves each out in turn; --rows prints every row."""
    rows = read()
    found = fit(rows.columns, rows.measured_s, rows.sources)
    times = step_time(rows.columns, found)
    _show(rows, times.total, "in sample")
    if "--loso" in sys.argv:
        _show(rows, leave_one_out(rows), "leave one source out")
        _show(rows, leave_one_out(rows, families(rows.sources)), "leave one family out")
    if "--rows" in sys.argv:
        _show_rows(rows, times)
    for name in NAMES:
        print(f"    {name}={getattr(found, name):.4g},  # prior {getattr(PRIOR, name):g}")


if __name__ == "__main__":
    main()
