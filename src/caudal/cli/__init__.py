"""The command line: one file per verb; renders, decides nothing.

Verbs are loaded when they are called, so that `caudal --help` stays fast and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import Any

import click

import caudal
from caudal.domain.errors import CaudalError, Failed, UsageError

VERBS = {
    "up": "Run the fleet here: the control loop, the API, the gateway and what is applied.",
    "apply": "Make the fleet want what these files say.",
    "train": "Train one run and wait for it: a file, or your own text and records with --data.",
    "status": "Show the fleet: sites, runs, services, models.",
    "explain": "Say why something runs where it runs, or what it waits for.",
    "events": "Show what happened; --follow goes on.",
    "logs": "Show what a gang printed.",
    "stop": "Stop a run or a service.",
    "down": "Stop everything and give every machine back; or name what is left and what it costs.",
    "cost": "Show the bill: by contract, workload, team, day or provider.",
    "models": "List models, and pull them in.",
    "keys": "Make, limit and revoke keys of the gateway; show what was used with them.",
    "chat": "Talk to a model in the terminal.",
    "estimate": "Estimate what training and serving take: time, memory, layouts, replicas, whole runs.",
    "track": "Send a run's curve to TensorBoard, W&B or a file.",
    "audit": "Prove from a run's ledger that every sample was trained exactly once.",
    "replay": "Train a run's rounds again from its ledger and compare every byte.",
    "blocks": "List the capacity blocks that AWS sells, and buy one at a price that you confirm.",
    "certificates": "Make certificates for sites, for scripts that train over several machines.",
    "stores": "Repair or promote a store, where everything is kept in several.",
    "offers": "List what can be rented, and for how much; take in the clouds' price lists.",
    "plan": "Say which contracts to sign for the months ahead; judge an offer that came in.",
    "schema": "Print the JSON Schema of fleet, train and service files.",
    "doctor": "Check this machine and this state directory.",
    "version": "Print the version.",
}


class Verbs(click.Group):
    """A group whose commands live in modules of their own: verb NAME is `verb` in cli/NAME.py."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a first day."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the verb's module; None where there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"caudal.cli.{cmd_name}").verb
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion where the verb does not exist."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(
                f"there is no verb {args[0]!r}", remedy=f"caudal --help lists them{guess(args[0])}"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, but that a pipe's reader may leave (`caudal events | head`): that is its right."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered is flushed when the interpreter ends: that must find a place to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without loading any."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def guess(word: str) -> str:
    """`; did you mean X?` or nothing."""
    close = difflib.get_close_matches(word, VERBS, 1) or [v for v in VERBS if v.startswith(word[:3])]
    return f"; did you mean `caudal {close[0]}`?" if close else ""


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--home",
    metavar="DIR",
    help="State directory. Default: $CAUDAL_HOME, else the platform's user data directory.",
)
@click.pass_context
def group(ctx: click.Context, home: str | None) -> None:
    """One fleet from many clouds, for the model you train and the assistant you serve.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 impossible or no capacity, 5 stale (the state
    changed meanwhile: ask again).
    """
    ctx.obj = home


def main(args: list[str] | None = None) -> Any:
    """Run a verb; errors become a message on stderr and an exit code."""
    code = 0
    try:
        result = group.main(args=args, prog_name="caudal", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except CaudalError as error:
        click.echo(f"error[{error.code}]: {error}", err=True)
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"error[{Failed.code}]: what was printed found no space: {error.strerror}", err=True)
        code = Failed.exit_code
    sys.exit(code)


__all__ = ["VERBS", "caudal", "group", "main"]
