"""Estimates as one self-contained web page: drawings in SVG and tables, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from caudal.cli.plan_page import COLOURS, HEIGHT, LEFT, STYLE, WIDTH, short
from caudal.estimate.answer import GIB, Estimate
from caudal.estimate.whole_run import WholeRun

BAR = 22
NAMES_WIDTH = 230
SMALLEST_PART = 0.002
"""Items of a step below this part of it are not drawn."""


def train_page(answer: Estimate) -> str:
    """One step: where its time and memory go."""
    job = answer.job
    title = f"{job.model.name} on {job.chips:,} {job.chip.name}"
    lead = (
        f"<p>{answer.step_time_s:.4g} s a step (80 %: {answer.step_time_s_lo:.4g} to {answer.step_time_s_hi:.4g}), "
        f"{answer.tokens_per_s:,.0f} tokens/s, MFU {answer.mfu:.1%}, {answer.memory_bytes / GIB:.1f} GiB a chip.</p>"
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in answer.notes)
    return _html(title, [
        lead, "<h2>Where a step's time goes</h2>", waterfall(answer.items_s, "s"),
        "<h2>Where memory goes</h2>",
        waterfall({name: size / GIB for name, size in answer.memory_items.items()}, "GiB"),
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
    ])  # fmt: skip


def run_page(made: WholeRun, step: Estimate, others: Sequence[WholeRun]) -> str:
    """A whole run: a step's time, and cost against days for other numbers of chips."""
    q, kept = made.question, made.resilience
    title = f"{q.model.name}: {q.tokens / 1e12:.4g} T tokens on {made.chips:,} {q.chip.name}"
    days = (
        ""
        if made.days is None
        else f"{made.days.value:,.1f} days (80 %: {made.days.low:,.1f} to {made.days.high:,.1f}), "
    )
    lead = (
        f"<p>{days}{made.chip_hours.value:,.0f} chip-hours, {made.interruptions.value:,.0f} interruptions, "
        f"a checkpoint every {kept.interval_s / 60:.1f} minutes, goodput {kept.goodput:.1%}.</p>"
    )
    money = q.price_usd is not None
    points = [
        (x.days.value, (x.usd if money and x.usd else x.chip_hours).value, f"{x.chips:,}")
        for x in others
        if x.days
    ]
    rows = "".join(
        f"<tr><td class='n'>{x.chips:,}</td><td class='n'>{x.days.value:,.1f}</td>"
        f"<td class='n'>{x.chip_hours.value:,.0f}</td>"
        f"<td class='n'>{x.resilience.goodput:.1%}</td><td class='n'>{f'{x.usd.value:,.0f}' if x.usd else ''}</td></tr>"
        for x in others if x.days
    )  # fmt: skip
    table = (
        "<table><tr><th>chips</th><th>days</th><th>chip-hours</th><th>goodput</th><th>dollars</th></tr>"
        + rows
        + "</table>"
    )
    what = "Dollars" if money else "Chip-hours"
    notes = "".join(f"<li>{escape(note)}</li>" for note in made.notes)
    return _html(title, [
        lead, f"<h2>{what} against days, by chips</h2>", pareto(points, what.lower()), table,
        "<h2>Where a step's time goes</h2>", waterfall(step.items_s, "s"),
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
    ])  # fmt: skip


def _html(title: str, parts: Sequence[str]) -> str:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"{head}<h1>{escape(title)}</h1>" + "\n".join(parts) + "</html>\n"


def waterfall(items: dict[str, float], unit: str) -> str:
    """Each item begins where the one above ends: the largest first."""
    total = sum(items.values()) or 1.0
    shown = sorted(((v, n) for n, v in items.items() if v / total >= SMALLEST_PART), reverse=True)
    room = WIDTH - NAMES_WIDTH - 90
    drawn, at = [], 0.0
    for row, (value, name) in enumerate(shown):
        x, wide = NAMES_WIDTH + room * at / total, room * value / total
        y = row * BAR
        drawn.append(f'<text x="{NAMES_WIDTH - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        drawn.append(
            f'<rect x="{x:.1f}" y="{y + 3}" width="{max(wide, 1):.1f}" height="{BAR - 6}" fill="{COLOURS[0]}"/>'
        )
        drawn.append(
            f'<text x="{x + wide + 5:.1f}" y="{y + 15}">{value:.3g} {unit}, {value / total:.0%}</text>'
        )
        at += value
    return f'<svg viewBox="0 0 {WIDTH} {len(shown) * BAR + 6}" role="img">{"".join(drawn)}</svg>'


def front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those that no other one beats in both, by days."""
    kept: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def pareto(points: Sequence[tuple[float, float, str]], what: str) -> str:
    """Cost against days, a dot for each number of chips; a line joins those that nothing beats."""
    if not points:
        return "<p>Nothing fits.</p>"
    wide, high = max(p[0] for p in points) * 1.05, max(p[1] for p in points) * 1.1

    def place(days: float, cost: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 60) * days / wide, HEIGHT - HEIGHT * cost / high

    best = front(points)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(d, c) for d, c, _ in best))
    drawn = [f'<polyline points="{line}" fill="none" stroke="{COLOURS[1]}" stroke-width="2"/>']
    for days, cost, chips in points:
        x, y = place(days, cost)
        colour = COLOURS[1] if (days, cost, chips) in best else COLOURS[4]
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/><text x="{x + 6:.1f}" y="{y - 6:.1f}">{chips}</text>'
        )
    for share in (0.0, 0.5, 1.0):
        drawn.append(
            f'<text x="{LEFT - 6}" y="{HEIGHT - HEIGHT * share + 4:.1f}" text-anchor="end">{short(high * share)}</text>'
        )
        drawn.append(
            f'<text x="{place(wide * share, 0)[0]:.1f}" y="{HEIGHT + 18}" text-anchor="middle">{short(wide * share)}</text>'
        )
    label = (
        f'<text x="{WIDTH - 60}" y="{HEIGHT + 18}">days</text><text x="{LEFT}" y="-4">{escape(what)}</text>'
    )
    return f'<svg viewBox="0 -16 {WIDTH} {HEIGHT + 40}" role="img">{"".join(drawn)}{label}</svg>'
