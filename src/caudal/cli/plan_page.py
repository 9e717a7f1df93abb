"""A plan as one self-contained web page: tables and drawings in SVG, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from caudal.plan.result import Plan

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 260, 70, 24

COLOURS = ("#2f6f9f", "#e08e36", "#7a9f35", "#a4508b", "#888888")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { text-align: left; padding: .2rem .9rem .2rem 0; }
th { border-bottom: 1px solid #999; font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #555; }
.legend span { margin-right: 1.2rem; } .legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } svg text { fill: #aaa; } }
"""


def page(made: Plan) -> str:
    """HTML, all of it."""
    months = [m.month for m in made.months]
    cost = {
        "held": [m.held_usd + m.promised_usd for m in made.months],
        "by the hour": [m.by_hour_usd for m in made.months],
        "spot": [m.spot_usd for m in made.months],
    }
    chips = {
        "services, mean": [m.service_chips for m in made.months],
        "runs": [m.run_chips for m in made.months],
    }
    lines = {
        "held": [m.held_chips for m in made.months],
        "services' peak": [m.peak_chips for m in made.months],
    }
    gap = f"within {made.gap:.2%} of the least" if made.gap is not None else "greedy: how far off is unknown"
    parts = [
        f"<h1>{escape(made.name)}</h1>",
        f"<p>${made.usd:,.0f} over {len(months)} months, ${made.usd_now:,.0f} in today's money ({gap}).</p>",
        *(
            f"<p><strong>Cannot be met:</strong> {escape(s.rule)}: short of {s.amount:,.0f} {s.unit}</p>"
            for s in made.shortfalls
        ),
        "<h2>Sign</h2>",
        _table(
            ("for", "offer", "kind", "chips", "months", "dollars in the plan", "owed after"),
            [(s.start, s.offer + (" (assumed)" if s.assumed else ""), s.kind, f"{s.chips:,.0f} {s.chip}",
              str(s.term_months), f"{s.usd:,.0f}", f"{s.beyond_usd:,.0f}") for s in made.signatures],
        ),
        "<h2>Dollars a month</h2>", stacked(months, cost, {}, "$"),
        "<h2>Chips: what uses them, what is held</h2>", stacked(months, chips, lines, ""),
        "<h2>If a provider goes</h2>",
        _table(
            ("provider", "of the peak is served", "at worst in", "of what is held is left"),
            [(x.provider, f"{x.served:.0%}", f"{x.worst_month} {x.worst_scenario}", f"{x.runs:.0%}") for x in made.losses],
        ),
        "<h2>What one more chip is worth</h2>",
        _table(
            ("provider", "chip", "mean, dollars a month", "most", "in"),
            [(s.provider, s.chip, f"{s.mean_usd_per_month:,.0f}", f"{s.best_usd_per_month:,.0f}", s.best_month)
             for s in made.shadow_prices],
        ),
        "<h2>Assumptions</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in made.assumptions) + "</ul>",
    ]  # fmt: skip
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(made.name)}</title>'
    return f"{head}<style>{STYLE}</style>" + "\n".join(parts) + "</html>\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_number(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(cell: str) -> str:
    return ' class="n"' if cell and set(cell) <= set("0123456789,.%$-") else ""


def stacked(
    labels: Sequence[str],
    areas: Mapping[str, Sequence[float]],
    lines: Mapping[str, Sequence[float]],
    unit: str,
) -> str:
    """Bars on top of each other for each label, and lines over them; with a legend and three marks on each side."""
    sums = [sum(values) for values in zip(*areas.values(), strict=True)]
    top = max([*sums, *(v for values in lines.values() for v in values), 1e-9])
    step = (WIDTH - LEFT) / max(1, len(labels))
    drawn = []
    floor = [0.0] * len(labels)
    for colour, values in zip(COLOURS, areas.values(), strict=False):
        for i, value in enumerate(values):
            high = HEIGHT * value / top
            y = HEIGHT - HEIGHT * floor[i] / top - high
            floor[i] += value
            place = f'x="{LEFT + i * step:.1f}" y="{y:.1f}"'
            drawn.append(f'<rect {place} width="{step * 0.85:.1f}" height="{high:.1f}" fill="{colour}"/>')
    for colour, values in zip(COLOURS[len(areas) :], lines.values(), strict=False):
        points = " ".join(
            f"{LEFT + (i + 0.43) * step:.1f},{HEIGHT - HEIGHT * value / top:.1f}"
            for i, value in enumerate(values)
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for share in (0.0, 0.5, 1.0):
        text = f"{unit}{short(top * share)}"
        drawn.append(
            f'<text x="{LEFT - 6}" y="{HEIGHT - HEIGHT * share + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for i in sorted({0, len(labels) // 2, len(labels) - 1}):
        drawn.append(f'<text x="{LEFT + i * step:.1f}" y="{HEIGHT + 18}">{escape(labels[i])}</text>')
    names = [*areas, *lines]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for colour, name in zip(COLOURS, names, strict=False)
    )
    box = f"0 -12 {WIDTH} {HEIGHT + BOTTOM + 12}"
    return f'<svg viewBox="{box}" role="img">{"".join(drawn)}</svg><p class="legend">{legend}</p>'


def short(value: float) -> str:
    """1.2k, 3.4M, 5.6B."""
    for letter, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
