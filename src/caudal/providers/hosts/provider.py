"""The team's own machines as a provider: the claim files on the hosts are its list.

A silent host does not make the others unknown. What it said last is listed with `silent`; only where nobody knows what
it said, or where every host of a site is silent, is the site unknown. Two control processes, or two fleets, meet at the
claim file on the host, which is created only if absent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from caudal.domain.errors import CaudalError, Failed, NoCapacity, Unreachable
from caudal.domain.fleet import HostSpec, Machine, MachineState, MachineType, Market, Offer, ProviderSpec
from caudal.ports import Check, Listing
from caudal.providers.hosts.checks import looked_over
from caudal.providers.hosts.memory import Memory
from caudal.providers.hosts.remote import ANSWER_S, CONNECT_S, LoopThread, Remote
from caudal.providers.hosts.scripts import (
    HEALTH,
    LOOK,
    MARK_LETTERS,
    TAKE,
    Claim,
    Health,
    Seen,
    boot,
    leave,
    lines_of,
    mark_of,
    read_health,
    read_seen,
)

GRACE_S = 5
ALL_S = ANSWER_S + CONNECT_S + 2.0
LEAVE_S = GRACE_S + 12.0
ID = "own"

Bootstrap = Callable[[str, HostSpec], str]
"""From a lease and a host to the script that makes it a node."""


class HostsProvider:
    """Implements `ports.Provider`, `ports.Regional` and `ports.Checkup` over one ProviderSpec of kind `hosts`.

    `fleet` is whose claims are ours; `memory` the folder for what hosts said last; `as_of` the date on the offers;
    `ssh_config` an ssh configuration instead of the user's own. Without `bootstrap` a claimed host is a node at once.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        fleet: str,
        memory: Path,
        as_of: str,
        bootstrap: Bootstrap | None = None,
        ssh_config: Path | None = None,
    ) -> None:
        self._spec, self._fleet, self._as_of = spec, fleet, as_of
        self._bootstrap = bootstrap
        self._memory = Memory(memory)
        self._remotes = {host.name: Remote(host, ssh_config) for host in spec.hosts}
        self._looks: dict[str, asyncio.Task[Seen]] = {}
        self._silent: dict[str, CaudalError] = {}
        self._changing = threading.Lock()
        self._loop = LoopThread(f"hosts-{spec.name}")

    def close(self) -> None:
        """Drop the connections; what runs on the hosts is left alone."""
        try:
            self._loop.run(self._drop_all(), 5.0)
        except Unreachable:
            pass
        self._loop.close()

    def offers(self) -> Sequence[Offer]:
        """One for each host; none is available of one that is silent or claimed, by whomever. Raises Unreachable
        where no host answers."""
        seen = self._look()
        return [
            Offer(
                id=f"{ID}:{host.name}",
                site=host.site,
                machine_type=MachineType(host.name, host.resources, host.accelerator),
                market=Market.OWN,
                price_usd_per_hour=host.price_usd_per_hour,
                source="fleet file",
                as_of=self._as_of,
                available=int(host.name in seen and seen[host.name].claim is None),
            )
            for host in self._spec.hosts
        ]

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Claim the offer's host and begin its bootstrap. The same lease or token gets no second one. Raises
        NoCapacity (names who holds it), Unreachable (it may be claimed), NotAllowed, Failed."""
        host = next((h for h in self._spec.hosts if f"{ID}:{h.name}" == offer.id), None)
        if host is None:
            raise NoCapacity(f"no host is offered as {offer.id}", where=f"provider {self._spec.name}")
        with self._changing:
            self._look()  # a host that is claimed for this lease already may be another one
            had = next((c for c in self._ours() if lease_id == c.lease or token == c.token), None)
            if had is not None and had.host != host.name:
                return
            boots = self._bootstrap is not None
            mark = mark_of(self._fleet, host.name, lease_id)
            claim = had or Claim(self._fleet, lease_id, token, host.name, host.site, mark, boots)
            self._loop.run(self._take(host, claim), 2 * ALL_S)

    def release(self, machine_id: str) -> None:
        """End what we started there and take the claim off; a machine that is not ours (any more) is fine. Raises
        Unreachable, NotAllowed, Failed."""
        name, _, mark = machine_id.removeprefix(f"{ID}-").rpartition("-")
        remote = self._remotes.get(name)
        if remote is None or len(mark) != MARK_LETTERS or not mark.isalnum():
            return
        with self._changing:
            self._loop.run(self._leave(remote, mark), LEAVE_S + ALL_S)

    def machines(self) -> Sequence[Machine]:
        """The claims of this fleet. Raises Unreachable where a site is unknown, as `listing` tells."""
        listing = self.listing()
        if listing.silent:
            raise Unreachable(
                f"of the machines at {', '.join(sorted(listing.silent))} nothing is known",
                where=f"provider {self._spec.name}",
                why="; ".join(error.one_line() for error in list(self._silent.values())[:3]),
            )
        return listing.machines

    def listing(self) -> Listing:
        """The claims of this fleet; of silent hosts, what they said last. Raises Unreachable where none answers."""
        seen = self._look()
        rows, unknown = [], set()
        for site in {host.site for host in self._spec.hosts}:
            hosts = [host for host in self._spec.hosts if host.site == site]
            if not any(host.name in seen for host in hosts):
                unknown.add(site)
                continue
            for host in hosts:
                said = seen.get(host.name) or self._memory.last(host.name)
                if said is None:
                    unknown.add(site)
                elif self._is_ours(host, said.claim):
                    rows.append(_machine(host, said, silent=host.name not in seen))
        known = [row for row in rows if row.site not in unknown]
        return Listing(sorted(known, key=lambda row: row.id), frozenset(unknown))

    def health(self) -> Mapping[str, Health | CaudalError]:
        """Every host's health, or why it is not known."""
        return self._loop.run(self._health(), ALL_S + 10.0)

    def checks(self) -> Sequence[Check]:
        """See `ports.Checkup`."""
        try:
            found = self.health()
        except CaudalError as error:
            found = {host.name: error for host in self._spec.hosts}
        last = {host.name: self._memory.last(host.name) for host in self._spec.hosts}
        try:
            last |= self._look()
        except CaudalError:
            pass  # said for each host already
        seen = {name: said for name, said in last.items() if said is not None}
        return looked_over(self._spec.hosts, self._fleet, found, seen)

    def _is_ours(self, host: HostSpec, claim: Claim | None) -> bool:
        return claim is not None and claim.fleet == self._fleet and claim.host == host.name

    def _ours(self) -> list[Claim]:
        last = [(host, self._memory.last(host.name)) for host in self._spec.hosts]
        return [seen.claim for host, seen in last if seen and seen.claim and self._is_ours(host, seen.claim)]

    def _look(self) -> dict[str, Seen]:
        """What the hosts say that answer. Raises Unreachable where none does."""
        seen = self._loop.run(self._look_at_all(), ALL_S)
        if self._remotes and not seen:
            why = "; ".join(error.one_line() for error in list(self._silent.values())[:3])
            raise Unreachable("no host answers", where=f"provider {self._spec.name}", why=why)
        return seen

    async def _look_at_all(self) -> dict[str, Seen]:
        """Look at all at once. One that was silent the last time is not waited for: its look goes on beside, and
        counts the next time, or every pass would be as slow as the slowest dead host."""
        tasks = {name: self._begin(name) for name in self._remotes}
        awaited = [task for name, task in tasks.items() if name not in self._silent]
        if awaited:
            await asyncio.wait(awaited, timeout=ANSWER_S + CONNECT_S)
        else:
            await asyncio.wait(tasks.values(), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(tasks.values(), timeout=0.2)
        seen: dict[str, Seen] = {}
        for name, task in tasks.items():
            if not task.done():
                self._silent.setdefault(name, Unreachable("the host does not answer", where=f"host {name}"))
                continue
            self._looks.pop(name, None)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, CaudalError):
                self._silent[name] = error
            elif error is not None:
                raise error
            elif not task.cancelled():
                seen[name] = task.result()
                self._silent.pop(name, None)
                self._memory.keep(name, seen[name])
        return seen

    def _begin(self, name: str) -> asyncio.Task[Seen]:
        task = self._looks.get(name)
        if task is None:
            task = self._looks[name] = asyncio.create_task(self._seen(self._remotes[name]))
        return task

    async def _seen(self, remote: Remote) -> Seen:
        return read_seen(await remote.run(LOOK), remote.where)

    def _changed(self, name: str) -> None:
        """A look that began before a change does not count after it."""
        look = self._looks.pop(name, None)
        if look is not None:
            look.cancel()

    async def _take(self, host: HostSpec, claim: Claim) -> None:
        remote = self._remotes[host.name]
        self._changed(host.name)
        seen = read_seen(await remote.run(TAKE, f"{claim.line()}\nend\n"), remote.where)
        holder = seen.claim
        if holder is None:
            raise Failed("the host took no claim", where=remote.where)
        if holder.fleet != self._fleet:
            raise NoCapacity(
                f"the host is claimed by fleet {holder.fleet}",
                where=remote.where,
                remedy=f"take it out of one of the two fleet files, or end it there: caudal down (fleet {holder.fleet})",
            )
        if holder.lease != claim.lease and holder.token != claim.token:
            raise NoCapacity(f"the host is held by lease {holder.lease}", where=remote.where)
        self._memory.keep(host.name, Seen(holder))
        if self._bootstrap is not None and holder.boots:
            script = self._bootstrap(holder.lease, host).rstrip("\n") + "\n# end\n"
            lines_of(await remote.run(boot(holder.mark), script), remote.where)

    async def _leave(self, remote: Remote, mark: str) -> None:
        self._changed(remote.spec.name)
        lines_of(await remote.run(leave(mark, GRACE_S), within_s=LEAVE_S), remote.where)

    async def _health(self) -> dict[str, Health | CaudalError]:
        async def one(remote: Remote) -> Health | CaudalError:
            try:
                return read_health(await remote.run(HEALTH, within_s=ANSWER_S + 10.0), remote.where)
            except CaudalError as error:
                return error

        found = await asyncio.gather(*(one(remote) for remote in self._remotes.values()))
        return dict(zip(self._remotes, found, strict=True))

    async def _drop_all(self) -> None:
        looks = list(self._looks.values())
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        for remote in self._remotes.values():
            await remote.drop()


def _machine(host: HostSpec, seen: Seen, *, silent: bool) -> Machine:
    assert seen.claim is not None
    failed = "" if not seen.code else seen.why or f"its bootstrap ended with code {seen.code}"
    return Machine(
        id=f"{ID}-{host.name}-{seen.claim.mark}",
        site=host.site,
        machine_type=host.name,
        state=MachineState.RUNNING,  # as a cloud says it: of the bootstrap speaks the node itself
        lease_id=seen.claim.lease,
        address=host.address,
        silent=silent,
        failed=failed,
    )
