"""Taking the fleet down: everything is stopped, every node given back, until the providers' own lists show nothing
of ours; or what is left is named, with what it costs.

The loop itself does it, pass by pass, told that it closes: a process that dies in the middle leaves nothing that the
next one does not find. What users want is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from caudal.control.loop import ControlLoop
from caudal.domain.errors import CaudalError, LostLeadership, StateHeld
from caudal.domain.fleet import Market
from caudal.policy.quarantine import is_ours
from caudal.ports import World

PATIENCE_S = 300.0
"""A cloud takes minutes to end a machine, and a stray is watched for half a minute before it is given back."""

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Left:
    """Something that may still bill. `what`: machine (a provider lists it), lease (no list shows its machine), or
    provider (it does not answer, and nothing is known). The price is None where it is not known."""

    what: Literal["machine", "lease", "provider"]
    name: str
    site: str
    provider: str
    price_usd_per_hour: Decimal | None
    text: str


def take_down(
    loop: ControlLoop,
    which: Literal["rented", "all"] = "all",
    patience_s: float = PATIENCE_S,
    tell: Callable[[list[Left]], None] | None = None,
) -> list[Left]:
    """Close the fleet by the loop, whose process leads; returns what is left when patience ends, nothing where all is
    gone. Own machines are kept where only `rented` ones go. Raises StateHeld, LostLeadership."""
    world = loop.world
    loop.closing = which
    deadline = world.clock.now() + patience_s
    told: list[tuple[str, str]] = []
    while True:
        try:
            loop.run_once()
        except (LostLeadership, StateHeld):
            raise
        except CaudalError:
            pass  # what cannot be written or asked now is tried again until patience ends
        left = remaining(world, which)
        if not left or world.clock.now() >= deadline:
            return left
        if tell is not None and [(x.what, x.name) for x in left] != told:
            told = [(x.what, x.name) for x in left]
            tell(left)
        world.clock.sleep(POLL_S)


def rented(world: World) -> bool:
    """Whether the books hold a node that is not the user's own."""
    return any(x.live and x.market is not Market.OWN for x in world.store.read().leases)


def remaining(world: World, which: Literal["rented", "all"] = "all") -> list[Left]:
    """What providers list with our tag, live leases that no list shows, and providers that do not answer."""
    history = {x.id: x for x in world.store.lease_history()}
    state = world.store.read()
    fleet, live = state.fleet, {x.id for x in state.leases if x.live}
    own = {x.id for x in history.values() if x.market is Market.OWN} if which == "rented" else set()
    left: list[Left] = []
    for name, provider in sorted(world.providers.items()):
        try:
            machines = provider.machines()
        except CaudalError as error:
            if which == "rented" and name == "local":
                continue  # nothing of it is rented
            left.append(Left("provider", name, "", name, None, error.one_line()))
            continue
        for machine in machines:
            if not is_ours(fleet, machine) or machine.lease_id in own:
                continue
            lease = history.get(machine.lease_id)
            live.discard(machine.lease_id)
            price = lease.price_usd_per_hour if lease else None
            text = f"{machine.machine_type}, {machine.state.value}, lease {machine.lease_id}"
            left.append(Left("machine", machine.id, machine.site, name, price, text))
    for lease_id in sorted(live - own):
        lease = history[lease_id]
        text = f"node {lease.node} is {lease.state.value}, and no list shows its machine"
        left.append(Left("lease", lease.id, lease.site, lease.provider, lease.price_usd_per_hour, text))
    return left
