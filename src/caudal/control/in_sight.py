"""The offers that the loop saw at its last look: what could be taken now, at what price, and what stands against the rest.

Worked out by the policy's own rules, so that what is shown is what would be decided.
"""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.decision import Reason
from caudal.domain.fleet import Offer
from caudal.domain.snapshot import Snapshot
from caudal.policy.board import Board
from caudal.policy.capacity import Buyer
from caudal.policy.rules import Rules


@dataclass(frozen=True, slots=True)
class InSight:
    """One offer, its price as its contract makes it. `against` is why nothing can be had of it now (None: something can);
    `again_at` is when it is asked again after it failed, where that is known."""

    offer: Offer
    provider: str
    region: str
    against: Reason | None
    again_at: float | None


def in_sight(snapshot: Snapshot, rules: Rules) -> list[InSight]:
    """In the order in which they would be taken: own, under a contract, by the hour; the cheapest first."""
    buyer = Buyer(Board(snapshot, snapshot.at, rules))
    fleet = snapshot.state.fleet
    found = []
    for offer in buyer.offers():
        site = fleet.site(offer.site) if fleet else None
        against = buyer.against(offer)
        again_at = against.data.get("again_at") if against else None
        provider, region = (site.provider, site.region) if site else ("", "")
        found.append(InSight(offer, provider, region, against, again_at))
    return found
