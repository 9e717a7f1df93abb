"""A table of questions about training, answered row by row; one bad row does not stop the rest.

Rows are mappings of text, as a table's reader gives them; what comes back is one line per row, in its order.
Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from caudal.domain.errors import CaudalError
from caudal.estimate.answer import GIB, Estimate, estimates
from caudal.estimate.points import Missing, Point, point_of

COLUMNS = ("id", "step_time_s", "step_time_s_lo", "step_time_s_hi", "memory_gib_per_chip", "reason")


@dataclass(frozen=True)
class Line:
    """One row's answer: an estimate, or why there is none."""

    id: str
    estimate: Estimate | None
    reason: str

    def cells(self) -> tuple[str, ...]:
        """As the columns of COLUMNS."""
        found = self.estimate
        if found is None:
            return (self.id, "", "", "", "", self.reason)
        times = (found.step_time_s, found.step_time_s_lo, found.step_time_s_hi, found.memory_bytes / GIB)
        return (self.id, *(f"{value:.6g}" for value in times), self.reason)


def _point(row: Mapping[str, str], defaults: Mapping[str, str]) -> Point:
    filled = dict(row)
    for name, value in defaults.items():
        if not (filled.get(name) or "").strip():
            filled[name] = value
    return point_of(filled)


def answered(rows: Sequence[Mapping[str, str]], defaults: Mapping[str, str] | None = None) -> list[Line]:
    """One line per row. `defaults` stand in for cells that are empty or columns that are not there."""
    lines: list[Line] = []
    for number, row in enumerate(rows, start=1):
        name = (row.get("id") or "").strip() or f"row {number}"
        broken = row.get("") or ""
        if broken:
            lines.append(Line(name, None, broken))
            continue
        try:
            found = estimates([_point(row, defaults or {})])[0]
            lines.append(Line(name, found, "; ".join(found.notes)))
        except Missing as error:
            lines.append(Line(name, None, str(error)))
        except CaudalError as error:
            lines.append(Line(name, None, error.what))
        except (ArithmeticError, ValueError) as error:
            lines.append(Line(name, None, f"no estimate: {error}"))
    return lines


def ranked(lines: Sequence[Line]) -> list[Line]:
    """Fastest first; then those that do not fit, by how much; then those without an estimate."""

    def key(line: Line) -> tuple[int, float]:
        found = line.estimate
        if found is None:
            return (2, 0.0)
        if not found.fits:
            return (1, found.memory_bytes / found.memory_allowed_bytes)
        return (0, found.step_time_s)

    return [replace(line) for line in sorted(lines, key=key)]
