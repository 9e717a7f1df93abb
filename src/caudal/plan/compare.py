"""A quote against a demand: what the plan costs with it and without it, and where its price would have to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from caudal.domain.demand import COMMITTED, DemandSpec, QuoteSpec
from caudal.plan.horizon import Horizon
from caudal.plan.planner import plan
from caudal.plan.reading import break_even
from caudal.plan.result import Plan, Signature

STEPS = 5
"""How often the interval in which the highest price lies is halved."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """`saves_usd_now`: expected present value that the quote takes off the plan; `noise_usd_now`: how far apart the two
    plans may lie by their gaps alone. `worth_usd_per_chip_hour`: the highest price at which some of it would still be
    signed, found to within a few per cent (None: it is not worth it at any price that was tried, or it has none).
    `instead_of` are signatures that the plan without it has more of."""

    quote: str
    signed: tuple[Signature, ...]
    saves_usd_now: float
    noise_usd_now: float
    break_even_utilisation: float | None
    break_even_against: str
    worth_usd_per_chip_hour: float | None
    instead_of: tuple[tuple[str, float], ...]
    without: Plan
    with_it: Plan

    @property
    def verdict(self) -> str:
        """sign, indifferent (the gain is within the noise), or leave."""
        if not self.signed:
            return "leave"
        return "sign" if self.saves_usd_now > self.noise_usd_now else "indifferent"


def compare(spec: DemandSpec, quote: QuoteSpec, *, gap: float, time_limit_s: float) -> Judgement:
    """Judge it. Takes the time of several plans."""
    name = quote.offer.name
    others = tuple(o for o in spec.offers if o.name != name)
    base = replace(spec, offers=others)
    without = plan(base, gap=gap, time_limit_s=time_limit_s)
    with_it = plan(replace(base, offers=(*others, quote.offer)), gap=gap, time_limit_s=time_limit_s)
    signed = tuple(s for s in with_it.signatures if s.offer == name)
    even = next(
        (b for b in break_even(Horizon(replace(base, offers=(*others, quote.offer)))) if b.offer == name),
        None,
    )
    noise = (without.gap or 0.0) * without.usd_now + (with_it.gap or 0.0) * with_it.usd_now
    return Judgement(
        quote.name,
        signed,
        without.usd_now - with_it.usd_now,
        noise,
        even.utilisation if even else None,
        even.against if even else "",
        _worth(base, quote, bool(signed), gap, time_limit_s),
        _instead(without, with_it),
        without,
        with_it,
    )


def _worth(spec: DemandSpec, quote: QuoteSpec, signed: bool, gap: float, time_limit_s: float) -> float | None:
    """By halving: up to three times its price where it is signed, down to nothing where it is not."""
    offer = quote.offer
    if offer.kind not in COMMITTED or offer.price_usd_per_chip_hour <= 0:
        return None
    price = float(offer.price_usd_per_chip_hour)
    low, high = (price, 3 * price) if signed else (0.0, price)
    found = price if signed else None
    for _ in range(STEPS):
        tried = (low + high) / 2
        at = replace(offer, price_usd_per_chip_hour=Decimal(f"{tried:.6f}"))
        made = plan(replace(spec, offers=(*spec.offers, at)), gap=gap, time_limit_s=time_limit_s)
        if any(s.offer == offer.name for s in made.signatures):
            low = found = tried
        else:
            high = tried
    return found


def _instead(without: Plan, with_it: Plan) -> tuple[tuple[str, float], ...]:
    """Chips that are signed without it and not with it, by offer."""
    chips: dict[str, float] = {}
    for made, sign in ((without, 1.0), (with_it, -1.0)):
        for one in made.signatures:
            chips[one.offer] = chips.get(one.offer, 0.0) + sign * one.chips
    return tuple((name, count) for name, count in sorted(chips.items()) if count > 0)
