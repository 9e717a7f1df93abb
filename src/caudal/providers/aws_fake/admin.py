"""`/_caudal/`: how a demonstration or a test drives the fake. JSON in, JSON out.

GET  /_caudal/health                 whether it is up
GET  /_caudal/state                  machines, reservations, limits
GET  /_caudal/calls                  the newest calls of the SDK (without user data)
POST /_caudal/capacity               {region, zone?, type?, count}: never more than `count`; null: no limit
POST /_caudal/vcpus                  {region, count}
POST /_caudal/region                 {region, mode: "" | down | slow | silent, seconds?, machines?: "lose_power"}
POST /_caudal/fault                  {action?, region?, when: before | after, code?, message?, status?, times?}
POST /_caudal/times                  {boot_s?, stop_s?, lag_s?, notice_s?}
POST /_caudal/clock                  {advance_s}: time passes
POST /_caudal/spot/interrupt         {instance?}: all spot machines where none is named
POST /_caudal/spot/price             {type, zone, price}
POST /_caudal/image                  {id, gone}
POST /_caudal/reservation            {id, count}: change how many it has
POST /_caudal/offering               {region, zone, type, count, starts_at, hours, fee}: a block on sale
POST /_caudal/machine/kill           {instance}: it loses power and is gone
POST /_caudal/reset                  {}: everything is forgotten, every machine ends
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from decimal import Decimal
from typing import Any

from caudal.providers.aws_fake.instances import InstanceActions
from caudal.providers.aws_fake.moto_backend import Moto
from caudal.providers.aws_fake.spot import SpotActions
from caudal.providers.aws_fake.wire import Refused
from caudal.providers.aws_fake.world import Fault, Instance, Offering, Times, World

Body = dict[str, Any]
MODES = ("", "down", "slow", "silent")


class Admin:
    """The endpoint's verbs, on one world."""

    def __init__(self, world: World, moto: Moto, instances: InstanceActions, spot: SpotActions) -> None:
        self._world, self._moto, self._instances, self._spot = world, moto, instances, spot
        self._verbs: dict[str, Callable[[Body], object]] = {
            "health": lambda _: None,
            "state": lambda _: self._state(),
            "calls": lambda _: {"calls": world.calls},
            "capacity": self._capacity,
            "vcpus": self._vcpus,
            "region": self._region,
            "fault": self._fault,
            "times": self._times,
            "clock": self._clock,
            "spot/interrupt": self._interrupt,
            "spot/price": self._price,
            "image": self._image,
            "reservation": self._reservation,
            "offering": self._offering,
            "machine/kill": lambda body: instances.end(self._one(body), at_once=True),
            "reset": lambda _: self._reset(),
        }

    def call(self, verb: str, body: Body) -> Body:
        """Do it. Raises Refused where there is no such verb, or the body is not what it takes."""
        if verb not in self._verbs:
            raise Refused("NotFound", f"there is no /_caudal/{verb}: {', '.join(self._verbs)}", 404)
        try:
            said = self._verbs[verb](body)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused("InvalidParameterValue", f"{verb}: {error!r}") from error
        return said if isinstance(said, dict) else {"ok": True}

    def _state(self) -> Body:
        now = self._world.now()
        return {
            "now": now,
            "instances": [
                {**asdict(one), "state": one.state(now)[1]} for one in self._world.instances.values()
            ],
            "reservations": [
                {**asdict(one), "free": self._world.free_in(one)} for one in self._world.reservations.values()
            ],
            "capacity": {"/".join(key): count for key, count in self._world.capacity.items()},
            "regions": {name: mode for name, (mode, _) in self._world.regions.items()},
        }

    def _capacity(self, body: Body) -> None:
        key = (str(body["region"]), str(body.get("zone", "*")), str(body.get("type", "*")))
        if body["count"] is None:
            self._world.capacity.pop(key, None)
        else:
            self._world.capacity[key] = int(body["count"])

    def _vcpus(self, body: Body) -> None:
        if body["count"] is None:
            self._world.vcpus.pop(body["region"], None)
        else:
            self._world.vcpus[body["region"]] = int(body["count"])

    def _region(self, body: Body) -> None:
        mode = body["mode"]
        if mode not in MODES:
            raise ValueError(f"mode is one of {MODES}")
        self._world.regions[body["region"]] = (mode, float(body.get("seconds", 30.0)))
        if body.get("machines") == "lose_power":
            for one in self._world.live():
                if one.region == body["region"]:
                    self._instances.end(one, at_once=True)

    def _fault(self, body: Body) -> None:
        moment = body.get("when", "before")
        if moment not in ("before", "after"):
            raise ValueError("when is before or after")
        self._world.faults.append(
            Fault(
                action=str(body.get("action", "")),
                region=str(body.get("region", "")),
                when=moment,
                code=str(body.get("code", "InternalError")),
                message=str(body.get("message", "An internal error has occurred")),
                status=int(body.get("status", 500)),
                left=int(body.get("times", 1)),
            )
        )

    def _times(self, body: Body) -> None:
        for one in fields(Times):
            if one.name in body:
                setattr(self._world.times, one.name, float(body[one.name]))

    def _clock(self, body: Body) -> None:
        self._world.shifted_s += max(0.0, float(body["advance_s"]))

    def _interrupt(self, body: Body) -> Body:
        chosen = [self._one(body)] if "instance" in body else self._world.live()
        told = [one for one in chosen if one.lifecycle == "spot"]
        for one in told:
            self._spot.interrupt(one)
        return {"told": [one.id for one in told]}

    def _price(self, body: Body) -> None:
        self._world.spot_prices[body["type"], body["zone"]] = str(body["price"])

    def _image(self, body: Body) -> None:
        (self._world.gone_images.add if body["gone"] else self._world.gone_images.discard)(body["id"])

    def _reservation(self, body: Body) -> None:
        self._world.reservations[body["id"]].total = int(body["count"])

    def _offering(self, body: Body) -> Body:
        starts_at = float(body["starts_at"])
        one = Offering(
            id=self._world.new_id("cbr"),
            region=body["region"],
            zone=body["zone"],
            machine_type=body["type"],
            count=int(body["count"]),
            starts_at=starts_at,
            ends_at=starts_at + float(body["hours"]) * 3600.0,
            fee_usd=Decimal(str(body["fee"])),
        )
        self._world.offerings[one.id] = one
        return {"id": one.id}

    def _one(self, body: Body) -> Instance:
        return self._world.instances[body["instance"]]

    def _reset(self) -> None:
        for one in self._world.live():
            self._instances.end(one, at_once=True)
        self._instances.forget()
        fresh = World(clock=self._world.clock, numbers=self._world.numbers)
        for part in fields(World):
            setattr(self._world, part.name, getattr(fresh, part.name))
        self._moto.reset()
