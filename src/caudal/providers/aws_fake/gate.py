"""The gate: takes every request of the SDK, lets it fail where it is to fail, and answers it or has moto answer.

One request at a time is inside; those that a slow or silent region holds up wait outside.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from caudal.providers.aws_fake.account import quotas, regions
from caudal.providers.aws_fake.admin import Admin
from caudal.providers.aws_fake.instances import InstanceActions
from caudal.providers.aws_fake.machines import Machines
from caudal.providers.aws_fake.moto_backend import Moto
from caudal.providers.aws_fake.reservations import ReservationActions
from caudal.providers.aws_fake.spot import SpotActions
from caudal.providers.aws_fake.wire import MAX_BODY, Answer, Ask, Refused, parse, scope
from caudal.providers.aws_fake.world import World

ADMIN = "/_caudal/"
JSON = "application/json"
AWS_JSON = "application/x-amz-json-1.1"
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
LOOK_S = 0.1

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Gate:
    """A WSGI application. `folder`: where machines run as processes; None: they only exist on paper."""

    def __init__(self, folder: Path | None = None, world: World | None = None) -> None:
        self.world = world or World()
        self._moto = Moto()
        self._machines = Machines(folder) if folder is not None else None
        self._instances = InstanceActions(self.world, self._moto, self._machines)
        self._reservations = ReservationActions(self.world)
        self._spot = SpotActions(self.world)
        self._admin = Admin(self.world, self._moto, self._instances, self._spot)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._actions: dict[str, Callable[[Ask], Answer]] = {
            "RunInstances": self._instances.run,
            "DescribeInstances": self._instances.describe,
            "TerminateInstances": self._instances.terminate,
            "CreateTags": self._instances.tag,
            "DeleteTags": self._instances.tag,
            "CreateCapacityReservation": self._reservations.create,
            "DescribeCapacityReservations": self._reservations.describe,
            "CancelCapacityReservation": self._reservations.cancel,
            "DescribeCapacityBlockOfferings": self._reservations.offerings,
            "PurchaseCapacityBlock": self._reservations.purchase,
            "DescribePlacementGroups": self._reservations.groups,
            "CreatePlacementGroup": self._reservations.create_group,
            "DeletePlacementGroup": self._reservations.delete_group,
            "DescribeRegions": regions,
            "DescribeSpotInstanceRequests": self._spot.requests,
            "DescribeSpotPriceHistory": self._spot.prices,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """One request."""
        try:
            _same_machine(environ)
            body = _body(environ)
            answer = self._answer(environ, body)
        except Refused as refused:
            answer = refused.answer()
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status} {REASONS.get(answer.status, 'Unknown')}", headers)
        return [answer.body]

    def move_on(self) -> None:
        """What time does: to be called now and then, and before every request."""
        with self._lock:
            self._reservations.move_on()
            self._instances.move_on()

    def admin(self, verb: str, **body: Any) -> dict[str, Any]:
        """`/_caudal/VERB` from within this process."""
        with self._lock:
            self.move_on()
            return self._admin.call(verb, body)

    def close(self) -> None:
        """End every machine, and let go of whoever waits."""
        self._ended.set()
        if self._machines is not None:
            with self._lock:
                self._machines.end_all()

    def _answer(self, environ: dict[str, Any], body: bytes) -> Answer:
        path = str(environ.get("PATH_INFO", "/"))
        if path.startswith(ADMIN):
            return self._managed(path.removeprefix(ADMIN), body)
        region, service = scope(str(environ.get("HTTP_AUTHORIZATION", "")))
        self._weather(region)
        with self._lock:
            self.move_on()
            target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
            if service == "ec2":
                form = parse(body)
                return self._ec2(Ask(region, form.get("Action", ""), form))
            if service == "servicequotas" and target.endswith(".ListServiceQuotas"):
                return Answer(200, json.dumps({"Quotas": quotas(self.world, region)}).encode(), AWS_JSON)
            kept = ("HTTP_X_AMZ_TARGET", "CONTENT_TYPE", "HTTP_ACCEPT")
            headers = {key: str(environ[key]) for key in kept if key in environ}
            method = str(environ.get("REQUEST_METHOD", "POST"))
            return self._moto.call(method, path, body, region or "us-east-1", service or "sts", headers)

    def _ec2(self, ask: Ask) -> Answer:
        self.world.note(ask)
        self._fail(ask, "before")
        if ask.get("DryRun") == "true":
            raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        action = self._actions.get(ask.action)
        answer = action(ask) if action is not None else self._moto.ec2(ask.region, ask.form)
        if answer.status == 501:
            raise Refused("InvalidAction", f"this fake does not know {ask.action}")
        self._fail(ask, "after")
        return answer

    def _fail(self, ask: Ask, moment: str) -> None:
        fault = self.world.fault(ask, moment)
        if fault is not None:
            raise Refused(fault.code, fault.message, fault.status)

    def _weather(self, region: str) -> None:
        """The region as it is: down at once, slow, or silent until it is changed or the caller has gone."""
        mode, seconds = self.world.regions.get(region, ("", 0.0))
        if mode in ("slow", "silent"):
            until = time.monotonic() + seconds
            while time.monotonic() < until and not self._ended.is_set():
                if self.world.regions.get(region, ("", 0.0))[0] != mode:
                    break
                self._ended.wait(LOOK_S)
        if mode in ("down", "silent"):
            raise Refused("Unavailable", "The service is unavailable. Please try again shortly.", 503)

    def _managed(self, verb: str, body: bytes) -> Answer:
        try:
            asked = json.loads(body or b"{}")
        except ValueError as error:
            raise Refused("InvalidParameterValue", "the body is not JSON") from error
        if not isinstance(asked, dict):
            raise Refused("InvalidParameterValue", "the body is not a JSON object")
        return Answer(200, json.dumps(self.admin(verb.strip("/"), **asked)).encode(), JSON)


def _same_machine(environ: dict[str, Any]) -> None:
    """No web page may drive the fake, which runs scripts: neither from its own address, nor from one whose name was
    made to mean this machine. Raises Refused."""
    host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0]
    if "HTTP_ORIGIN" in environ or host not in ("127.0.0.1", "localhost"):
        raise Refused("AccessDenied", "this fake is for programs of this machine", 403)


def _body(environ: dict[str, Any]) -> bytes:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError as error:
        raise Refused("InvalidParameterValue", "the length is not a number") from error
    if not 0 <= length <= MAX_BODY:
        raise Refused("RequestEntityTooLarge", "the request is too long", 413)
    data: bytes = environ["wsgi.input"].read(length)
    return data
