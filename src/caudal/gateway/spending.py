"""Prices, budgets and what a request cost at somebody else's address.

Money is counted in whole picodollars (store/spending.py): a price of P US dollars per million tokens is round(P x
1e6) of them per token. Months are calendar months in UTC. Where the book cannot be written nothing is spent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caudal.domain.errors import StorageFailed
from caudal.domain.key import PICO
from caudal.gateway.routes import ExternalRoute, ReplicaRoute
from caudal.store.spending import SpendingBook
from caudal.telemetry import names
from caudal.telemetry.prometheus import PrometheusText

log = logging.getLogger("caudal.gateway")


def cost(external: ExternalRoute, prompt_tokens: int, reply_tokens: int) -> int:
    """What so many tokens cost there, in picodollars."""
    return prompt_tokens * _per_token(external.usd_per_million_in) + reply_tokens * _per_token(
        external.usd_per_million_out
    )


def budget(external: ExternalRoute) -> int | None:
    """The month's, in picodollars; None where there is none."""
    return round(external.budget_usd_per_month * PICO) if external.budget_usd_per_month > 0 else None


def month_of(at: float) -> str:
    """`2026-11`, of seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m")


class Reservation:
    """What one request may cost, until it is known what it has cost."""

    def __init__(self, book: SpendingBook, number: int, most: int) -> None:
        self._book = book
        self._number = number
        self.most = most

    def settle(self, picodollars: int) -> None:
        """It has cost so much. Where that cannot be written, what was reserved stays spent."""
        try:
            self._book.settle(self._number, picodollars)
        except StorageFailed as error:
            log.error("%s", error.one_line())


class Spending:
    """The budgets of one gateway process. The book is opened at the first request that needs it."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._book: SpendingBook | None = None
        self._budgets: dict[str, float] = {}

    def affords(self, route: ReplicaRoute, most: int) -> bool:
        """Whether the month's budget has room for that much more."""
        external = route.external
        assert external is not None
        limit = budget(external)
        if limit is None:
            return True
        try:
            month = month_of(self._now())
            book = self._open()
            return book.spent(route.gang, month) + self._elsewhere(external, month) + most <= limit
        except StorageFailed as error:
            log.error("%s", error.one_line())
            return False

    def reserve(self, route: ReplicaRoute, most: int) -> Reservation | None:
        """Set that much aside; None where the budget has no room, or the book cannot be written."""
        external = route.external
        assert external is not None
        self._budgets[route.gang] = external.budget_usd_per_month
        try:
            month = month_of(self._now())
            book = self._open()
            number = book.reserve(route.gang, month, most, budget(external), self._elsewhere(external, month))
        except StorageFailed as error:
            log.error("%s", error.one_line())
            return None
        return None if number is None else Reservation(book, number, most)

    def report(self) -> dict[str, Any]:
        """What the control API is told: this book's month, in US dollars. Empty while nothing was asked of it."""
        if self._book is None:
            return {}
        month = month_of(self._now())
        try:
            amounts = self._book.month(month)
        except StorageFailed:
            return {}  # said where it matters, when a request is to be paid
        usd = {name: amount / PICO for name, amount in sorted(amounts.items())[:64]}
        return {"book": self._book.id, "month": month, "usd": usd}

    def render(self) -> bytes:
        """Its part of a scrape."""
        said = self.report()
        if not said:
            return b""
        out = PrometheusText()
        out.family(names.GATEWAY_EXTERNAL_SPENT, "gauge")
        for name, usd in said["usd"].items():
            out.sample(names.GATEWAY_EXTERNAL_SPENT, usd, address=name)
        out.family(names.GATEWAY_EXTERNAL_BUDGET, "gauge")
        for name, usd in sorted(self._budgets.items()):
            out.sample(names.GATEWAY_EXTERNAL_BUDGET, usd, address=name)
        return out.encode()

    def close(self) -> None:
        """Leave the book."""
        if self._book is not None:
            self._book.close()
            self._book = None

    def _open(self) -> SpendingBook:
        if self._book is None:
            self._book = SpendingBook(self._path)
            self._book.prune()
        return self._book

    def _elsewhere(self, external: ExternalRoute, month: str) -> int:
        """What other books hold, as control said last."""
        if self._book is None or external.spent_month != month:
            return 0
        return sum(round(usd * PICO) for book, usd in external.spent_usd.items() if book != self._book.id)


def _per_token(usd_per_million: float) -> int:
    return round(usd_per_million * 10**6)
