"""Months as whole numbers. Knows the calendar and nothing else."""

from __future__ import annotations

from calendar import monthrange


def number(month: str) -> int:
    """2027-03 as months since year 0. Raises ValueError for anything else."""
    year, _, rest = month.partition("-")
    if len(year) != 4 or len(rest) != 2 or not (year + rest).isdigit() or not 1 <= int(rest) <= 12:
        raise ValueError(f"{month!r} is not a month such as 2027-03")
    return int(year) * 12 + int(rest) - 1


def name(month: int) -> str:
    """The other way round."""
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def hours(month: int) -> float:
    """How many it has."""
    return 24.0 * monthrange(month // 12, month % 12 + 1)[1]
