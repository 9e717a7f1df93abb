"""`caudal audit`: the proof of a run."""

from __future__ import annotations

import click
import msgspec

from caudal.cli.output import console, json_option, print_json
from caudal.store.blobs import open_blobs
from caudal.store.home import home
from caudal.train.audit import audit_run


@click.command("audit")
@click.argument("run")
@json_option
@click.pass_obj
def verb(root: str | None, run: str, as_json: bool) -> None:
    """Prove from the ledger that every sample of RUN was trained exactly once.

    Reads the object store only; needs no control process. Checks that the chain of commits is whole, that
    every id stands in exactly one commit, and that the recorded states follow from the recorded updates. Says which
    ids were set aside because no site could train them.
    Exit code 1 and `ledger_broken`, naming the first round that does not add up, where it does not hold.
    """
    report = audit_run(open_blobs(home(root).blobs_url), run)
    if as_json:
        print_json({"shape": "audit/1", **msgspec.to_builtins(report)})
        return
    out = console()
    out.print(f"[bold]{run}[/]: the record holds" + ("" if report.finished else " (the run still goes on)"))
    for line in report.lines():
        out.print(f"  {line}")
