"""Run one seed of a scenario to its end, and say what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from caudal.domain.errors import CaudalError
from caudal.simulate.checkers import NOTICE_S, Violation
from caudal.simulate.liveness import Patience
from caudal.simulate.scenario import Scenario
from caudal.simulate.world import MakeLoop, Simulation, production_loop

LOOK_EVERY_S = 2.0
"""How often liveness is looked at."""

STEADY_S = NOTICE_S + 5.0
"""A simulation ends when everything runs, and has been calm for that long: long enough for every checker that
waits for calm to have looked."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a simulation did. `violation` None: every checker was content all the time."""

    seed: int
    scenario: str
    trace: tuple[str, ...]
    violation: Violation | None
    simulated_s: float
    events: int

    @property
    def replay(self) -> str:
        """The command that runs exactly this again, and writes its trace to a file."""
        trace = f"trace-{self.scenario}-{self.seed}.txt"
        return f"python -m caudal.simulate --seed {self.seed} --scenario {self.scenario} --trace {trace}"

    def raise_violation(self) -> None:
        """Raise what was found, with the command that replays it."""
        if self.violation is not None:
            raise AssertionError(f"{self.violation}\nreplay: {self.replay}")


def run(seed: int, scenario: Scenario, make_loop: MakeLoop = production_loop) -> Result:
    """Simulate until everything runs and has been calm for `STEADY_S`, or a checker objects.

    An error that escapes the production loop is a violation too: the process would have died of it.
    """
    simulation = Simulation(seed, scenario, make_loop)
    violation: Violation | None = None
    try:
        simulation.begin()
        _until_steady(simulation)
    except Violation as found:
        violation = found
    except (AssertionError, CaudalError) as bug:
        violation = Violation("escaped", simulation.kernel.elapsed(), f"{type(bug).__name__}: {bug}")
    if violation is not None:
        simulation.trace(f"VIOLATION {violation}")
    return Result(
        seed,
        scenario.name,
        tuple(simulation.lines),
        violation,
        simulation.kernel.elapsed(),
        simulation.kernel.events_run,
    )


def _until_steady(simulation: Simulation) -> None:
    kernel, facts = simulation.kernel, simulation.facts
    patience = Patience(facts)
    while True:
        kernel.run_until(kernel.now() + LOOK_EVERY_S)
        late = patience.overdue()
        if late:
            raise Violation("liveness", kernel.elapsed(), late)
        if facts.calm_s() >= STEADY_S and not patience.since:
            return
