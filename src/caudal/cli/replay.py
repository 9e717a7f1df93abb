"""`caudal replay`: a run's training once more, from its ledger."""

from __future__ import annotations

import click
import msgspec

from caudal.cli.output import console, json_option, print_json
from caudal.domain.errors import LedgerBroken, NotFound
from caudal.store.blobs import open_blobs
from caudal.store.home import home
from caudal.train.audit import prefix_of, read_record
from caudal.train.data.prepare import load_manifest
from caudal.train.fetch import data_folder
from caudal.train.interface import Inner, plan
from caudal.train.machine import machine
from caudal.train.replay import ReplayReport, replay
from caudal.train.work import torch_inner


@click.command("replay")
@click.argument("run")
@click.option("--from", "first", default=1, show_default=True, help="The first round to compare.")
@click.option("--threads", default=1, show_default=True, help="As many as the sites' workers had.")
@json_option
@click.pass_obj
def verb(root: str | None, run: str, first: int, threads: int, as_json: bool) -> None:
    """Train RUN's rounds once more on this machine and compare what was broadcast, byte for byte.

    Takes the inner steps of every site again, from the newest round up to --from where all of them began
    anew (round 1 at the latest), so it takes as long as the sites together did. Needs the training extra and
    no control process. Exit code 1 where a round leads elsewhere on a machine like the sites'.
    """
    where = home(root)
    blobs = open_blobs(where.blobs_url)
    prefix = prefix_of(blobs, run)
    record, manifest = read_record(blobs, prefix), load_manifest(blobs, prefix)
    if record.spec is None or manifest is None:
        raise NotFound("the run's plan or data is not there to be trained again", where=prefix)
    run_plan = plan(record.spec, manifest)
    folder = data_folder(blobs, prefix, manifest, where.cache)
    asked = record.spec.inner

    def make_inner() -> Inner:
        return torch_inner(asked, str(where.cache), run_plan, manifest, folder, threads)

    report = replay(blobs, prefix, run_plan, make_inner, first, lambda: machine(threads))
    _show(report, as_json)
    if report.differs and report.comparable:
        raise LedgerBroken(
            f"round {report.differs} leads to other bytes when it is trained again",
            where=prefix,
            remedy="compare the code's version and the data with those of the run",
        )


def _show(report: ReplayReport, as_json: bool) -> None:
    if as_json:
        print_json({"shape": "replay/1", **msgspec.to_builtins(report), "comparable": report.comparable})
        return
    out = console()
    if report.differs:
        out.print(f"[bold]{report.run}[/]: round {report.differs} leads to other bytes")
    else:
        out.print(
            f"[bold]{report.run}[/]: {report.compared} rounds trained again from round {report.first}, "
            f"all to the same bytes; the state is {report.state_sha256[:16]}"
        )
    if not report.comparable:
        sites = ", ".join(name or "unknown" for name in report.machines)
        out.print(f"  this machine is {report.machine}, the sites' are {sites}: the bits may differ")
