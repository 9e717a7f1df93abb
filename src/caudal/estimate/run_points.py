"""A table of whole runs, answered row by row: the columns of `whole_runs.csv`; measured ones are not read.

`days` is read where a row states neither a model nor tokens, or is there for its failures (`judge`): then it is for how
long a fleet was watched.
Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caudal.domain.errors import CaudalError
from caudal.estimate.failures import interruptions, rate_of
from caudal.estimate.points import Missing, chip_of, count, model_of, number, precision_of
from caudal.estimate.ranges import Range
from caudal.estimate.software import software_of
from caudal.estimate.whole_run import RunQuestion, WholeRun, whole_run

QUANTITIES = ("chip_hours", "days", "mwh", "interruptions")
COLUMNS = (
    "id", *(f"{name}{end}" for name in QUANTITIES for end in ("", "_lo", "_hi")), "reason",
)  # fmt: skip
SHORT = 2048
TRILLION = 1e12


@dataclass(frozen=True)
class RunLine:
    """One row's answer. Quantities that are unknown are None; `reason` says why, and what was filled in."""

    id: str
    found: dict[str, Range | None]
    reason: str

    def cells(self) -> tuple[str, ...]:
        """As the columns of COLUMNS."""
        cells = [self.id]
        for name in QUANTITIES:
            got = self.found.get(name)
            cells += ["", "", ""] if got is None else [f"{v:.6g}" for v in (got.value, got.low, got.high)]
        return (*cells, self.reason)


def run_of(row: Mapping[str, str]) -> RunQuestion:
    """One row as a question; raises `Missing`."""
    notes: list[str] = []
    which = chip_of(row)
    tokens = number(row, "tokens_t")
    if not tokens:
        raise Missing("no tokens_t (trillions of tokens)")
    if tokens > 10_000:
        raise Missing(f"tokens_t is {tokens:g}: it counts trillions")
    model = model_of(row, notes)
    software = software_of(
        row.get("framework") or "", f"{row.get('source') or ''} {row.get('source_url') or ''}", which.since
    )
    seq = count(row, "seq_len")
    if seq is None:
        seq = SHORT if software.year < 2023 else 2 * SHORT
        notes.append(f"sequence length taken as {seq}")
    if seq > 10_000_000:
        raise Missing(f"seq_len is {seq}: at most 10 million")
    return RunQuestion(
        model, which, count(row, "chips"), tokens * TRILLION, seq, software, precision_of(row.get("precision") or ""),
        count(row, "global_batch_seqs"), notes=tuple(notes),
    )  # fmt: skip


def _fleet(row: Mapping[str, str]) -> dict[str, Range | None]:
    """Interruptions of so many chips in so many days, whatever they ran."""
    which = chip_of(row)
    chips, days = count(row, "chips"), number(row, "days")
    if not chips or not days:
        raise Missing("no model and tokens, and not both chips and days to count interruptions of")
    return {"interruptions": Range(*interruptions(chips * days * 24, rate_of(which.name)))}


def _of_run(made: WholeRun, row: Mapping[str, str]) -> dict[str, Range | None]:
    watched = number(row, "days") if "failures" in (row.get("judge") or "") else None
    expected = made.interruptions
    if watched and made.question.chips:
        expected = Range(*interruptions(made.question.chips * watched * 24, rate_of(made.question.chip.name)))
    return {"chip_hours": made.chip_hours, "days": made.days, "mwh": made.mwh, "interruptions": expected}


def answered_runs(
    rows: Sequence[Mapping[str, str]], defaults: Mapping[str, str] | None = None
) -> list[RunLine]:
    """One line per row. `defaults` stand in for cells that are empty."""
    lines = []
    for at, given in enumerate(rows, start=1):
        row = dict(given)
        row.update({n: v for n, v in (defaults or {}).items() if not (row.get(n) or "").strip()})
        name = (row.get("id") or "").strip() or f"row {at}"
        if row.get(""):
            lines.append(RunLine(name, {}, row[""]))
            continue
        try:
            if not (row.get("tokens_t") or "").strip():
                lines.append(RunLine(name, _fleet(row), "interruptions of a fleet alone: no tokens_t"))
                continue
            made = whole_run(run_of(row))
            lines.append(RunLine(name, _of_run(made, row), "; ".join(made.notes)))
        except CaudalError as error:
            lines.append(RunLine(name, {}, error.what))
        except (ArithmeticError, ValueError) as error:
            lines.append(
                RunLine(name, {}, str(error) if isinstance(error, Missing) else f"no estimate: {error}")
            )
    return lines
