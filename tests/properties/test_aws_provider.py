"""Properties of the provider of AWS, over random sequences of calls, lost answers, refusals and restarts.

Safety: never two machines for a lease; what was released does not come back; another fleet's machine is never touched.
Liveness: once AWS answers again, every lease that is still asked for has its machine, and the list is what was confirmed.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from caudal.domain.errors import CaudalError, NoCapacity, Unreachable
from caudal.domain.fleet import Market
from caudal.providers.aws.provider import AwsProvider
from tests.support.aws import REGION, SMALL, Aws, fresh_aws

LEASES = [f"lease-{number}" for number in range(4)]
STEP = st.one_of(
    st.tuples(st.just("acquire"), st.sampled_from(LEASES)),
    st.tuples(st.just("release"), st.sampled_from(LEASES)),
    st.tuples(st.just("lose"), st.sampled_from(["RunInstances", "TerminateInstances", "DescribeInstances"])),
    st.tuples(st.just("fail"), st.sampled_from(["RunInstances", "TerminateInstances", "DescribeInstances"])),
    st.tuples(st.just("capacity"), st.sampled_from(["0", "2", "9"])),
    st.tuples(st.just("lag"), st.sampled_from(["0", "60"])),
    st.tuples(st.just("restart"), st.just("")),
    st.tuples(st.just("time"), st.sampled_from(["1", "100", "4000"])),
)


class Run:
    """One history. A lease gets a new token after a plain refusal or once it was released, as the control loop does."""

    def __init__(self) -> None:
        self.aws: Aws = fresh_aws()
        self.provider: AwsProvider = self.aws.provider()
        self.offer = next(o for o in self.provider.offers() if o.market is Market.ON_DEMAND)
        other = self.aws.provider(fleet="other")
        other.acquire("theirs", self.offer, "theirs")
        self.generation = dict.fromkeys(LEASES, 0)
        self.wanted: set[str] = set()
        self.confirmed: set[str] = set()
        self.leaving: set[str] = set()  # a release was called for: nobody asks for them again

    def name(self, lease: str) -> str:
        """The lease of now: one that ended never comes back under its name."""
        return f"{lease}.{self.generation[lease]}"

    def step(self, what: str, about: str) -> None:
        if what == "acquire":
            self.acquire(about)
        elif what == "release":
            self.release(about)
        elif what in ("lose", "fail"):
            self.aws.admin("fault", action=about, when="after" if what == "lose" else "before")
        elif what == "capacity":
            # One of them is theirs.
            self.aws.admin("capacity", region=REGION, type=SMALL, count=int(about) + 1)
        elif what == "lag":
            self.aws.admin("times", lag_s=float(about))
        elif what == "restart":
            self.provider = self.aws.provider()
        else:
            self.aws.admin("clock", advance_s=float(about))
            self.aws.clock.ahead_s += float(about)
        self.check()

    def acquire(self, lease: str) -> None:
        name = self.name(lease)
        if name in self.leaving:
            return
        try:
            self.provider.acquire(name, self.offer, f"token-{name}")
        except NoCapacity:
            if name not in self.confirmed:
                self.generation[lease] += 1  # the loop ends such a lease and makes another
                self.wanted.discard(name)
        except Unreachable:
            self.wanted.add(name)  # nobody knows
        else:
            self.wanted.add(name)
            self.confirmed.add(name)

    def release(self, lease: str) -> None:
        name = self.name(lease)
        try:
            found = [m for m in self.provider.machines() if m.lease_id == name]
            for machine in found:
                self.leaving.add(name)
                self.provider.release(machine.id)
        except CaudalError:
            return  # nothing is known: the loop tries again
        if name in self.leaving:  # called for, or gone since it was
            self.wanted.discard(name)
            self.confirmed.discard(name)
            self.generation[lease] += 1

    def existing(self) -> list[str]:
        """The leases of what truly exists and is not on its way out."""
        gate = self.aws.server.gate
        now = gate.world.now()
        ids = [one.id for one in gate.world.live() if one.stopping_at is None and one.exists(now)]
        return sorted(self._lease_of[one] for one in ids if self._lease_of[one] != "theirs")

    @property
    def _lease_of(self) -> dict[str, str]:
        """By instance, from the calls that made them: not from any list that may lag."""
        tokens = self.aws.server.gate.world.tokens
        return {machine_id: token.removeprefix("token-") for (_, token), (_, machine_id) in tokens.items()}

    def check(self) -> None:
        existing = self.existing()
        assert len(existing) == len(set(existing)), "two machines for one lease"
        assert set(existing) <= self.wanted, "a machine that nobody wants (any more)"
        theirs = self.aws.server.gate.world.tokens[REGION, "theirs"][1]
        assert self.aws.server.gate.world.instances[theirs].stopping_at is None, "another fleet's machine"

    def settle(self) -> None:
        """AWS is well again, and the loop goes on."""
        self.aws.server.gate.world.faults.clear()
        self.aws.admin("capacity", region=REGION, type=SMALL, count=None)
        self.aws.admin("times", lag_s=0)
        self.aws.admin("clock", advance_s=4000)
        self.aws.clock.ahead_s += 4000
        for lease in LEASES:
            if self.name(lease) in self.leaving:
                self.release(lease)
            elif self.name(lease) in self.wanted:
                self.acquire(lease)
        self.aws.admin("clock", advance_s=1)  # what was ended a moment ago is gone
        self.check()
        listed = sorted(m.lease_id for m in self.provider.machines())
        assert listed == self.existing() == sorted(self.wanted)
        assert self.confirmed == self.wanted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=25))
def test_the_list_is_what_was_confirmed_and_no_lease_has_two(steps: list[tuple[str, str]]) -> None:
    run = Run()
    for what, about in steps:
        run.step(what, about)
    run.settle()
