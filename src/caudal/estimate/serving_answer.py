"""Questions about serving, answered: throughput, time to the first token and per token, each with an interval.

The numbers are `serving`'s; this puts them together, says what does not fit, and answers tables row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caudal.domain.errors import CaudalError
from caudal.estimate.points import Missing
from caudal.estimate.ranges import Range, around
from caudal.estimate.serving import Served, served
from caudal.estimate.serving_case import Columns, Question, columns
from caudal.estimate.serving_constants import FITTED, Serving
from caudal.estimate.serving_points import question_of

GIB = 2**30
COLUMNS = (
    "id", *(f"{n}{end}" for n in ("out_tokens_per_s_total", "ttft_ms", "tpot_ms") for end in ("", "_lo", "_hi")),
    "reason",
)  # fmt: skip
DENSE = {"throughput": 0.24, "ttft": 0.75, "tpot": 0.22}
EXPERTS = {"throughput": 0.50, "ttft": 1.05, "tpot": 0.42}
"""Half widths in logarithms of an 80 % interval: residuals of rows whose source the constants had not seen."""
NEURON = {"throughput": 0.20, "ttft": 0.75, "tpot": 0.16}
OPEN_LAYOUT, SPLIT, UNMEASURED_CHIP, OTHER_ENGINE = 0.25, 0.25, 0.2, 0.2
TTFT_P95_WAITS = 3.0
"""A wait that is exponential has its 95th percentile at three times its mean."""


@dataclass(frozen=True)
class ServeEstimate:
    """Over all chips of the question; None is what cannot be said. `items_ms` are of one mean iteration."""

    question: Question
    out_tokens_per_s: Range
    in_tokens_per_s: float
    ttft_ms: Range | None
    ttft_p95_ms: float | None
    tpot_ms: Range
    prefill_ms: float
    sequences: float
    most_sequences: float
    used: float
    weights_gib: float
    free_gib: float
    kv_gib_per_sequence: float
    items_ms: dict[str, float]
    notes: tuple[str, ...]

    @property
    def overloaded(self) -> bool:
        """Whether requests come faster than they can be answered."""
        return self.question.load == "qps" and self.used >= 1


class DoesNotFit(Missing):
    """The weights, or one sequence, are more than a device holds."""


def half_width(q: Question, quantity: str) -> float:
    """Half width of the 80 % interval, in logarithms."""
    base = NEURON if q.engine == "neuron" else EXPERTS if q.model.experts else DENSE
    extra = 0.0
    for part, more in (("layout", OPEN_LAYOUT), ("split", SPLIT)):
        extra += more if part in q.open else 0.0
    if not q.chip.achieved and not q.chip.like and q.chip.vendor != "AWS":
        extra += UNMEASURED_CHIP
    extra += OTHER_ENGINE if q.engine == "other" or q.chip.vendor == "AMD" else 0.0
    return math.hypot(base[quantity], extra)


def serve_estimates(
    questions: Sequence[Question], constants: Serving = FITTED
) -> list[ServeEstimate | DoesNotFit]:
    """Of so many questions at once."""
    if not questions:
        return []
    asked = columns(questions)
    made = served(asked, constants)
    return [_one(q, asked, made, at) for at, q in enumerate(questions)]


def _fit_note(q: Question, free: float, weights: float) -> str:
    from_chips = q.chip.memory_bytes * 0.9 / q.cores / GIB
    devices = "devices" if q.cores == 1 else "cores"
    if free < 0:
        return (
            f"does not fit: weights are {weights:.1f} GiB on each of {q.group} {devices}, "
            f"{-free:.1f} GiB more than the {from_chips:.1f} there are"
        )
    return f"does not fit: one sequence of {q.isl + q.osl} tokens needs more than the {free:.1f} GiB left by the weights"


def _one(q: Question, asked: Columns, made: Served, at: int) -> ServeEstimate | DoesNotFit:
    free = float(asked.free[at]) / GIB
    weights = float(asked.weights[at] + asked.expert_weights[at]) / GIB
    if made.most_sequences[at] < 1 and (free <= 0 or q.load != "prefill"):
        return DoesNotFit(_fit_note(q, free, weights))
    tokens, ttft, tpot = (float(v[at]) for v in (made.out_tokens_per_s, made.ttft_s, made.tpot_s))
    if not all(math.isfinite(v) and v > 0 for v in (ttft, tpot)) or not math.isfinite(tokens):
        raise ArithmeticError(f"{tokens} tokens/s, {ttft} s, {tpot} s")
    notes = list(q.notes)
    used, prefill = float(made.used[at]), float(made.prefill_s[at])
    first: Range | None = around(ttft * 1e3, half_width(q, "ttft"))
    p95: float | None = (prefill + max(0.0, ttft - prefill) * TTFT_P95_WAITS) * 1e3
    if q.load == "max":
        notes.append("time to the first token without the wait of requests that are not admitted yet")
    if q.load == "qps" and used >= 1:
        notes.append(
            f"overloaded: {q.qps:g} requests/s are {used:.2f} times what the chips answer; the wait only grows"
        )
        first, p95 = None, None
    if (
        q.load in ("static", "concurrency")
        and q.batch / max(q.replicas, 1e-9) > made.most_sequences[at] * 1.001
    ):
        notes.append(
            f"{q.batch:g} at once are more than the {made.most_sequences[at] * q.replicas:.0f} that fit; the others wait"
        )
    items = {name: float(value[at]) * 1e3 for name, value in made.iteration.items.items()}
    out = around(tokens, half_width(q, "throughput"))
    if q.load == "qps" and used < 1:  # what is asked for is answered, unless the chips cannot
        out = Range(tokens, min(tokens, out.low / used), tokens)
    return ServeEstimate(
        q, out, float(made.in_tokens_per_s[at]), first, p95,
        around(tpot * 1e3, half_width(q, "tpot")), prefill * 1e3, float(made.sequences[at]),
        float(made.most_sequences[at]), used, weights, free, float(asked.kv_hold[at]) / GIB, items, tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class ServeLine:
    """One row's answer, or why there is none."""

    id: str
    estimate: ServeEstimate | None
    reason: str

    def cells(self) -> tuple[str, ...]:
        """As the columns of COLUMNS."""
        got = self.estimate
        if got is None:
            return (self.id, *[""] * 9, self.reason)
        tokens = None if got.question.load == "prefill" else got.out_tokens_per_s
        tpot = None if got.question.load == "prefill" else got.tpot_ms
        ttft = None if got.question.load == "decode" else got.ttft_ms
        cells: list[str] = []
        for each in (tokens, ttft, tpot):
            cells += ["", "", ""] if each is None else [f"{v:.6g}" for v in (each.value, each.low, each.high)]
        return (self.id, *cells, self.reason)


def _asked(row: Mapping[str, str], defaults: Mapping[str, str]) -> Question:
    if row.get(""):
        raise Missing(row[""])
    filled = dict(row)
    filled.update({n: v for n, v in defaults.items() if not (row.get(n) or "").strip()})
    return question_of(filled)


def _line(name: str, found: ServeEstimate | DoesNotFit) -> ServeLine:
    if isinstance(found, DoesNotFit):
        return ServeLine(name, None, str(found))
    read = f"reads {found.in_tokens_per_s:.6g} tokens/s" if found.question.load == "prefill" else ""
    return ServeLine(name, found, "; ".join(part for part in (*found.notes, read) if part))


def answered_serving(
    rows: Sequence[Mapping[str, str]], defaults: Mapping[str, str] | None = None
) -> list[ServeLine]:
    """One line per row. `defaults` stand in for cells that are empty or columns that are not there."""
    names = [(row.get("id") or "").strip() or f"row {number}" for number, row in enumerate(rows, start=1)]
    lines = [ServeLine(name, None, "") for name in names]
    good: list[tuple[int, Question]] = []
    for at, row in enumerate(rows):
        try:
            good.append((at, _asked(row, defaults or {})))
        except (CaudalError, ArithmeticError, ValueError) as error:
            lines[at] = ServeLine(names[at], None, _why(error))
    if not good:
        return lines
    asked = columns([question for _, question in good])
    with np.errstate(all="ignore"):  # an absurd row is caught below, by its figures
        made = served(asked, FITTED)
    for place, (at, question) in enumerate(good):
        try:
            lines[at] = _line(names[at], _one(question, asked, made, place))
        except (ArithmeticError, ValueError) as error:
            lines[at] = ServeLine(names[at], None, _why(error))
    return lines


def _why(error: Exception) -> str:
    if isinstance(error, CaudalError):
        return error.what
    return str(error) if isinstance(error, Missing) else f"no estimate: {error}"
