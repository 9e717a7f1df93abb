"""Spot: requests with their interruption notices, and a history of prices that has not always the same price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from caudal.catalog.aws_types import BY_NAME
from caudal.providers.aws_fake.wire import Answer, Ask, when, xml
from caudal.providers.aws_fake.world import Instance, World

SHARE = Decimal("0.4")  # of the list price, in zone a; a little more in each further one
STEP = Decimal("0.02")
LINUX = "Linux/UNIX (Amazon VPC)"


class SpotActions:
    """The actions, on one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def requests(self, ask: Ask) -> Answer:
        """DescribeSpotInstanceRequests."""
        filters, ids = ask.filters(), ask.many("SpotInstanceRequestId")
        rows = [
            self._row(one)
            for one in self._world.instances.values()
            if one.spot_id
            and one.region == ask.region
            and (not ids or one.spot_id in ids)
            and one.spot_id in filters.get("spot-instance-request-id", [one.spot_id])
            and one.id in filters.get("instance-id", [one.id])
        ]
        page, token = ask.page(rows)
        return xml(ask.action, {"spotInstanceRequestSet": page, "nextToken": token})

    def prices(self, ask: Ask) -> Answer:
        """DescribeSpotPriceHistory: the price that holds, in each of three zones."""
        kinds = ask.many("InstanceType") or list(BY_NAME)
        rows = []
        for kind in kinds:
            for number, letter in enumerate("abc"):
                zone = f"{ask.region}{letter}"
                price = self._world.spot_prices.get((kind, zone)) or self._usual(kind, number)
                if price and ask.get("AvailabilityZone", zone) == zone:
                    rows.append(
                        {
                            "instanceType": kind,
                            "productDescription": LINUX,
                            "spotPrice": price,
                            "availabilityZone": zone,
                            "timestamp": when(self._world.now()),
                        }
                    )
        page, token = ask.page(rows)
        return xml(ask.action, {"spotPriceHistorySet": page, "nextToken": token})

    def interrupt(self, one: Instance) -> None:
        """Tell it that it will be taken back. Said twice it stays with the first time."""
        if one.told_at is None:
            one.told_at = self._world.now()
            one.leaves_at = one.told_at + self._world.times.notice_s

    def _usual(self, kind: str, number: int) -> str:
        known = BY_NAME.get(kind)
        if known is None or known.price_usd_per_hour is None:
            return ""
        return f"{known.price_usd_per_hour * (SHARE + STEP * number):.6f}"

    def _row(self, one: Instance) -> dict[str, Any]:
        now = self._world.now()
        if not one.exists(now):
            state, code = "closed", "instance-terminated-by-user"
            if one.told_at is not None:
                code = "instance-terminated-no-capacity"
        elif one.told_at is not None:
            state, code = "active", "marked-for-termination"
        else:
            state, code = "active", "fulfilled"
        changed = one.told_at if one.told_at is not None else one.launched_at
        return {
            "spotInstanceRequestId": one.spot_id,
            "state": state,
            "status": {"code": code, "updateTime": when(changed), "message": code},
            "instanceId": one.id,
            "createTime": when(one.launched_at),
            "type": "one-time",
            "launchedAvailabilityZone": one.zone,
            "productDescription": "Linux/UNIX",
        }
