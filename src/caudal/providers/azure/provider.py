"""Azure's virtual machines behind `ports.Provider`.

    provider = AzureProvider(spec, sites, contracts, "my-fleet", user_data, clock)
    provider.acquire("lease-1", provider.offers()[0], token="t-1")
    provider.machines()   # pending, later running

A machine is named after its lease and made with create-if-absent, so asking twice is asking once, whoever asks.
Nothing waits: a long-running operation is started, and what became of it is seen at a later look. What failed is
kept per offer (backoff.py) and cleaned up here. Knows nothing of nodes, gangs, or why a machine is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from caudal.catalog.azure_types import AZURE_TYPES
from caudal.domain.errors import CaudalError, NoCapacity, NotAllowed, NotOffered, Unreachable, UsageError
from caudal.domain.fleet import Contract, Machine, MachineState, Market, Offer, ProviderSpec, SiteSpec
from caudal.ports import Clock
from caudal.providers.azure import bodies, offers
from caudal.providers.azure.backoff import Backoff
from caudal.providers.azure.client import TIMEOUT_S, Arm, permitted
from caudal.providers.azure.errors import from_code
from caudal.providers.azure.listing import Found, found
from caudal.providers.azure.quotas import Quota, quotas

SKUS_EVERY_S = 3600.0
LIST_EVERY_S = 10.0
"""Azure bounds expensive reads per subscription (some hundreds in half an hour): a list this old is good enough, and
it is read anew after every change of ours."""

SWEEP_AFTER_S = 60.0
"""An interface or a disk without its machine may be of one that is just being made, or just being taken down by
Azure itself; after this it is an orphan."""

DOUBT_S = 300.0
"""How long a machine that Azure calls failed, without saying whether it runs, is left alone."""

OPERATIONS_AT_ONCE = 20


class AzureProvider:
    """Implements `ports.Provider` for the sites that name it; others are left out.

    `fleet` goes into every tag and name: it must differ between fleets that share a resource group. `user_data` gives
    the script that a machine starts with. `force_delete`: do not let a machine shut down in peace at its end.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        sites: Sequence[SiteSpec],
        contracts: Sequence[Contract],
        fleet: str,
        user_data: Callable[[str, Offer], str],
        clock: Clock,
        *,
        credential: Any = None,
        timeout_s: float = TIMEOUT_S,
        list_every_s: float | None = None,
        force_delete: bool = False,
    ) -> None:
        if not spec.account or not spec.resource_group:
            raise UsageError(
                f"provider {spec.name} has no `account` or no `resource_group`",
                remedy="`account:` is the subscription's id (`az account show`), `resource_group:` a group of its own",
            )
        known = tuple(kind.name for kind in AZURE_TYPES)
        self.name = spec.name
        self.backoff = Backoff(clock)
        self._spec = spec
        self._sites = {site.name: site for site in sites if site.provider == spec.name}
        self._contracts = [c for c in contracts if c.provider == spec.name and c.kind == "reserved"]
        self._fleet = fleet
        self._user_data = user_data
        self._clock = clock
        self._force = force_delete
        self._arm = Arm(
            spec.account,
            spec.resource_group,
            spec.endpoint,
            clock,
            name=spec.name,
            credential=credential,
            timeout_s=timeout_s,
            known=known,
        )
        default_s = 0.0 if self._arm.fake else LIST_EVERY_S
        self._list_every_s = default_s if list_every_s is None else list_every_s
        self._looked: tuple[float, list[Found]] | None = None
        self._skus: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._reserved: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._operations: dict[str, tuple[str, str, float]] = {}  # machine: operation's address, offer, since
        self._orphans: dict[str, float] = {}
        self._doubts: dict[str, float] = {}
        self._ending: dict[str, float] = {}

    def offers(self) -> Sequence[Offer]:
        """Sites x sizes x markets. `available` is what the contract, its reservation and `max_machines` leave, 0 while
        the offer was refused lately, and None where nobody can say. Raises CaudalError where Azure cannot be asked."""
        held = self._look()
        rows = [o for site in self._sites.values() for o in self._site_offers(site)]
        return [replace(o, available=self._available(o, held)) for o in rows]

    def acquire(self, lease_id: str, offer: Offer, token: str) -> None:
        """Ask for a machine; a lease that has one gets no second. Raises NoCapacity, QuotaExceeded, NotOffered,
        NotAllowed, Unreachable. The token adds nothing: the name says which lease it is."""
        name = bodies.vm_name(self._fleet, lease_id)
        row = self._arm.vm(name)
        if row is not None:
            self._refuse_if_failed(name, row, offer)
            return
        site = self._site_of(offer)
        refusal = self.backoff.refusal(offer.id)
        if refusal is not None:
            raise refusal
        if self._spec.max_machines or offer.contract:
            self._refuse_beyond_bounds(offer)
        try:
            self._create(name, lease_id, site, offer)
        except CaudalError as error:
            self.backoff.note(offer.id, error)
            if not isinstance(error, Unreachable):
                self._drop_nic(name)
            raise
        finally:
            self._forget_lists()

    def release(self, machine_id: str) -> None:
        """Start its end; one that is not there is fine. Its interface and disk go with it. Raises NotAllowed where it
        is another's, Unreachable."""
        row = self._arm.vm(machine_id)
        self._forget_lists()
        if row is None:
            return  # what may be left of it is swept by the next looks
        marks = row.get("tags") or {}
        if marks.get(bodies.FLEET) != self._fleet:
            raise NotAllowed(
                f"machine {machine_id} is not of this fleet",
                where=f"provider {self.name}",
                why=f"its tag {bodies.FLEET} is {marks.get(bodies.FLEET, 'missing')!r}",
                remedy="nothing was touched; its owner has to end it",
            )
        making = (row.get("properties") or {}).get("provisioningState")
        if making != "Deleting":
            self._arm.delete_vm(machine_id, force=self._force)
        self._operations.pop(machine_id, None)
        if making != "Failed":
            self.backoff.room(self._alike(marks.get(bodies.OFFER, "")))

    def machines(self) -> Sequence[Machine]:
        """Azure's list of what carries this fleet's tag, by name, with what is left of those that went. Ends those that
        failed or were stopped, and sweeps orphans. Raises Unreachable."""
        return [one.machine for one in self._look()]

    def quotas(self, region: str) -> list[Quota]:
        """What the subscription may have there of the sizes that the fleet wants. Raises CaudalError."""
        sites = [site for site in self._sites.values() if site.region == region]
        rows = self._region_skus(region)
        skus = [offers.sku_of(kind.name, rows) for site in sites for kind in offers.wanted_types(site)]
        return quotas(region, self._arm.usages(region), [str(row.get("family", "")) for row in skus if row])

    def problems(self) -> list[CaudalError]:
        """What is wrong before anything is asked for: credentials, permissions, regions, sizes, images, reservations,
        quotas that are used up. Asks only."""
        problems: list[CaudalError] = []
        for ask in (self._arm.vms, self._arm.statuses, self._arm.nics, self._arm.disks):
            try:
                ask()
            except CaudalError as error:
                problems.append(error)
                if isinstance(error, Unreachable):
                    return problems
        for site in self._sites.values():
            problems += self._site_problems(site)
        return problems

    def _site_problems(self, site: SiteSpec) -> list[CaudalError]:
        try:
            skus = self._region_skus(site.region)
            if not skus:
                return [NotOffered(f"Azure has no region {site.region!r} for us", where=f"site {site.name}")]
            bodies.image(site)
            for contract in self._contracts:
                if contract.reference and (not contract.sites or site.name in contract.sites):
                    self._arm.reservations(contract.reference)
            full = [
                q for q in self.quotas(site.region) if q.left == 0 and q.limit == 0 and "Family" in q.name
            ]
        except CaudalError as error:
            return [error]
        said = [
            from_code("QuotaExceeded", f"{q.label or q.name}: 0 cores", f"site {site.name}") for q in full
        ]
        return [*offers.type_problems(site, skus), *said]

    def _create(self, name: str, lease_id: str, site: SiteSpec, offer: Offer) -> None:
        marks = bodies.tags(self._fleet, lease_id, offer)
        nic = bodies.nic_name(name)
        scope = f"/subscriptions/{self._arm.subscription}/resourceGroups/{self._arm.group}/providers"
        body = bodies.vm_body(
            site,
            offer,
            name,
            marks,
            nic_id=f"{scope}/Microsoft.Network/networkInterfaces/{nic}",
            script=self._user_data(lease_id, offer),
            key=bodies.throwaway_key(),
        )
        contract = self._contract(offer)
        if contract is not None and contract.reference:
            body["properties"]["capacityReservation"] = {
                "capacityReservationGroup": {"id": contract.reference}
            }
        fast = offers.accelerated(offers.sku_of(offer.machine_type.name, self._region_skus(site.region)))
        self._arm.create_nic(nic, bodies.nic_body(site, marks, accelerated=fast))
        operation = self._arm.create_vm(name, body)
        self._operations[name] = (operation, offer.id, self._clock.now())

    def _drop_nic(self, name: str) -> None:
        try:
            self._arm.delete_nic(bodies.nic_name(name))
        except CaudalError:
            pass  # the sweep finds it

    def _refuse_if_failed(self, name: str, row: dict[str, Any], offer: Offer) -> None:
        if (row.get("properties") or {}).get("provisioningState") != "Failed":
            return
        self._forget_lists()
        broken = next((one for one in self._look() if one.machine.id == name and one.failure), None)
        if broken is not None and broken.machine.state is not MachineState.RUNNING:
            raise self.backoff.refusal(offer.id) or NoCapacity(
                f"machine {name} could not be made, and is being removed", where=f"provider {self.name}"
            )

    def _refuse_beyond_bounds(self, offer: Offer) -> None:
        """Raises NoCapacity where a bound of ours is reached: the reservation as Azure has it this moment."""
        self._forget_lists()
        available = self._available(offer, self._look())
        if available is not None and available < 1:
            raise NoCapacity(
                f"no machine left of offer {offer.id}",
                where=f"provider {self.name}",
                why="its contract or reservation is full, or the fleet file's `max_machines` is reached",
            )

    def _forget_lists(self) -> None:
        self._looked = None
        self._reserved.clear()

    def _look(self) -> list[Found]:
        now = self._clock.now()
        if self._looked is not None and now - self._looked[0] < self._list_every_s:
            return self._looked[1]
        vms = self._arm.vms()
        ours = [row for row in vms if (row.get("tags") or {}).get(bodies.FLEET) == self._fleet]
        rows = found(self._fleet, ours, self._views(ours), self._arm.nics(), self._arm.disks())
        self._follow(rows)
        self._clean(rows, now)
        self._looked = (now, rows)
        return rows

    def _views(self, vms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The machines' states in one list; one by one where our role ends at the resource group."""
        if not vms:
            return []
        statuses: list[dict[str, Any]] | None = permitted(self._arm.statuses, None)
        if statuses is not None:
            return statuses
        views = ((row, self._arm.instance_view(str(row["name"]))) for row in vms)
        return [{"id": row["id"], "properties": {"instanceView": view or {}}} for row, view in views]

    def _follow(self, rows: list[Found]) -> None:
        """What became of the machines that we asked for."""
        by_name = {one.machine.id: one for one in rows}
        for one in rows:
            if one.failure is not None and (one.broken or one.doubtful):
                self._note_failure(one.machine.id, one.offer_id, *one.failure)
        for name, (operation, offer_id, since) in list(self._operations.items())[:OPERATIONS_AT_ONCE]:
            there = by_name.get(name)
            if there is not None and there.machine.state is MachineState.RUNNING:
                self.backoff.worked(offer_id, since)
                del self._operations[name]
                continue
            try:
                row = self._arm.operation(operation) if operation else None
            except CaudalError:
                continue  # the list itself is good
            status = (row or {}).get("status")
            if row is not None and status in ("Failed", "Canceled"):
                said = row.get("error") or {}
                self._note_failure(name, offer_id, str(said.get("code", "")), str(said.get("message", "")))
            elif there is None and status in (None, "Succeeded"):
                self._operations.pop(name, None)  # it was there and went, or nobody remembers it

    def _note_failure(self, name: str, offer_id: str, code: str, text: str) -> None:
        error = from_code(code, text, f"provider {self.name}: create {name}")
        if not isinstance(error, Unreachable) and offer_id:
            unknown = not isinstance(error, NoCapacity | NotOffered | NotAllowed)
            # A machine that failed for a reason of its own: the offer may be asked again, elsewhere first.
            kept = NoCapacity(error.what, where=error.where, why=error.why) if unknown else error
            self.backoff.note(offer_id, kept)
        self._operations.pop(name, None)

    def _clean(self, rows: list[Found], now: float) -> None:
        """End what failed or was stopped, and what is left of machines that are gone. What cannot be done now is done
        at a later look: the list itself is good."""
        orphans = {one.machine.id: self._orphans.get(one.machine.id, now) for one in rows if one.leftover}
        self._orphans = orphans
        self._doubts = {one.machine.id: self._doubts.get(one.machine.id, now) for one in rows if one.doubtful}
        due = {name for name, since in orphans.items() if now - since >= SWEEP_AFTER_S}
        due |= {name for name, since in self._doubts.items() if now - since >= DOUBT_S}
        todo = [one for one in rows if one.broken or one.machine.id in due]
        self._ending = {n: at for n, at in self._ending.items() if n in {one.machine.id for one in todo}}
        for one in todo:
            name = one.machine.id
            if now - self._ending.get(name, -SWEEP_AFTER_S) < SWEEP_AFTER_S:
                continue
            self._ending[name] = now
            try:
                if not one.leftover:
                    self._arm.delete_vm(name, force=self._force)
                for nic in one.nics:
                    self._arm.delete_nic(nic)
                for disk in one.disks:
                    self._arm.delete_disk(disk)
            except CaudalError:
                continue

    def _site_offers(self, site: SiteSpec) -> list[Offer]:
        now = self._clock.now()
        bought = [c for c in self._contracts if offers.in_term(c, now)]
        return offers.site_offers(self.name, site, self._region_skus(site.region), bought)

    def _available(self, offer: Offer, held: list[Found]) -> int | None:
        if self.backoff.refusal(offer.id) is not None:
            return 0
        bounds: list[int] = []
        if self._spec.max_machines:
            bounds.append(self._spec.max_machines - len(held))
        contract = self._contract(offer)
        if contract is not None:
            mine = sum(1 for one in held if one.offer_id.endswith(f"/{Market.RESERVED}/{contract.name}"))
            bounds.append(offers.count_now(contract, self._clock.now()) - mine)
            if contract.reference:
                zone = self._sites[offer.site].zone if offer.site in self._sites else ""
                rows = self._group(contract.reference)
                bounds.append(offers.left_in_group(rows, offer.machine_type.name, zone))
        return max(0, min(bounds)) if bounds else None

    def _group(self, reference: str) -> list[dict[str, Any]]:
        now = self._clock.now()
        at, rows = self._reserved.get(reference, (float("-inf"), []))
        if now - at >= self._list_every_s:
            rows = self._arm.reservations(reference)
            self._reserved[reference] = (now, rows)
        return rows

    def _region_skus(self, region: str) -> list[dict[str, Any]]:
        now = self._clock.now()
        at, rows = self._skus.get(region, (float("-inf"), []))
        if now - at >= SKUS_EVERY_S:
            try:
                rows = self._arm.skus(region)
            except Unreachable:
                if region not in self._skus:
                    raise
                return rows  # sizes change by the month: the last list is still true
            self._skus[region] = (now, rows)
        return rows

    def _contract(self, offer: Offer) -> Contract | None:
        return next((c for c in self._contracts if offer.contract and c.name == offer.contract), None)

    def _site_of(self, offer: Offer) -> SiteSpec:
        site = self._sites.get(offer.site)
        if site is None:
            raise NotOffered(f"provider {self.name} has no site {offer.site}", where=f"provider {self.name}")
        return site

    def _alike(self, offer_id: str) -> list[str]:
        """The offers that draw on the same capacity: of the same size at the same site."""
        place = "/".join(offer_id.split("/")[:3])
        markets = [f"{place}/{market}" for market in Market]
        return [*markets, *(f"{place}/{Market.RESERVED}/{c.name}" for c in self._contracts)]
