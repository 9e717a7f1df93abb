"""How estimates of training are printed: a few lines, tables, and JSON. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from caudal.cli.output import console, plain, table
from caudal.estimate.answer import GIB, Estimate
from caudal.estimate.batch import Line
from caudal.estimate.case import LAYOUT_FIELDS, RECOMPUTE, Job, Layout
from caudal.estimate.search import Found
from caudal.estimate.sites import Rounds


def layout_words(layout: Layout) -> str:
    """`tp 4, pp 8, dp 2, micro-batch 1, ...`: only what is not 1."""
    said = [
        f"{name} {getattr(layout, name)}" for name in ("tp", "pp", "cp", "ep") if getattr(layout, name) > 1
    ]
    said.append(f"dp {layout.dp}")
    if layout.vp > 1:
        said.append(f"vp {layout.vp}")
    said.append(f"micro-batch {layout.micro_batch}")
    said.append("FSDP" if layout.zero >= 3 else f"ZeRO-{layout.zero}")
    if layout.recompute > 0:
        said.append(f"recompute {RECOMPUTE[int(layout.recompute)]}")
    return ", ".join(said)


def as_dict(answer: Estimate, found: Found | None, rounds: Rounds | None) -> dict[str, Any]:
    """What `--json` prints."""
    result: dict[str, Any] = {
        "model": answer.job.model.name,
        "parameters": answer.job.model.parameters,
        "active_parameters": answer.job.model.active_parameters,
        "chip": answer.job.chip.name,
        "chips": answer.job.chips,
        "seq_len": answer.job.seq_len,
        "global_batch": answer.job.global_batch,
        "precision": answer.job.precision,
        "software": asdict(answer.job.software),
        "layout": {name: getattr(answer.layout, name) for name in LAYOUT_FIELDS},
        "step_time_s": answer.step_time_s,
        "step_time_s_lo": answer.step_time_s_lo,
        "step_time_s_hi": answer.step_time_s_hi,
        "tokens_per_s": answer.tokens_per_s,
        "mfu": answer.mfu,
        "memory_gib_per_chip": answer.memory_bytes / GIB,
        "memory_items_gib": {name: size / GIB for name, size in answer.memory_items.items()},
        "items_s": answer.items_s,
        "notes": list(answer.notes),
    }
    if found is not None:
        result["tried"], result["feasible"] = found.tried, found.feasible
        result["layouts"] = [
            {
                "layout": {name: getattr(x.layout, name) for name in LAYOUT_FIELDS},
                "step_time_s": x.step_time_s,
                "memory_gib_per_chip": x.memory_bytes / GIB,
                "reason": x.reason,
            }
            for x in found.layouts
        ]
    if rounds is not None:
        result["across_sites"] = asdict(rounds)
    return result


def show_estimate(answer: Estimate, *, explain: bool) -> None:
    """The answer in four lines; item by item where that is wanted."""
    out, job = console(), answer.job
    active = "" if not job.model.experts else f" ({job.model.active_parameters / 1e9:.3g} B active)"
    out.print(
        f"[bold]{plain(job.model.name)}[/]: {job.model.parameters / 1e9:.4g} B{active} on {job.chips} "
        f"{job.chip.name}, {job.global_batch} x {job.seq_len} tokens a step, {job.precision}"
    )
    out.print(f"  layout  {layout_words(answer.layout)}")
    out.print(
        f"  step    [bold]{answer.step_time_s:.4g} s[/] (80 %: {answer.step_time_s_lo:.4g} to "
        f"{answer.step_time_s_hi:.4g})   {answer.tokens_per_s:,.0f} tokens/s   MFU {answer.mfu:.1%}"
    )
    out.print(
        f"  memory  {answer.memory_bytes / GIB:.1f} GiB a chip of {answer.memory_allowed_bytes / GIB:.1f}"
    )
    for note in answer.notes:
        out.print(f"  note    {plain(note)}")
    if not explain:
        return
    times = sorted(((s, name) for name, s in answer.items_s.items() if s > 0), reverse=True)
    rows = [(name, f"{s:.4g}", f"{s / answer.step_time_s:.1%}") for s, name in times]
    out.print(table(("step time", "s", "part"), rows))
    sizes = [
        (name, f"{size / GIB:.2f}", f"{size / answer.memory_bytes:.1%}")
        for name, size in answer.memory_items.items()
    ]
    out.print(table(("memory", "GiB", "part"), sizes))


def show_found(found: Found, job: Job) -> None:
    """The best layouts as a table."""
    out = console()
    out.print(f"  {found.feasible:,} of {found.tried:,} layouts fit; the best:")
    rows = [
        (
            layout_words(x.layout),
            f"{x.step_time_s:.4g}",
            f"{x.memory_bytes / GIB:.1f}",
            x.reason,
        )
        for x in found.layouts
    ]
    out.print(table(("layout", "s", "GiB", "why"), rows))


def show_rounds(rounds: Rounds, answer: Estimate) -> None:
    """What agreeing over several sites costs."""
    out = console()
    out.print(
        f"  over {rounds.sites} sites: rounds of {rounds.every} steps, int{rounds.bits}: "
        f"{rounds.bytes_each_way / 1e9:.3g} GB each way, {rounds.travelling_s:.4g} s under way beside "
        f"{rounds.computing_s:.4g} s of computing"
    )
    rate = rounds.sites * answer.tokens_per_s * rounds.efficiency
    hidden = (
        "" if rounds.efficiency > 0.999 else f"; from {rounds.smallest_every} steps a round on it is hidden"
    )
    out.print(
        f"  [bold]{rounds.step_time_s:.4g} s[/] a step, {rounds.efficiency:.0%} computing, "
        f"{rate:,.0f} tokens/s in all{hidden}"
    )


def show_ranked(lines: Sequence[Line]) -> None:
    """Layouts, the fastest first."""
    rows = []
    for number, line in enumerate(lines, start=1):
        found = line.estimate
        if found is None:
            rows.append((str(number), plain(line.id), "", "", plain(line.reason)))
            continue
        mark = "" if found.fits else "does not fit; "
        rows.append(
            (
                str(number),
                plain(line.id),
                f"{found.step_time_s:.4g}",
                f"{found.memory_bytes / GIB:.1f}",
                f"{mark}{layout_words(found.layout)}",
            )
        )
    console().print(table(("rank", "id", "s", "GiB", "layout"), rows))
