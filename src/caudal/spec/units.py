"""Sizes and counts as people write them: `1GiB`, `1.54M`, `1_000`. Knows nothing of specs."""

from __future__ import annotations

import re
from decimal import Decimal

COUNT_PATTERN = r"^[0-9][0-9_]*(\.[0-9]+)? ?(k|M|G|T)?$"
SIZE_PATTERN = r"^[0-9][0-9_]*(\.[0-9]+)? ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$"

_SCALES = {
    "": 1,
    "B": 1,
    "k": 10**3,
    "kB": 10**3,
    "M": 10**6,
    "MB": 10**6,
    "G": 10**9,
    "GB": 10**9,
    "T": 10**12,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_PARTS = re.compile(r"([0-9_]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)(bit/s|bps|bit|B/s)")
MAX_CHARACTERS = 32


def parse_count(text: str) -> int | None:
    """`1.54M` → 1540000. None where it is not a count, or not a whole one."""
    return _parse(text) if len(text) <= MAX_CHARACTERS and re.match(COUNT_PATTERN, text) else None


def parse_size(text: str) -> int | None:
    """`1GiB` → 1073741824 bytes. None where it is not a size, or not of whole bytes."""
    return _parse(text) if len(text) <= MAX_CHARACTERS and re.match(SIZE_PATTERN, text) else None


def parse_rate(text: str) -> float | None:
    """`100Mbit/s`, `1.5Gbps`, `12MB/s` → bytes per second. None where it is not a rate above zero."""
    found = _RATE.fullmatch(text.strip()) if len(text) <= MAX_CHARACTERS else None
    if found is None:
        return None
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[found[2].lower()]
    value = float(found[1]) * scale / (8 if found[3] in ("bit/s", "bps", "bit") else 1)
    return value if value > 0 else None


def show_size(size_bytes: int) -> str:
    """The largest binary unit that leaves a whole number: 1073741824 → `1GiB`; else the plain number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _SCALES[unit] == 0:
            return f"{size_bytes // _SCALES[unit]}{unit}"
    return str(size_bytes)


def _parse(text: str) -> int | None:
    parts = _PARTS.fullmatch(text)
    if parts is None:
        return None
    value = Decimal(parts[1].replace("_", "")) * _SCALES[parts[2]]
    return int(value) if value == value.to_integral_value() else None
