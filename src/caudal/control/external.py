"""Addresses of others that a service may send requests to: what gateways are told of them, and what was spent.

Secrets are not here: a route names the file that holds the key, and each gateway reads it at its own site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from caudal.domain.gang import Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ExternalSpec, ServiceSpec


@dataclass(frozen=True, slots=True)
class ExternalRoute:
    """What a gateway needs to know of an external address besides its URL.

    Prices are US dollars per million tokens. `spent_usd` is what gateways said that they spent there, by the
    book that they wrote it into (gateways on one machine share one), in the month named `spent_month` (`YYYY-MM`,
    UTC): a gateway adds what other books hold to its own before it looks at the budget.
    """

    key_file: str
    ca_file: str
    usd_per_million_in: float
    usd_per_million_out: float
    budget_usd_per_month: float
    overflow: bool
    limit_key: str
    spent_month: str = ""
    spent_usd: dict[str, float] = field(default_factory=dict)


Found = tuple[str, ExternalSpec, ExternalRoute]


def external_routes(state: State) -> dict[str, list[Found]]:
    """By model: name (`external.SERVICE.MODEL`), spec and route of every external address that is wanted."""
    found: dict[str, list[Found]] = {}
    for workload in sorted(state.workloads, key=lambda w: w.name):
        if not isinstance(workload.spec, ServiceSpec) or not workload.wanted:
            continue
        for model in workload.spec.models:
            if model.external.url:
                name = f"external.{workload.name}.{model.id}"
                month, spent = _spent(state, name)
                found.setdefault(model.id, []).append(
                    (name, model.external, _route(model.external, month, spent))
                )
    return found


def _route(spec: ExternalSpec, month: str, spent: dict[str, float]) -> ExternalRoute:
    return ExternalRoute(
        key_file=spec.key_file,
        ca_file=spec.ca_file,
        usd_per_million_in=spec.usd_per_million_in,
        usd_per_million_out=spec.usd_per_million_out,
        budget_usd_per_month=spec.budget_usd_per_month,
        overflow=spec.overflow,
        limit_key=spec.limit_key,
        spent_month=month,
        spent_usd=spent,
    )


def _spent(state: State, name: str) -> tuple[str, dict[str, float]]:
    """The newest month that gateways speak of, and what each book holds for it. The largest word counts: within a
    month what was spent does not fall by more than requests that turned out cheaper than they might have been."""
    gateways = {g.id for g in state.gangs if g.role is Role.GATEWAY}
    said: dict[str, dict[str, float]] = {}
    for report in state.reports:
        spent = report.status.get("spent")
        if report.gang_id not in gateways or not isinstance(spent, Mapping):
            continue
        book, month, usd = spent.get("book"), spent.get("month"), spent.get("usd")
        amount = usd.get(name) if isinstance(usd, Mapping) else None
        if isinstance(book, str) and isinstance(month, str) and _is_amount(amount):
            books = said.setdefault(month, {})
            books[book] = max(books.get(book, 0.0), float(amount or 0.0))
    month = max(said, default="")
    return month, said.get(month, {})


def _is_amount(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )
