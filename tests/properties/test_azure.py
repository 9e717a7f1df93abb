"""Properties of the Azure provider, over random sequences against the fake's wire.

Safety: never two machines for one lease, nothing of others is touched, an offer that was refused is not asked for
again within its pause. Liveness: when the faults are over, what is released is gone with all that belonged to it, and
nothing is left that no lease holds.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caudal.domain.errors import CaudalError, NoCapacity, NotAllowed
from caudal.domain.fleet import MachineState
from caudal.providers.azure import AzureProvider
from caudal.providers.azure.bodies import vm_name
from caudal.providers.azure.provider import SWEEP_AFTER_S
from caudal.providers.azure_fake import FakeAzure
from caudal.simulate.kernel import Kernel
from tests.support.azure import FLEET, GROUP, LOCATION, SIZE, azure_provider, fake_azure

LEASES = ("l-1", "l-2", "l-3")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.sampled_from(LEASES)),
        st.tuples(st.just("release"), st.sampled_from(LEASES)),
        st.tuples(st.just("lose"), st.sampled_from(("PUT", "DELETE", "GET"))),
        st.tuples(st.just("refuse"), st.sampled_from(("PUT", "DELETE", "GET"))),
        st.tuples(st.just("room"), st.sampled_from(("0", "1", "none", "1 later", "0 later"))),
        st.tuples(st.just("wait"), st.sampled_from(("1", "70", "700"))),
        st.tuples(st.just("look"), st.just("")),
        st.tuples(st.just("restart"), st.just("")),
        st.tuples(st.just("leftovers"), st.sampled_from(("keep", ""))),
    ),
    min_size=3,
    max_size=14,
)


class Story:
    """One sequence: a provider (a new one after each restart) and what was asked of it."""

    def __init__(self) -> None:
        self.fake: FakeAzure = fake_azure()
        self.fake.admin("times", {"boot_s": 0, "delete_s": 0, "fail_s": 0})
        body = {"location": LOCATION, "properties": {"hardwareProfile": {"vmSize": SIZE}}}
        self.fake.admin("plant", {"kind": "vm", "group": GROUP, "name": "pet", "body": body})
        self.clock = Kernel()
        self.provider = self.build()
        self.offer = self.provider.offers()[0]
        self.quiet_until = 0.0

    def build(self) -> AzureProvider:
        return azure_provider(self.fake, self.clock)

    def step(self, verb: str, what: str) -> None:
        """One step; whatever fails is ours to name."""
        try:
            getattr(self, verb)(what)
        except CaudalError as error:
            assert not isinstance(error, NotAllowed)
        self.check()

    def acquire(self, lease: str) -> None:
        before = self.puts()
        had = any(m["tags"].get("caudal-lease") == lease for m in self.machines())
        quiet = self.clock.now() < self.quiet_until
        try:
            self.provider.acquire(lease, self.offer, "t")
        except NoCapacity:
            if self.puts() > before:
                self.quiet_until = self.clock.now() + 60
            raise
        finally:
            assert not quiet or had or self.puts() == before, "asked for again within the pause"

    def release(self, lease: str) -> None:
        self.quiet_until = 0.0  # room may be back
        self.provider.release(vm_name(FLEET, lease))

    def lose(self, method: str) -> None:
        self.fake.admin("fault", {"kind": "lost_answer", "method": method, "times": 1})

    def refuse(self, method: str) -> None:
        self.fake.admin("fault", {"kind": "refuse", "status": 503, "method": method, "times": 4})

    def room(self, what: str) -> None:
        count, _, later = what.partition(" ")
        limit = {"size": SIZE, "location": LOCATION, "later": bool(later)}
        # The pet takes room as well.
        self.fake.admin("capacity", {**limit, "count": None if count == "none" else int(count) + 1})

    def wait(self, seconds: str) -> None:
        self.clock.sleep(float(seconds))

    def look(self, _: str) -> None:
        self.provider.machines()

    def restart(self, _: str) -> None:
        self.provider = self.build()
        self.quiet_until = 0.0

    def leftovers(self, keep: str) -> None:
        self.fake.admin("leftovers", {"keep": bool(keep)})

    def machines(self) -> list[dict[str, dict[str, str]]]:
        found: list[dict[str, dict[str, str]]] = self.fake.admin("state")["machines"]
        return found

    def puts(self) -> int:
        calls = self.fake.admin("state")["calls"]
        return sum(1 for call in calls if call.startswith("PUT") and "/virtualMachines/" in call)

    def check(self) -> None:
        counts = Counter(m["tags"].get("caudal-lease", "") for m in self.machines())
        assert counts.pop("") == 1, "the pet is not ours"
        assert all(n == 1 for n in counts.values()), counts

    def settle(self) -> None:
        """No more faults: every lease is released, as the loop would until the list shows none."""
        self.fake.admin("calm", {})
        self.clock.sleep(301)
        for _ in range(6):
            for machine in self.provider.machines():
                if machine.state is not MachineState.STOPPING:
                    self.provider.release(machine.id)
            self.clock.sleep(SWEEP_AFTER_S + 1)
        assert self.provider.machines() == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@example([("room", "0"), ("acquire", "l-1"), ("acquire", "l-1"), ("wait", "70"), ("acquire", "l-1")])
@example([("room", "0 later"), ("acquire", "l-1"), ("look", ""), ("acquire", "l-1"), ("acquire", "l-2")])
@example(
    [
        ("lose", "PUT"),
        ("acquire", "l-1"),
        ("restart", ""),
        ("acquire", "l-1"),
        ("lose", "DELETE"),
        ("release", "l-1"),
    ]
)
@example(
    [
        ("acquire", "l-1"),
        ("leftovers", "keep"),
        ("release", "l-1"),
        ("restart", ""),
        ("look", ""),
        ("acquire", "l-1"),
    ]
)
def test_one_machine_for_a_lease_and_none_leaked(steps: list[tuple[str, str]]) -> None:
    story = Story()
    for verb, what in steps:
        story.step(verb, what)
    story.settle()
    state = story.fake.admin("state")
    assert [m["name"] for m in state["machines"]] == ["pet"]
    assert (state["nics"], state["disks"]) == ([], [])
