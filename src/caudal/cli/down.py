"""`caudal down`: stop everything, give every machine back."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console

from caudal.cli.client import Client
from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.composition import Control
from caudal.composition.world import end_fakes, fakes
from caudal.control.down import PATIENCE_S, Left, take_down
from caudal.domain.errors import CaudalError, Failed
from caudal.store.home import Home, home

LEAVE_S = 60.0
"""How long a control process that runs has to end its pass and leave."""


@click.command("down")
@click.option(
    "--patience",
    type=float,
    default=PATIENCE_S,
    show_default=True,
    help="Seconds until what is left is named.",
)
@click.option(
    "--end-fakes",
    "end_fakes_too",
    is_flag=True,
    help="End the fakes of clouds on this machine, too, once they list nothing.",
)
@json_option
@click.pass_obj
def verb(root: str | None, patience: float, end_fakes_too: bool, as_json: bool) -> None:
    """Stop all that runs, release every lease, and wait until the providers' own lists show nothing of ours.

    What is left then is named, with its price per hour, and the exit code is 1. Runs keep their last round, and what
    was asked for stays asked for: `caudal up` starts it again. A control process that runs is asked to leave first.
    """
    out = console(stderr=as_json)
    place = home(root)
    _take_over(place, out)
    control = Control(place, [], name="caudal down", closing=True)
    try:
        control.serve()
        left = take_down(control.loop, "all", patience, tell=lambda rows: _tell(out, rows))
    finally:
        control.close()
    if as_json:
        print_json({"shape": "down/1", "left": [_plain(x) for x in left]})
    if not left:
        if not as_json:
            out.print("down: nothing is left.")
        _fakes(control, place, out, end=end_fakes_too)
        return
    if not as_json:
        rows = [(x.what, plain(x.name), x.site or x.provider, price_of(x), plain(x.text)) for x in left]
        out.print(table(("LEFT", "NAME", "WHERE", "$/H", "WHAT"), rows))
    raise Failed(
        f"{len(left)} are left, and {cost_of(left)}",
        why=f"the providers' lists were not empty within {patience:.0f} s",
        remedy="call `caudal down` again; what a provider itself does not give up is ended in its own console",
    )


def _fakes(control: Control, place: Home, out: Console, *, end: bool) -> None:
    """A fake of a cloud goes on, as a cloud does, until it is told to end."""
    names = ", ".join(spec.name for spec in fakes(control.fleet))
    if end:
        for name in end_fakes(place, control.fleet):
            out.print(f"the fake of {plain(name)} has ended")
    elif names:
        out.print(f"[dim]fakes that run on: {plain(names)}; `caudal down --end-fakes` ends them[/]")


def _take_over(place: Home, out: Console) -> None:
    """Have the control process that runs leave, with its gangs where they are: they are stopped from here."""
    client = Client(place)
    if not client.answers():
        return
    out.print("the control process leaves, and what runs is stopped from here")
    client.post("/leave")
    deadline = time.monotonic() + LEAVE_S
    while client.answers():
        if time.monotonic() > deadline:
            raise Failed(
                "the control process does not leave", remedy="end `caudal up` with Ctrl-C, then try again"
            )
        time.sleep(0.2)


def _tell(out: Console, left: list[Left]) -> None:
    try:
        out.print(f"[dim]left: {', '.join(plain(x.name) for x in left)}[/]")
    except (OSError, CaudalError):
        pass  # nobody looks any more


def price_of(left: Left) -> str:
    """Dollars an hour; a question mark where that is not known."""
    return "?" if left.price_usd_per_hour is None else f"{left.price_usd_per_hour:f}"


def cost_of(left: list[Left]) -> str:
    """What all that is left costs together, as far as it is known."""
    known = [x.price_usd_per_hour for x in left if x.price_usd_per_hour is not None]
    unknown = len(left) - len(known)
    text = f"cost ${sum(known):f} an hour"
    return f"{text}, and {unknown} of unknown price" if unknown else text


def _plain(left: Left) -> dict[str, Any]:
    return {
        "what": left.what,
        "name": left.name,
        "site": left.site,
        "provider": left.provider,
        "price_usd_per_hour": None if left.price_usd_per_hour is None else str(left.price_usd_per_hour),
        "text": left.text,
    }
