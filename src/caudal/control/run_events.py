"""What a run's coordinator reports, as events: who takes part, who coordinates, and each change of the steps of a
round with its reason.

Told by differences: a report that is repeated says nothing new, and after a silence the difference over all of
it is told. The reasons of the steps are in the curve's rows, of which none is lost meanwhile. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caudal.domain.event import Event, Point
from caudal.domain.gang import Gang


def run_events(
    gang: Gang, before: Mapping[str, Any], status: Mapping[str, Any], new: Sequence[Point], now: float
) -> Iterator[Event]:
    """The events of a report: `before` is the status that this gang reported last (empty: none), `new` are the
    points that were not kept before it."""
    run = gang.workload

    def event(kind: str, text: str, at: float = now, **data: Any) -> Event:
        return Event(at, kind, run, text, {"gang": gang.id, "site": gang.site, **data})

    epoch = status.get("epoch")
    if isinstance(epoch, int) and epoch != before.get("epoch"):
        verb = "coordinates" if epoch == 1 else "takes over"
        yield event("run.epoch", f"{gang.site} {verb} {run}, in epoch {epoch}", epoch=epoch)
    there, here = _workers(before), _workers(status)
    for worker, site in here.items():
        if worker not in there:
            yield event("run.joined", f"{site} takes part in {run}", worker=worker, at_site=site)
    for worker, site in there.items():
        if worker not in here:
            yield event("run.left", f"{site} takes part in {run} no more", worker=worker, at_site=site)
    known = before.get("kept_out") or {}
    for worker, why in (status.get("kept_out") or {}).items():
        if worker not in known:
            yield event("run.quarantined", f"{worker} is kept out of {run}: {why}", worker=worker, reason=why)
    for point in sorted(new, key=lambda p: p.seq):
        yield from _of_row(event, point, now)


def _of_row(event: Any, point: Point, now: float) -> Iterator[Event]:
    """A gang's clock is not trusted to be ahead."""
    at, values = min(point.at, now), point.values
    if why := values.get("why"):
        yield event("run.steps", f"round {point.seq}: {why}", at, round=point.seq, reason=why)
    if skipped := values.get("skipped"):
        text = f"round {point.seq}: {skipped} samples that no site could train are set aside"
        yield event("run.skipped", text, at, round=point.seq, ids=skipped)


def _workers(status: Mapping[str, Any]) -> dict[str, str]:
    """Who takes part, by slot, with its site."""
    sites = status.get("sites")
    if not isinstance(sites, Mapping):
        return {}
    said = {name: row for name, row in sites.items() if isinstance(row, Mapping)}
    return {str(row.get("worker", name)): str(name).partition("/")[0] for name, row in said.items()}
