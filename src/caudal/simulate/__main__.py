"""`python -m caudal.simulate`: many seeds, or one with its trace. Exit code 1 where a checker objects."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from caudal.domain.errors import CaudalError
from caudal.simulate.run import Result, run
from caudal.simulate.scenario import SCENARIOS, named


@click.command()
@click.option("--seeds", default="", help="How many (`1000`: seeds 1 to 1000), or from and to (`5..20`).")
@click.option("--seed", type=int, default=None, help="One seed.")
@click.option(
    "--scenario", "scenarios", multiple=True, help=f"One or more of: {', '.join(SCENARIOS)}. Default: all."
)
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the trace.")
def main(seeds: str, seed: int | None, scenarios: tuple[str, ...], trace: Path | None) -> None:
    """Run the production control loop in virtual time, with faults, and check it after every event."""
    try:
        chosen = [named(name) for name in scenarios or SCENARIOS]
    except CaudalError as error:
        raise click.UsageError(str(error)) from error
    numbers = [seed] if seed is not None else _numbers(seeds or "20")
    if trace is not None and len(numbers) * len(chosen) > 1:
        raise click.UsageError("--trace writes one simulation: give one --seed and one --scenario")
    failed, simulated_s, events = 0, 0.0, 0
    for number in numbers:
        for scenario in chosen:
            result = run(number, scenario)
            simulated_s += result.simulated_s
            events += result.events
            failed += result.violation is not None
            _tell(result, trace)
    click.echo(
        f"{len(numbers) * len(chosen)} simulations, {simulated_s / 3600:.1f} virtual hours, "
        f"{events} events, {failed} violations"
    )
    sys.exit(1 if failed else 0)


def _tell(result: Result, trace: Path | None) -> None:
    if trace is not None:
        trace.write_text("\n".join(result.trace) + "\n")
        click.echo(f"{len(result.trace)} lines in {trace}")
    if result.violation is not None:
        click.echo(f"VIOLATION seed {result.seed} {result.scenario}: {result.violation}")
        click.echo(f"  replay: {result.replay}")


def _numbers(text: str) -> list[int]:
    """`1000` → 1..1000; `5..20` → 5..20."""
    first, dots, last = text.partition("..")
    try:
        numbers = list(range(int(first), int(last) + 1)) if dots else list(range(1, int(first) + 1))
    except ValueError as error:
        raise click.UsageError(f"--seeds {text}: give a number, or FROM..TO") from error
    if not numbers:
        raise click.UsageError(f"--seeds {text}: that is no seed at all")
    return numbers


if __name__ == "__main__":
    main()
