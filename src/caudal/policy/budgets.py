"""What teams may spend in a month: over it nothing new that costs is taken for them.

What runs is left alone, unless the budget says `stop_running`. Compared is what the team has spent so far in the
calendar month (UTC): its share of the leases' frozen prices, with the rest of each machine that nobody has. What it
will spend until the month ends is not added, so that a budget is used up before it stops anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from caudal.domain.bill import DEFAULT_TEAM
from caudal.domain.decision import Reason
from caudal.domain.fleet import BudgetSpec, FleetSpec
from caudal.domain.workload import Workload

SPENT = "budget.spent"


def budget_of(fleet: FleetSpec | None, workload: Workload | None) -> BudgetSpec | None:
    """The budget of a workload's team, if it has one. The fleet's own gangs have none."""
    if fleet is None or workload is None:
        return None
    team = workload.spec.team or DEFAULT_TEAM
    return next((b for b in fleet.budgets if (b.team or DEFAULT_TEAM) == team), None)


def spent(
    fleet: FleetSpec | None, workload: Workload | None, spent_usd: Mapping[str, Decimal]
) -> tuple[BudgetSpec, Reason] | None:
    """The budget that a workload's team has used up, and the sentence for it; None where it has not."""
    budget = budget_of(fleet, workload)
    if budget is None:
        return None
    team = budget.team or DEFAULT_TEAM
    usd = spent_usd.get(team, Decimal(0))
    if usd < budget.monthly_usd:
        return None
    text = (
        f"team {team} has spent ${usd:.2f} of ${budget.monthly_usd:.2f} this month (UTC); nothing more that costs is "
        f"taken for it until the month ends or its budget is raised"
    )
    return budget, Reason(SPENT, text, {"spent_usd": str(usd), "monthly_usd": str(budget.monthly_usd)})
