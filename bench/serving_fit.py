"""Fits the serving model's constants on the open rows: all three quantities at once, every source alike.

`python bench/serving_fit.py` prints them; `--loso` leaves each source out in turn, `--rows` prints every row.
`left_out` is what bench/estimate_serving.py scores. Gauss-Newton with damping and priors, as estimate_fit.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from caudal.estimate.case import Vector
from caudal.estimate.points import Missing
from caudal.estimate.serving import served
from caudal.estimate.serving_case import NAMES as COLUMN_NAMES
from caudal.estimate.serving_case import Columns, Question, columns
from caudal.estimate.serving_constants import Serving
from caudal.estimate.serving_points import question_of
from robust_fit import solve

DATA = Path(__file__).resolve().parent / "data" / "published"
PRIOR = Serving()
NAMES = tuple(asdict(PRIOR))
QUANTITIES = ("throughput", "ttft", "tpot")
TIGHT = {
    "matmul": 0.12, "memory": 0.1, "kv": 0.2, "matmul_fp4": 0.25, "experts": 0.3, "old": 0.08, "occupied": 0.08,
    "attention": 0.3, "links": 0.25, "amd": 0.25, "elementwise": 0.25, "layer_s": 0.3, "host_s": 0.3,
    "reduce_s": 0.3, "expert_layer_s": 0.3, "burst": 0.3, "launch_s": 0.35,
}  # fmt: skip
LOOSE = 0.5
ROBUST = 0.2
PRIOR_WEIGHT = 0.15
TTFT_WEIGHT = 0.4
"""Times to the first token scatter most; they are not to bend the constants of throughput."""


@dataclass(frozen=True)
class Rows:
    """One line per row and quantity that was measured. `at` is the row in `columns`."""

    questions: list[Question]
    columns: Columns
    at: np.ndarray
    kind: np.ndarray
    measured: Vector
    sources: np.ndarray
    ids: list[str]


def measured_of(row: dict[str, str]) -> dict[str, float]:
    """Tokens a second (generated; of a prefill node: read), seconds to the first token and per token."""
    found = {}
    tokens = row["out_tokens_per_s_total"] or row["in_tokens_per_s_total"]
    cells = (("throughput", tokens, 1.0), ("ttft", row["ttft_ms"], 1e-3), ("tpot", row["tpot_ms"], 1e-3))
    for name, text, scale in cells:
        if text.strip():
            found[name] = float(text) * scale
    return found


def read(path: Path = DATA / "serving_points.csv") -> Rows:
    """Every row that can be estimated."""
    questions: list[Question] = []
    at, kind, measured, sources, ids = [], [], [], [], []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                questions.append(question_of(row))
            except Missing as error:
                print("skipped", row["id"], error, file=sys.stderr)
                continue
            for name, value in measured_of(row).items():
                at.append(len(questions) - 1)
                kind.append(QUANTITIES.index(name))
                measured.append(value)
                sources.append(row["source_id"])
                ids.append(row["id"])
    return Rows(
        questions,
        columns(questions),
        np.array(at),
        np.array(kind),
        np.array(measured),
        np.array(sources),
        ids,
    )


def taken(rows: Rows, chosen: np.ndarray) -> Rows:
    """Some lines of the rows."""
    return Rows(rows.questions, rows.columns, rows.at[chosen], rows.kind[chosen], rows.measured[chosen],
                rows.sources[chosen], [x for x, c in zip(rows.ids, chosen, strict=True) if c])  # fmt: skip


def estimated(rows: Rows, constants: Serving) -> Vector:
    """The same quantities by the model."""
    used = np.unique(rows.at)
    some = Columns(**{name: getattr(rows.columns, name)[used] for name in COLUMN_NAMES})
    made = served(some, constants)
    tokens = np.where(some.is_prefill > 0, made.in_tokens_per_s, made.out_tokens_per_s)
    here = np.searchsorted(used, rows.at)
    return np.asarray(np.choose(rows.kind, [tokens[here], made.ttft_s[here], made.tpot_s[here]]))


def weights(rows: Rows) -> Vector:
    """Every source and quantity counts alike; a little more where it has many rows."""
    keys = [f"{source} {kind}" for source, kind in zip(rows.sources, rows.kind, strict=True)]
    counts = {key: keys.count(key) for key in set(keys)}
    scale = np.where(rows.kind == QUANTITIES.index("ttft"), TTFT_WEIGHT, 1.0)
    return np.array([counts[key] ** -0.6 for key in keys]) * scale


def constants_of(logs: Vector) -> Serving:
    """From logarithms, in the order of NAMES."""
    return Serving(**{name: float(np.exp(value)) for name, value in zip(NAMES, logs, strict=True)})


def fit(rows: Rows, start: Serving = PRIOR, rounds: int = 40) -> Serving:
    """The constants that explain these rows best."""
    width = np.array([TIGHT.get(name, LOOSE) for name in NAMES])
    prior = np.log([getattr(PRIOR, name) for name in NAMES])
    by_row = weights(rows)

    def residuals(logs: Vector) -> Vector:
        return np.asarray(np.log(estimated(rows, constants_of(logs)) / rows.measured))

    begin = np.log([getattr(start, name) for name in NAMES])
    found = solve(
        residuals, begin, prior, width, by_row,
        rounds=rounds, robust=ROBUST, prior_weight=PRIOR_WEIGHT, most=0.4,
    )  # fmt: skip
    return constants_of(found)


def left_out(rows: Rows, groups: np.ndarray | None = None) -> Vector:
    """Every line by constants that never saw its source (or its group)."""
    groups = rows.sources if groups is None else groups
    result = np.empty(len(rows.measured))
    for name in sorted(set(groups)):
        held = groups == name
        found = fit(taken(rows, ~held))
        result[held] = estimated(taken(rows, held), found)
    return result


def balanced(errors: Vector, sources: np.ndarray) -> float:
    """The median over sources of each source's median."""
    return float(np.median([np.median(errors[sources == name]) for name in sorted(set(sources))]))


def _show(rows: Rows, guess: Vector, title: str) -> None:
    log, error = np.log(guess / rows.measured), np.abs(guess / rows.measured - 1)
    print(f"== {title}")
    for number, quantity in enumerate(QUANTITIES):
        mine = rows.kind == number
        print(
            f"  {quantity}: balanced {balanced(error[mine], rows.sources[mine]):.3f} pooled {np.median(error[mine]):.3f}"
        )
        for name in sorted(set(rows.sources[mine])):
            s = mine & (rows.sources == name)
            print(f"    {name:22s} n={s.sum():3d} median {np.median(error[s]):.3f} bias {np.median(log[s]):+.3f} "
                  f"range {log[s].min():+.2f}..{log[s].max():+.2f}")  # fmt: skip


def _show_rows(rows: Rows, constants: Serving) -> None:
    made, guess = served(rows.columns, constants), estimated(rows, constants)
    total = made.iteration.total
    for line, at in enumerate(rows.at):
        q = rows.questions[at]
        parts = sorted(
            ((float(v[at] / total[at]), n) for n, v in made.iteration.items.items()), reverse=True
        )[:6]
        print(f"{rows.ids[line]:26s} {QUANTITIES[rows.kind[line]]:10s} {np.log(guess[line] / rows.measured[line]):+.2f} "
              f"{guess[line]:.4g}/{rows.measured[line]:.4g} {q.model.name} {q.chip.name} tp{q.tp} {q.isl}/{q.osl} "
              f"B{made.sequences[at]:.0f} of {made.most_sequences[at]:.0f} "
              f"it {total[at] * 1e3:.1f}ms pre {made.prefill_s[at] * 1e3:.0f}ms "
              + " ".join(f"{n[:12]}:{p:.2f}" for p, n in parts))  # fmt: skip


def main() -> None:
    """Print the fit, per source."""
    rows = read()
    if "--prior" in sys.argv:
        _show(rows, estimated(rows, PRIOR), "priors")
    found = PRIOR if "--prior" in sys.argv else fit(rows)
    _show(rows, estimated(rows, found), "in sample")
    if "--loso" in sys.argv:
        _show(rows, left_out(rows), "leave one source out")
    if "--rows" in sys.argv:
        _show_rows(rows, found)
    for name in NAMES:
        print(f"    {name}={getattr(found, name):.4g},  # prior {getattr(PRIOR, name):g}")


if __name__ == "__main__":
    main()
