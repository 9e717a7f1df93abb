"""A driver whose processes do not exist: they start, run, crash, hang and end in the time of its clock.

What a gang does is its `Script`: how long it takes to start, how long it runs, its exit code, how it takes
being stopped. Faults are methods: `crash`, `lose`, `lose_node`, `silent`.

    driver = FakeDriver("north", clock, script=lambda spec: Script(run_s=30, exit_code=0))
    driver.start(spec, token="t-1")
    clock.sleep(31)
    assert driver.gangs()[0].exit_code == 0

The states of gangs are worked out when somebody looks, so it needs no thread and no event loop. Knows
nothing about workloads, leases, or what the processes are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from caudal.domain.errors import NotFound, Unreachable
from caudal.domain.gang import GangSpec, GangState, GangStatus
from caudal.ports import Clock

Fault = Literal["", "lost_call", "lost_answer"]
"""What becomes of a call: nothing; it never arrives; it takes effect and the answer is lost."""

KILLED = -9
"""The exit code of a process that had to be ended by force."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a gang's processes do, times in seconds.

    `run_s` None: until they are stopped or finished from outside. `stop_s` None: they do not react to being
    asked to end, and are killed after the grace. `prints` is what the log holds.
    """

    start_s: float = 0.2
    run_s: float | None = None
    exit_code: int = 0
    stop_s: float | None = 0.1
    stop_exit_code: int = 143
    prints: str = ""


@dataclass(slots=True)
class Process:
    """The truth about one gang, whether the driver can be reached or not: for checkers and tests."""

    spec: GangSpec
    token: str
    script: Script
    accepted_at: float
    number: int
    state: GangState = GangState.STARTING
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    stop_asked_at: float | None = None
    ends_at: float | None = None  # when it will be over, as far as it is known now
    ends_with: int = 0

    @property
    def alive(self) -> bool:
        """Whether its processes exist."""
        return self.state in (GangState.STARTING, GangState.RUNNING)


def _default_script(_spec: GangSpec) -> Script:
    return Script()


def _no_fault(_call: str) -> Fault:
    return ""


def _no_trace(_line: str) -> None:
    return None


class FakeDriver:
    """Implements `ports.Driver` in memory, for one site.

    `script` says what a gang will do. `fault` is asked before every call that changes something, with the
    call's name. `trace` gets a line per change.
    """

    def __init__(
        self,
        site: str,
        clock: Clock,
        *,
        script: Callable[[GangSpec], Script] = _default_script,
        fault: Callable[[str], Fault] = _no_fault,
        trace: Callable[[str], None] = _no_trace,
    ) -> None:
        self.site = site
        self.silent = False
        """While set, every call raises Unreachable, and nothing takes effect; what runs goes on."""
        self._clock = clock
        self._script = script
        self._fault = fault
        self._trace = trace
        self._gangs: dict[str, Process] = {}
        self._tokens: set[str] = set()
        self._forgotten_logs: dict[str, str] = {}
        self._dead_nodes: set[str] = set()
        self._started = 0

    def start(self, spec: GangSpec, token: str) -> None:
        """Start it, once: a gang id or a token that was seen before starts nothing."""
        fault = self._begin("start")
        seen = spec.gang_id in self._gangs or spec.gang_id in self._forgotten_logs or token in self._tokens
        if not seen:
            self._accept(spec, token)
        self._end("start", fault)

    def stop(self, gang_id: str, grace_s: float) -> None:
        """Ask it to end, and make it end after the grace; a gang that is over or unknown is fine."""
        fault = self._begin("stop")
        self.advance()
        process = self._gangs.get(gang_id)
        if process is not None and process.alive and process.stop_asked_at is None:
            now = self._clock.now()
            process.stop_asked_at = now
            polite = process.script.stop_s
            if polite is not None and polite <= grace_s:
                ends_at, code = now + polite, process.script.stop_exit_code
            else:
                ends_at, code = now + grace_s, KILLED
            if process.ends_at is None or ends_at < process.ends_at:
                process.ends_at, process.ends_with = ends_at, code
            self._trace(f"driver {self.site} stop {gang_id}")
        self._end("stop", fault)

    def gangs(self) -> Sequence[GangStatus]:
        """The driver's own list, ordered by when they were started."""
        self._answer("gangs")
        self.advance()
        return [self._status(p) for p in self._gangs.values()]

    def forget(self, gang_id: str) -> None:
        """Drop a gang that is over from the list; its logs are kept. One that lives stays."""
        fault = self._begin("forget")
        self.advance()
        process = self._gangs.get(gang_id)
        if process is not None and not process.alive:
            self._forgotten_logs[gang_id] = process.script.prints
            del self._gangs[gang_id]
        self._end("forget", fault)

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """The end of what the gang's script prints. Raises NotFound."""
        self._answer("logs")
        process = self._gangs.get(gang_id)
        text = process.script.prints if process else self._forgotten_logs.get(gang_id)
        if text is None:
            raise NotFound(f"no gang {gang_id}", where=f"site {self.site}")
        tail = text.encode()[-tail_bytes:] if tail_bytes > 0 else b""
        return tail.decode(errors="replace")

    def processes(self) -> list[Process]:
        """The truth about all gangs, whether the site answers or not: for checkers and tests."""
        self.advance()
        return list(self._gangs.values())

    def finish(self, gang_id: str, exit_code: int = 0) -> None:
        """The gang's processes end by themselves now: their work is done, or they crashed."""
        self.advance()
        process = self._gangs.get(gang_id)
        if process is not None and process.alive:
            self._over(process, GangState.EXITED, self._clock.now(), exit_code)

    def crash(self, gang_id: str, exit_code: int = KILLED) -> None:
        """The gang ends in a way that nobody asked for; a signal is negative."""
        self.finish(gang_id, exit_code)

    def lose(self, gang_id: str) -> None:
        """The gang's processes are gone and left no exit code."""
        self.advance()
        process = self._gangs.get(gang_id)
        if process is not None and process.alive:
            self._over(process, GangState.LOST, self._clock.now(), None)

    def lose_node(self, node: str) -> None:
        """The node dies: its gangs are lost, and what is started on it is lost at once."""
        self._dead_nodes.add(node)
        for process in self.processes():
            if process.spec.node == node:
                self.lose(process.spec.gang_id)

    def restore_node(self, node: str) -> None:
        """The node is there (again)."""
        self._dead_nodes.discard(node)

    def advance(self) -> None:
        """Let happen what is due by now. Everything here calls it; calling it more often is harmless."""
        now = self._clock.now()
        for process in self._gangs.values():
            if process.state is GangState.STARTING:
                self._maybe_running(process, now)
            if process.alive and process.ends_at is not None and now >= process.ends_at:
                self._over(process, GangState.EXITED, process.ends_at, process.ends_with)

    def _accept(self, spec: GangSpec, token: str) -> None:
        self._started += 1
        process = Process(spec, token, self._script(spec), self._clock.now(), self._started)
        self._tokens.add(token)
        self._gangs[spec.gang_id] = process
        self._trace(f"driver {self.site} start {spec.gang_id} on {spec.node} epoch {spec.epoch}")
        if spec.node in self._dead_nodes:
            self._over(process, GangState.LOST, process.accepted_at, None)

    def _maybe_running(self, process: Process, now: float) -> None:
        started_at = process.accepted_at + process.script.start_s
        if now < started_at:
            return
        process.state = GangState.RUNNING
        process.started_at = started_at
        run_s = process.script.run_s
        if run_s is not None and (process.ends_at is None or started_at + run_s < process.ends_at):
            process.ends_at, process.ends_with = started_at + run_s, process.script.exit_code

    def _over(self, process: Process, state: GangState, at: float, exit_code: int | None) -> None:
        process.state = state
        process.ended_at = at
        process.exit_code = exit_code
        self._trace(f"driver {self.site} over {process.spec.gang_id} {state.value} {exit_code}")

    def _status(self, process: Process) -> GangStatus:
        return GangStatus(
            gang_id=process.spec.gang_id,
            state=process.state,
            site=self.site,
            exit_code=process.exit_code,
            started_at=process.started_at,
            ended_at=process.ended_at,
            pids=(process.number,) if process.alive else (),
        )

    def _answer(self, call: str) -> None:
        if self.silent:
            raise Unreachable(f"no answer to {call}", where=f"site {self.site}")

    def _begin(self, call: str) -> Fault:
        self._answer(call)
        fault = self._fault(call)
        if fault == "lost_call":
            self._trace(f"driver {self.site} {call} is lost")
            raise Unreachable(f"{call} did not arrive", where=f"site {self.site}")
        return fault

    def _end(self, call: str, fault: Fault) -> None:
        if fault == "lost_answer":
            self._trace(f"driver {self.site} {call} is done, the answer is lost")
            raise Unreachable(f"no answer to {call}", where=f"site {self.site}")
