"""Carries intents out. Every call is idempotent, so a crash at any point only means that it is made again.

An intent is issued when its call has returned, and done only when its effect was observed (confirm.py). A
call that failed is made again after a pause, or given up where trying again is the policy's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from caudal.control.background import Background, ThreadBackground
from caudal.control.launch import LaunchSettings, gang_spec
from caudal.domain.decision import (
    AcquireNode,
    Intent,
    IntentState,
    PullModel,
    ReleaseMachine,
    ReleaseNode,
    StartGang,
    StopGang,
)
from caudal.domain.errors import CaudalError, Impossible, NotAllowed, NotFound, Unreachable, UsageError
from caudal.domain.event import Event
from caudal.domain.fleet import LeaseState, SiteSpec
from caudal.domain.snapshot import Snapshot, State
from caudal.policy.rules import Rules
from caudal.ports import Change, Driver, Provider, World

__all__ = ["Executor", "ThreadBackground"]


class Executor:
    """Carries out the open intents of a state, one after the other, oldest first.

    `still_leads` is asked right before every call, and raises where another process leads: what a process
    does after a long pause must not reach the world.
    """

    def __init__(
        self,
        world: World,
        rules: Rules,
        launch: LaunchSettings,
        background: Background,
        still_leads: Callable[[], None],
    ) -> None:
        self._world = world
        self._rules = rules
        self._launch = launch
        self._background = background
        self._still_leads = still_leads
        self._leader_epoch = 0
        self._pulling: set[str] = set()
        self._addresses: dict[str, str] = {}  # of machines, by lease

    def run(self, state: State, snapshot: Snapshot, leader_epoch: int) -> Iterator[str]:
        """Yields before and after every call, and after every outcome that was written down. Raises
        LostLeadership or StateHeld where another process leads."""
        self._leader_epoch = leader_epoch
        self._addresses = {m.lease_id: m.address for m in snapshot.machines if m.lease_id}
        for intent in sorted((i for i in state.intents if i.open), key=lambda i: i.id):
            void = _void(intent, state)
            if void:
                self._write(replace(intent, state=IntentState.FAILED, error=f"superseded: {void}"))
                yield f"dropped {intent.id}"
            elif isinstance(intent.action, PullModel):
                yield from self._pull(intent, intent.action)
            elif self._due(intent) and not _out_of_reach(intent, state, snapshot):
                if self._had_no_effect(intent, snapshot):
                    text = f"not_listed: accepted {intent.attempts} times, and nothing came of it"
                    self._write(replace(intent, state=IntentState.FAILED, error=text))
                    yield f"dropped {intent.id}"
                else:
                    yield from self._issue(intent, state)

    def _due(self, intent: Intent) -> bool:
        """Whether it is time to make its call: the first time, after a pause, or because it had no effect."""
        now = self._world.clock.now()
        if intent.state is IntentState.ISSUED:
            return now >= intent.changed_at + self._rules.intent_repeat_s
        return now >= intent.not_before

    def _had_no_effect(self, intent: Intent, snapshot: Snapshot) -> bool:
        """Whether its call was accepted again and again and nothing came of it. Asking once more under the
        same token would be answered by the memory of what is gone: the policy asks anew."""
        action = intent.action
        tried = intent.state is IntentState.ISSUED and intent.attempts >= self._rules.max_calls_without_effect
        if isinstance(action, AcquireNode):
            # A list may be behind: whatever was tried meanwhile, the machine gets its time to appear.
            now, since = self._world.clock.now(), intent.issued_at
            waited = since is None or now - since >= self._rules.unlisted_s
            return tried and waited and not any(m.lease_id == action.lease_id for m in snapshot.machines)
        if isinstance(action, StartGang):
            return tried and not any(s.gang_id == action.gang.id for s in snapshot.gangs)
        return False

    def _issue(self, intent: Intent, state: State) -> Iterator[str]:
        yield f"calling {_label(intent)}"
        self._still_leads()
        error: CaudalError | None = None
        try:
            self._call(intent, state)
        except CaudalError as raised:
            error = raised
        yield f"called {_label(intent)}"
        self._write_outcome(intent, error)
        yield f"executed {_label(intent)}"

    def _pull(self, intent: Intent, action: PullModel) -> Iterator[str]:
        """A pull runs in the background: what is seen here is that it is over, or not there yet."""
        models = self._world.models
        if intent.state is IntentState.ISSUED and not self._due(intent):
            return
        outcome = self._background.finished(intent.id)
        if outcome is None and intent.id not in self._pulling:
            yield f"calling {_label(intent)}"
            self._still_leads()
            self._pulling.add(intent.id)
            self._background.submit(
                intent.id, lambda: models.pull(action.model_id, action.source, action.sha256)
            )
            outcome = self._background.finished(intent.id)
            yield f"called {_label(intent)}"
        if outcome is not None:
            self._pulling.discard(intent.id)
            self._write_outcome(intent, outcome.error)
            yield f"executed {_label(intent)}"

    def _call(self, intent: Intent, state: State) -> None:
        action = intent.action
        if isinstance(action, StartGang):
            row = next(g for g in state.gangs if g.id == action.gang.id)
            spec = gang_spec(row, state, self._launch, self._addresses.get(row.lease_id, ""))
            self._driver(row.site).start(spec, intent.token)
        elif isinstance(action, StopGang):
            try:
                self._driver(_site_of_stop(intent, action, state)).stop(action.gang_id, action.grace_s)
            except NotFound:
                pass  # it is not there: that is what was asked for
        elif isinstance(action, AcquireNode):
            self._provider(action.offer.site, state).acquire(action.lease_id, action.offer, intent.token)
        elif isinstance(action, ReleaseNode):
            lease = next((x for x in state.leases if x.id == action.lease_id), None)
            if lease is not None and lease.machine_id:
                self._provider(lease.site, state).release(lease.machine_id)
        elif isinstance(action, ReleaseMachine):
            self._provider(action.site, state).release(action.machine_id)

    def _driver(self, site: str) -> Driver:
        driver = self._world.drivers.get(site)
        if driver is None:
            raise Unreachable(f"no driver of site {site} is built into this process", where=site)
        return driver

    def _provider(self, site: str, state: State) -> Provider:
        sites: dict[str, SiteSpec] = {s.name: s for s in self._world.sites}
        sites |= {s.name: s for s in (state.fleet.sites if state.fleet else ())}
        spec = sites.get(site)
        provider = self._world.providers.get(spec.provider) if spec else None
        if provider is None:
            raise Unreachable(f"no provider of site {site} is built into this process", where=site)
        return provider

    def _write_outcome(self, intent: Intent, error: CaudalError | None) -> None:
        now = self._world.clock.now()
        attempts = intent.attempts + 1
        if error is None:
            since = now if intent.issued_at is None else intent.issued_at
            issued = replace(intent, state=IntentState.ISSUED, attempts=attempts, error="", issued_at=since)
            self._write(issued)
            return
        over = self._gives_up(intent, error, attempts)
        state = IntentState.FAILED if over else IntentState.PENDING
        later = now + self._rules.intent_delay_s(attempts)
        text = f"{error.code}: {error.one_line()}"
        failed = replace(intent, state=state, attempts=attempts, not_before=later, error=text)
        first = over or intent.error.split(":", 1)[0] != error.code
        self._write(
            failed, [Event(now, "intent.failed", intent.subject, text, _about(intent, over))] if first else []
        )

    def _gives_up(self, intent: Intent, error: CaudalError, attempts: int) -> bool:
        """Whether the policy is to find another way. Stops and releases are never given up."""
        action = intent.action
        if isinstance(action, PullModel):
            return True
        if isinstance(action, AcquireNode):
            never = isinstance(error, Impossible | NotAllowed | UsageError)
            return never or attempts >= self._rules.max_acquire_attempts
        return isinstance(action, StartGang) and attempts >= self._rules.max_start_attempts

    def _write(self, intent: Intent, events: list[Event] | None = None) -> None:
        changed = replace(intent, changed_at=self._world.clock.now())
        change = Change(intents=[changed], events=events or [])
        self._world.store.commit(change, leader_epoch=self._leader_epoch)


def _void(intent: Intent, state: State) -> str:
    """Why an intent must not be carried out any more; empty where it must."""
    action = intent.action
    if isinstance(action, StartGang):
        row = next((g for g in state.gangs if g.id == action.gang.id), None)
        lease = next((x for x in state.leases if row and x.id == row.lease_id), None)
        if row is None or row.ended_at is not None or row.stopping:
            return "the gang is not wanted any more"
        if lease is None:
            return "its node is gone"
    if isinstance(action, AcquireNode) and not any(x.id == action.lease_id for x in state.leases):
        return "its lease has ended"
    return ""


def _out_of_reach(intent: Intent, state: State, snapshot: Snapshot) -> bool:
    """Whether its site did not answer just now, or is under suspicion: then a call is of no use, and its
    failing would say nothing about what was asked."""
    action = intent.action
    if isinstance(action, StartGang):
        site = action.gang.site
        suspect = any(x.id == action.gang.lease_id and x.state is not LeaseState.ACTIVE for x in state.leases)
        return suspect or site in snapshot.silent_drivers
    if isinstance(action, StopGang):
        return _site_of_stop(intent, action, state) in snapshot.silent_drivers
    if isinstance(action, AcquireNode):
        return action.offer.site in snapshot.silent_providers
    if isinstance(action, ReleaseMachine):
        return action.site in snapshot.silent_providers
    return False


def _site_of_stop(intent: Intent, action: StopGang, state: State) -> str:
    row = next((g for g in state.gangs if g.id == action.gang_id), None)
    return row.site if row else str(intent.reason.data.get("site", ""))


def _label(intent: Intent) -> str:
    return f"{intent.action.kind} {intent.id} {intent.subject}"


def _about(intent: Intent, over: bool) -> dict[str, object]:
    return {"intent": intent.id, "kind": intent.action.kind, "given_up": over}
