"""RunInstances, DescribeInstances and TerminateInstances: moto's, with capacity, tokens, reservations, lag and time.

Addresses are always this machine's: those that moto makes up belong to strangers and are not let out.
"""

from __future__ import annotations

import base64
import binascii
import copy
import fnmatch
import hashlib
import json
from xml.etree import ElementTree

from caudal.providers.aws_fake.machines import Machines
from caudal.providers.aws_fake.moto_backend import Moto
from caudal.providers.aws_fake.wire import (
    NAMESPACE,
    Answer,
    Ask,
    Form,
    Refused,
    child,
    fill,
    replace,
    text,
    whole,
    xml,
)
from caudal.providers.aws_fake.world import Instance, Reservation, World

ADDRESS = "127.0.0.1"
NAMES = ("dnsName", "privateDnsName", "ipAddress", "networkInterfaceSet", "stateReason")
KEPT_BY_MOTO = ("ImageId", "InstanceType", "UserData", "InstanceInitiatedShutdownBehavior")
LOOK_S = 0.05
REMEMBERED_S = 3600.0  # so long EC2 shows what was terminated (EC2 user guide, 2026-11)
TAGS = "/".join(f"{{{NAMESPACE}}}{part}" for part in ("instancesSet", "item", "tagSet", "item"))
FILTERS = {
    "instance-id",
    "instance-state-name",
    "instance-type",
    "availability-zone",
    "instance-lifecycle",
    "spot-instance-request-id",
}
SHORT = (
    "We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone}). "
    "Our system will be working on provisioning additional capacity."
)


class InstanceActions:
    """The three actions, on one world."""

    def __init__(self, world: World, moto: Moto, machines: Machines | None) -> None:
        self._world = world
        self._moto = moto
        self._machines = machines
        # What moto said of each. Its own list is not asked: it keeps what is gone for ever, and searches all of it.
        self._rows: dict[str, ElementTree.Element] = {}

    def run(self, ask: Ask) -> Answer:
        """RunInstances of one machine, once for each token."""
        token = ask.get("ClientToken")
        digest = hashlib.sha256(json.dumps(sorted(ask.form.items())).encode()).hexdigest()
        if token and (ask.region, token) in self._world.tokens:
            return self._again(ask, digest, *self._world.tokens[ask.region, token])
        if ask.get("MinCount", "1") != "1" or ask.get("MaxCount", "1") != "1":
            raise Refused("InvalidParameterValue", "this fake gives one instance for each call")
        self._check(ask)
        zone = self._zone(ask)
        reservation = self._reservation(ask, zone)
        kind = ask.get("InstanceType")
        if reservation is None and self._world.full(ask.region, zone, kind):
            # EC2 says this with a 500, so that SDKs try again.
            raise Refused("InsufficientInstanceCapacity", SHORT.format(type=kind, zone=zone), 500)
        root = self._asked(ask.region, self._for_moto(ask, zone))
        item = child(root, "instancesSet/item")
        assert item is not None, "moto gives what it says"
        one = self._born(ask, item, zone, reservation)
        self._rows[one.id] = _group(root)
        if token:
            self._world.tokens[ask.region, token] = (digest, one.id)
        if self._machines is not None:
            self._machines.start(one, _script(ask.get("UserData")))
        return self._launched(one)

    def describe(self, ask: Ask) -> Answer:
        """DescribeInstances, as far as lists have caught up; what is gone is shown for an hour, as EC2 does."""
        now, ids, filters = self._world.now(), ask.many("InstanceId"), ask.filters()
        for name in filters:
            if not name.startswith("tag:") and name not in FILTERS:
                raise Refused("InvalidParameterValue", f"this fake does not know the filter {name}")
        listed = [
            one
            for one in self._world.instances.values()
            if one.region == ask.region and one.id in self._rows and now >= one.listed_at
        ]
        missing = set(ids) - {one.id for one in listed}
        if missing:
            raise _no_such(missing.pop())
        shown = [one for one in listed if (not ids or one.id in ids) and self._fits(one, filters, now)]
        page, token = ask.page(shown)
        root = ElementTree.fromstring(xml(ask.action, {"nextToken": token}).body)
        fill(root, {"reservationSet": {}})
        groups = child(root, "reservationSet")
        assert groups is not None, "just put there"
        groups.extend([self._dressed(one) for one in page])
        return whole(root)

    def terminate(self, ask: Ask) -> Answer:
        """TerminateInstances; one that is on its way out, or gone, is fine."""
        found = []
        for machine_id in ask.many("InstanceId"):
            one = self._world.instances.get(machine_id)
            if one is None or one.region != ask.region:
                raise _no_such(machine_id)
            found.append(one)
        now = self._world.now()
        rows = []
        for one in found:
            before = one.state(now)
            self.end(one)
            after = one.state(now)
            rows.append(
                {
                    "instanceId": one.id,
                    "currentState": {"code": after[0], "name": after[1]},
                    "previousState": {"code": before[0], "name": before[1]},
                }
            )
        return xml("TerminateInstances", {"instancesSet": rows})

    def end(self, one: Instance, at_once: bool = False) -> None:
        """Shut it down; `at_once`, it loses power."""
        now = self._world.now()
        if one.stopping_at is None:
            one.stopping_at = now
            one.gone_at = now if at_once else now + self._world.times.stop_s
        if self._machines is not None:
            self._machines.end(one.id, 0.0 if at_once else self._world.times.stop_s)

    def tag(self, ask: Ask) -> Answer:
        """CreateTags and DeleteTags: moto's; what is shown of a machine follows."""
        answer = self._moto.ec2(ask.region, ask.form)
        for machine_id in ask.many("ResourceId"):
            if machine_id in self._rows:
                found = self._asked(ask.region, {"Action": "DescribeInstances", "InstanceId.1": machine_id})
                group = child(found, "reservationSet/item")
                assert group is not None, "moto keeps what the gate keeps"
                self._rows[machine_id] = group
        return answer

    def forget(self) -> None:
        """There are no machines (any more)."""
        self._rows.clear()

    def move_on(self) -> None:
        """What time does by itself: interruptions, ends of blocks, and the gone are gone for moto, too."""
        now = self._world.now()
        for one in self._world.instances.values():
            if one.leaves_at is not None and now >= one.leaves_at and one.stopping_at is None:
                self.end(one)
            if one.buried:
                if one.gone_at is not None and now >= one.gone_at + REMEMBERED_S:
                    self._rows.pop(one.id, None)
                continue
            if one.gone_at is not None and self._machines is not None and self._machines.running(one.id):
                one.gone_at = max(one.gone_at, now + LOOK_S)  # it is gone when nothing of it runs
            if not one.exists(now):
                one.buried = True
                self._moto.ec2(one.region, {"Action": "TerminateInstances", "InstanceId.1": one.id})

    def _again(self, ask: Ask, digest: str, known: str, machine_id: str) -> Answer:
        one = self._world.instances[machine_id]
        if digest != known:
            raise Refused(
                "IdempotentParameterMismatch",
                "The request uses the same client token as a previous, but non-identical request.",
            )
        if not one.exists(self._world.now()):
            raise Refused("IdempotentInstanceTerminated", "The instance of this client token was terminated.")
        return self._launched(one)

    def _launched(self, one: Instance) -> Answer:
        root = ElementTree.fromstring(xml("RunInstances", {}).body)
        root.extend(list(self._dressed(one)))
        return whole(root)

    def _dressed(self, one: Instance) -> ElementTree.Element:
        """Its group of one, as it is now."""
        group = copy.deepcopy(self._rows[one.id])
        item = child(group, "instancesSet/item")
        assert item is not None, "a group of one"
        self._dress(item, one)
        return group

    def _fits(self, one: Instance, filters: dict[str, list[str]], now: float) -> bool:
        facts = {
            "instance-id": one.id,
            "instance-state-name": one.state(now)[1],
            "instance-type": one.machine_type,
            "availability-zone": one.zone,
            "instance-lifecycle": one.lifecycle,
            "spot-instance-request-id": one.spot_id,
        }
        for row in self._rows[one.id].iterfind(TAGS):
            facts[f"tag:{text(row, 'key')}"] = text(row, "value")
        return all(
            name in facts and any(fnmatch.fnmatchcase(facts[name], value) for value in values)
            for name, values in filters.items()
        )

    def _check(self, ask: Ask) -> None:
        kind, image = ask.get("InstanceType"), ask.get("ImageId")
        if kind not in self._moto.machine_types():
            raise Refused("InvalidParameterValue", f"Invalid value '{kind}' for InstanceType.")
        if not image.startswith("ami-"):
            raise Refused("InvalidAMIID.Malformed", f'Invalid id: "{image}" (expecting "ami-...")')
        if image in self._world.gone_images:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        most = self._world.vcpus.get(ask.region)
        if most is not None:
            live = [one.machine_type for one in self._world.live() if one.region == ask.region]
            if sum(self._vcpus(name) for name in (*live, kind)) > most:
                if ask.get("InstanceMarketOptions.MarketType") == "spot":
                    raise Refused("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
                raise Refused(
                    "VcpuLimitExceeded",
                    f"You have requested more vCPU capacity than your current vCPU limit of {most} allows.",
                )

    def _vcpus(self, kind: str) -> int:
        return int(self._moto.machine_types()[kind]["VCpuInfo"]["DefaultVCpus"])

    def _zone(self, ask: Ask) -> str:
        zone = ask.get("Placement.AvailabilityZone") or f"{ask.region}a"
        if not zone.startswith(ask.region):
            raise Refused("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
        return zone

    def _reservation(self, ask: Ask, zone: str) -> Reservation | None:
        """The reservation that it is to be counted in; None: none. Raises Refused as EC2 does."""
        kind, block = ask.get("InstanceType"), ask.get("InstanceMarketOptions.MarketType") == "capacity-block"
        start = "CapacityReservationSpecification."
        wanted = ask.get(f"{start}CapacityReservationTarget.CapacityReservationId")
        if wanted:
            found = self._world.reservations.get(wanted)
            if found is None or found.region != ask.region:
                raise Refused("InvalidCapacityReservationId.NotFound", f"{wanted} does not exist")
            fits = found.machine_type == kind and found.zone == zone
            if not fits or (found.kind == "capacity-block") is not block or not self._world.free_in(found):
                raise Refused(
                    "ReservationCapacityExceeded",
                    "The requested reservation does not have sufficient compatible and available capacity for "
                    "this request.",
                )
            return found
        if block:
            raise Refused("InvalidParameterCombination", "A capacity block is launched into its reservation.")
        preference = ask.get(f"{start}CapacityReservationPreference", "open")
        if preference == "none" or ask.get("InstanceMarketOptions.MarketType") == "spot":
            return None
        for one in self._world.reservations.values():
            same = one.region == ask.region and one.zone == zone and one.machine_type == kind
            if same and one.match == "open" and one.kind == "default" and self._world.free_in(one):
                return one
        if preference == "capacity-reservations-only":
            raise Refused("ReservationCapacityExceeded", "No open capacity reservation has room for this.")
        return None

    def _for_moto(self, ask: Ask, zone: str) -> Form:
        """What moto understands of it, and needs."""
        form = {key: value for key, value in ask.form.items() if key in KEPT_BY_MOTO}
        form |= {key: value for key, value in ask.form.items() if key.startswith("MetadataOptions.")}
        form |= {
            "Action": "RunInstances",
            "MinCount": "1",
            "MaxCount": "1",
            "Placement.AvailabilityZone": zone,
        }
        subnet = ask.get("SubnetId") or ask.get("NetworkInterface.1.SubnetId")
        if subnet:
            form["SubnetId"] = subnet
        for key, value in ask.form.items():
            if key.endswith(".ResourceType") and value == "instance":
                start = key.removesuffix("ResourceType")
                tags = {k: v for k, v in ask.form.items() if k.startswith(f"{start}Tag.")}
                form["TagSpecification.1.ResourceType"] = "instance"
                form |= {f"TagSpecification.1.{k.removeprefix(start)}": v for k, v in tags.items()}
        return form

    def _asked(self, region: str, form: Form) -> ElementTree.Element:
        answer = self._moto.ec2(region, form)
        root = ElementTree.fromstring(answer.body)
        if answer.status != 200:
            error = root.find(".//{*}Error")
            said = (
                (error.findtext("{*}Code"), error.findtext("{*}Message")) if error is not None else ("", "")
            )
            raise Refused(said[0] or "InternalError", said[1] or "", answer.status)
        return root

    def _born(
        self, ask: Ask, item: ElementTree.Element, zone: str, reservation: Reservation | None
    ) -> Instance:
        now, times = self._world.now(), self._world.times
        market = ask.get("InstanceMarketOptions.MarketType")
        one = Instance(
            id=text(item, "instanceId"),
            region=ask.region,
            zone=zone,
            machine_type=ask.get("InstanceType"),
            lifecycle=market if market in ("spot", "capacity-block") else "",
            launched_at=now,
            listed_at=now + times.lag_s,
            runs_at=now + times.boot_s,
            reservation_id=reservation.id if reservation else "",
            spot_id=self._world.new_id("sir") if market == "spot" else "",
            group=ask.get("Placement.GroupName"),
        )
        if reservation is not None and reservation.ends_at is not None:
            one.leaves_at = reservation.ends_at - 1800.0  # as EC2 does with a block's machines
        self._world.instances[one.id] = one
        return one

    def _dress(self, item: ElementTree.Element, one: Instance) -> None:
        code, name = one.state(self._world.now())
        replace(item, dict.fromkeys(NAMES))
        replace(
            item,
            {
                "instanceState": {"code": code, "name": name},
                "privateIpAddress": ADDRESS if name in ("running", "shutting-down") else None,
                "instanceLifecycle": one.lifecycle,
                "spotInstanceRequestId": one.spot_id,
                "capacityReservationId": one.reservation_id,
                "placement": {"availabilityZone": one.zone, "groupName": one.group, "tenancy": "default"},
            },
        )


def _group(root: ElementTree.Element) -> ElementTree.Element:
    """RunInstances' answer as one of DescribeInstances' groups."""
    group = ElementTree.Element(f"{{{NAMESPACE}}}item")
    group.extend([part for part in root if not part.tag.endswith("requestId")])
    return group


def _no_such(machine_id: str) -> Refused:
    code = "NotFound" if machine_id.startswith("i-") else "Malformed"
    return Refused(f"InvalidInstanceID.{code}", f"The instance ID '{machine_id}' does not exist")


def _script(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Refused("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from error
