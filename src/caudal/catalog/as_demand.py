"""Rows of the catalogue as `offers:` of a `type: demand` file, for `caudal plan`.

Says what the row says; what it does not say is left for whoever knows it, as a comment. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from caudal.catalog.rows import CatalogRow
from caudal.domain.fleet import Market


def as_demand(rows: Iterable[CatalogRow]) -> Iterator[str]:
    """Lines of YAML. Rows without chips or without a price are no offers, and left out."""
    yield "offers:"
    used: set[str] = set()
    count = 0
    for row in rows:
        price = row.price_usd_per_chip_hour
        if not price or not row.chip:
            continue
        name = _name(row, used)
        used.add(name)
        count += 1
        yield f"  - name: {name}"
        yield f"    provider: {_quoted(row.provider)}"
        yield f"    kind: {row.market}"
        yield f"    chip: {_quoted(row.chip)}"
        yield f"    price_usd_per_chip_hour: {round(price, 5).normalize():f}"
        yield f"    unit_chips: {row.chips}"
        if row.term_months:
            yield f"    term_months: {row.term_months}"
        elif row.market in (Market.BLOCK, Market.RESERVED):
            yield "    term_months: 1  # how long is up to you and the provider"
        if row.prepaid:
            yield f"    prepaid: {row.prepaid:g}"
        elif row.prepaid is None:
            yield "    # prepaid: the share that is paid at the start is not known"
        if row.market is Market.SPOT:
            yield "    # interrupted: the share of work that interruptions cost is not known"
        where = f"{row.machine_type}{f' in {row.region}' if row.region else ''}"
        dated = row.as_of or "date unknown"
        yield f"    source: {_quoted(f'{where}: {row.source}, {dated}')}"
    if not count:
        yield "  []"


def _name(row: CatalogRow, used: set[str]) -> str:
    """Of a-z, 0-9, `.`, `_` and `-`, and of one row only."""
    parts = [row.provider, row.machine_type, row.region, row.market.replace("_", "-")]
    if row.term_months:
        parts.append(f"{row.term_months}m")
        if row.prepaid:
            parts.append(f"{row.prepaid:.0%}".rstrip("%") + "pc-prepaid")
    base = re.sub(r"[^a-z0-9._-]+", "-", "-".join(part for part in parts if part).lower()).strip("-._")
    name, number = base[:60] or "offer", 1
    while name in used:
        number += 1
        name = f"{base[:56]}-{number}"
    return name


def _quoted(text: str) -> str:
    """As YAML in double quotes, on one line."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
