"""`caudal plan`: which contracts to sign for the months ahead, and what an offer that came in is worth."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from caudal.cli.output import console, json_option, plain, print_json, table
from caudal.cli.plan_page import page
from caudal.cli.spark import sparkline
from caudal.domain.errors import Impossible, UsageError
from caudal.plan import solver
from caudal.plan.compare import Judgement, compare
from caudal.plan.planner import GAP, TIME_LIMIT_S, plan
from caudal.plan.result import Plan
from caudal.spec.demand import load_demand, load_quote
from caudal.store.atomic import write_atomic

VERSION = 1


def _quiet_solver() -> None:
    """HiGHS greets on standard output, where JSON may be wanted: it does so on standard error instead."""
    if not solver.available():
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        solver.warm()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _options(function: Any) -> Any:
    for option in (
        click.option("--gap", type=click.FloatRange(0, 0.5), default=GAP, show_default=True,
                     help="Stop when the cost is known to be within this of the least."),
        click.option("--time-limit", "time_limit_s", type=click.FloatRange(1, 86_400), default=TIME_LIMIT_S,
                     show_default=True, help="Seconds for one plan; then the best that was found."),
        json_option,
    ):  # fmt: skip
        function = option(function)
    return function


@click.group("plan", invoke_without_command=True)
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), help="A `type: demand` file.")
@click.option(
    "--greedy", is_flag=True, help="Without a solver: quick, and nobody knows how far from the least cost."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write one page with pictures there, too.")
@_options
@click.pass_context
def verb(
    context: click.Context,
    file: Path | None,
    greedy: bool,
    html: Path | None,
    gap: float,
    time_limit_s: float,
    as_json: bool,
) -> None:
    """Say which contracts to sign, when, what they cost, and what the loss of each provider would do.

    Exits with 4 where the demand cannot be met; what it lacks is said, and the smallest change that would do.
    """
    if context.invoked_subcommand is not None:
        return
    if file is None:
        raise UsageError("no demand is given", remedy="caudal plan -f demand.yaml; examples/plan has two")
    demand = load_demand(file)
    _quiet_solver()
    made = plan(demand, gap=gap, time_limit_s=time_limit_s, method="greedy" if greedy else "milp")
    if html is not None:
        _write(html, page(made))
    if as_json:
        print_json({"version": VERSION, **_plain(made)})
    else:
        _show(made)
        if html is not None:
            console().print(f"\n{plain(html)} has the pictures")
    if made.shortfalls:
        raise _impossible(made)


@verb.command("compare")
@click.argument("quote", type=click.Path(path_type=Path))
@click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path), required=True, help="A `type: demand` file."
)
@_options
def compare_(quote: Path, file: Path, gap: float, time_limit_s: float, as_json: bool) -> None:
    """Judge an offer that came in (a `type: quote` file) against a demand."""
    demand, offered = load_demand(file), load_quote(quote)
    _quiet_solver()
    told = compare(demand, offered, gap=gap, time_limit_s=time_limit_s)
    if as_json:
        print_json({"version": VERSION, "verdict": told.verdict, **_plain(told)})
    else:
        _show_judgement(told)


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise UsageError(f"the page cannot be written: {error.strerror}", where=str(path)) from error


def _plain(value: Any) -> dict[str, Any]:
    told = dataclasses.asdict(value)
    return {name: _finite(one) for name, one in told.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e300 else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _impossible(made: Plan) -> Impossible:
    lines = [
        f"{s.rule}: short of {s.amount:,.0f} {s.unit}"
        + (f" in {s.month}" if s.month else "")
        + (f" (scenario {s.scenario})" if s.scenario else "")
        for s in made.shortfalls
    ]
    why = "these cannot all hold: " + "; ".join(made.conflict) if made.conflict else ""
    return Impossible(
        "\n".join(["the demand cannot be met", *lines]), why=why, remedy="; ".join(made.remedies)
    )


def _show(made: Plan) -> None:
    out = console()
    known = (
        f"within {made.gap:.2%} of the least"
        if made.gap is not None
        else "by the greedy way, how far off is unknown"
    )
    out.print(
        f"[bold]{plain(made.name)}[/]: {dollars(made.usd)} over {len(made.months)} months, "
        f"{dollars(made.usd_now)} in today's money ({known})"
    )
    if made.scenario_usd:
        sums = [usd for _, usd in made.scenario_usd]
        out.print(f"over the scenarios from {dollars(min(sums))} to {dollars(max(sums))}")
    rows = [
        [s.start, plain(s.offer) + ("*" if s.assumed else ""), s.kind, f"{s.chips:,.0f} {plain(s.chip)}" if s.chips
         else f"{s.units} units", f"{s.term_months} months", dollars(s.usd), dollars(s.beyond_usd)]
        for s in made.signatures
    ]  # fmt: skip
    out.print()
    out.print(table(["sign for", "offer", "kind", "how much", "term", "in the plan", "owed after"], rows))
    if any(s.assumed for s in made.signatures):
        out.print("* an assumed price", style="dim")
    _show_months(made)
    _show_risks(made)
    for line in made.assumptions:
        out.print(f"assumed: {plain(line)}", style="dim")


def _show_months(made: Plan) -> None:
    out = console()
    lines = {
        "dollars a month": [m.usd for m in made.months],
        "paid in the month": [m.cash_usd for m in made.months],
        "chips held": [m.held_chips for m in made.months],
        "chips by the hour": [m.by_hour_chips + m.spot_chips for m in made.months],
        "services' peak": [m.peak_chips for m in made.months],
    }
    rows = [
        [name, sparkline(values), f"{min(values):,.0f}", f"{max(values):,.0f}"]
        for name, values in lines.items()
    ]
    out.print()
    out.print(table([f"{made.months[0].month} to {made.months[-1].month}", "", "least", "most"], rows))


def _show_risks(made: Plan) -> None:
    out = console()
    out.print()
    rows = [
        [
            plain(p.provider),
            plain(p.chip),
            f"{p.most_held:,.0f}",
            "-" if p.used is None else f"{p.used:.0%}",
            _worth(made, p.provider, p.chip),
        ]
        for p in made.pools
    ]
    out.print(table(["provider", "chip", "most held", "used", "one more, a month"], rows))
    rows = [
        [x.provider, f"{x.served:.0%}", f"{plain(x.worst_month)} {plain(x.worst_scenario)}".strip() or "-",
         f"{x.runs:.0%}", f"{x.share_of_held:.0%}"]
        for x in made.losses
    ]  # fmt: skip
    out.print()
    out.print(
        table(["without", "of the peak is served", "at worst in", "of held chips left", "has at most"], rows)
    )
    even = [b for b in made.break_even if b.utilisation is not None]
    if even:
        out.print()
        rows = [[plain(b.offer), f"{b.utilisation:.0%}", plain(b.against)] for b in even]
        out.print(table(["offer", "breaks even when used", "against"], rows))


def _worth(made: Plan, provider: str, chip: str) -> str:
    found = next((s for s in made.shadow_prices if (s.provider, s.chip) == (provider, chip)), None)
    return (
        "-"
        if found is None
        else f"{dollars(found.mean_usd_per_month)} (most {dollars(found.best_usd_per_month)} in {found.best_month})"
    )


def _show_judgement(told: Judgement) -> None:
    out = console()
    said = {
        "sign": f"sign: it takes {dollars(told.saves_usd_now)} off the plan, in today's money",
        "indifferent": "it makes no difference that can be seen: the gain is within what the solver leaves open",
        "leave": "leave it: the cheapest plan does without",
    }[told.verdict]
    out.print(f"[bold]{plain(told.quote)}[/]: {said} (open: ± {dollars(told.noise_usd_now)})")
    for s in told.signed:
        how_much = f"{s.chips:,.0f} {plain(s.chip)}" if s.chips else f"{s.units} units"
        out.print(f"sign {how_much} for {s.start}, {dollars(s.usd)} within the plan")
    if told.break_even_utilisation is not None:
        even = f"{told.break_even_utilisation:.0%}"
        out.print(f"break-even utilisation of this quote is {even}, against {plain(told.break_even_against)}")
    if told.worth_usd_per_chip_hour is not None:
        out.print(
            f"some of it is worth signing up to about ${told.worth_usd_per_chip_hour:,.2f} a chip and hour"
        )
    for name, chips in told.instead_of:
        out.print(f"instead of {chips:,.0f} chips of {plain(name)}")


def dollars(usd: float) -> str:
    """$1.2 M, $38.0 B, $950."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(usd) >= size:
            return f"${usd / size:,.2f} {unit}"
    return f"${usd:,.0f}"
