"""`caudal up`: the fleet, in the foreground."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

import caudal
from caudal.cli.client import Client
from caudal.cli.down import price_of
from caudal.cli.live import follow_lines, follow_live
from caudal.cli.output import console, plain
from caudal.composition import Control, Spec, make_home
from caudal.domain.errors import NotFound
from caudal.spec import load
from caudal.store.home import home
from caudal.store.state import open_store


def example(name: str) -> Path:
    """The folder of an example: of the checkout, else of the installation. Raises NotFound."""
    roots = (Path.cwd(), Path(caudal.__file__).resolve().parents[2], Path(sys.prefix) / "share" / "caudal")
    for root in roots:
        if (root / "examples" / name).is_dir():
            return root / "examples" / name
    raise NotFound(
        f"the example {name!r} is not here", remedy="give the path of fleet, train and service files"
    )


LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ONE_WORD_S = 1.0


def leave_on_sigterm() -> None:
    """Make SIGTERM and a closed terminal what Ctrl-C is, also in a shell's background: leave cleanly.

    One that comes within a second of another is the same one said twice: it must not interrupt the leaving,
    which would strand gangs.
    """
    last_s = -ONE_WORD_S

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if last_s - before_s >= ONE_WORD_S:
            raise KeyboardInterrupt

    for number in LEAVING:
        signal.signal(number, interrupt)


@click.command("up")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|DIR]...")
@click.option(
    "--keep",
    is_flag=True,
    help="On Ctrl-C leave what runs running, rented machines too; `caudal up` adopts them.",
)
@click.pass_obj
def verb(root: str | None, paths: tuple[Path, ...], keep: bool) -> None:
    """Run the fleet here, in the foreground, until Ctrl-C.

    Applies the given files. Without any: goes on with what this state directory holds, or, where it is new,
    applies examples/starter (two local sites, a small training run, and an assistant).

    Listens on loopback only: control API and web page on 127.0.0.1:8600, OpenAI-compatible gateway on
    127.0.0.1:8601/v1 (`api` and `gateway` in the fleet file say otherwise).
    """
    place = home(root)
    specs: list[Spec] = [spec for path in paths for spec in load(path)]
    if not paths:
        make_home(place)
        if open_store(place.database_url).read().fleet is None:
            specs = load(example("starter"))
    leave_on_sigterm()
    out = console()
    control = Control(place, specs)
    try:
        control.start()
        fleet = control.fleet
        out.print(
            f"[bold]caudal {caudal.__version__}[/]  fleet [bold]{fleet.name}[/]  state {plain(place.root)}"
        )
        out.print(f"  web page  {control.url}")
        for port in fleet.gateway_ports():
            out.print(f"  gateway   {fleet.gateway.url(port)}/v1  (OpenAI-compatible)")
        client = Client(place)
        if out.is_terminal:
            follow_live(client, out)
        else:
            follow_lines(client, out)
    except KeyboardInterrupt:
        pass
    finally:
        for number in LEAVING:
            signal.signal(number, signal.SIG_IGN)
        stays = keep or control.handing_over
        _say(
            out,
            "leaving: " + ("what runs stays" if stays else "stopping what runs (runs keep their last round)"),
        )
        left = control.stop(keep_gangs=keep)
        for gang_id in left:
            _say(out, f"still running: {gang_id}")
        for row in control.left:
            _say(out, f"may still bill: {row.what} {plain(row.name)} of {row.provider}, ${price_of(row)}/h")
        _say(out, "left; `caudal up` adopts what still runs." if left else "left.")
    if control.runner.lost is not None:
        raise control.runner.lost


def _say(out: Console, text: str) -> None:
    """Print, unless the terminal is gone: that must not keep what runs from being stopped."""
    try:
        out.print(text)
    except OSError:
        pass  # nobody looks any more
