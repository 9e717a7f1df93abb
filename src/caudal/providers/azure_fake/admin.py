"""The fake's own door, `/_caudal/`: what it holds, and how it is made to behave.

GET `state`: machines, interfaces, disks, calls. POST, each with a JSON object:

- `reset` {}: as at the beginning
- `times` {boot_s, delete_s, fail_s}; `page` {size}; `leftovers` {keep}: interfaces and disks outlive their machine
- `capacity` {size, location, zone?, count, later?, code?}: how many machines there are; `count` null: no bound
- `quota` {location, name, limit}; `restrict` {size, location, zones?}; `missing` {names}: ids that do not exist
- `reserve` {group_id, location, reservations: [{name, size, capacity, zone?}]}
- `fault` {kind, region?, method?, path?, times?, ...}: `refuse` {status, code, message, retry_after_s?}, `slow`
  {seconds}, `silent`, `lost_answer`; `region` `*` is all; `times` null: until `calm` {}
- `evict` {name}; `power` {name, power}; `fail` {name, code, message}: what befalls a machine that is there
- `plant` {kind, group, name, body}: something that nobody asked for
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from caudal.providers.azure_fake.arm import NAME, Answer, Refused, Request, Row
from caudal.providers.azure_fake.world import Limit, Vm, World


def handle(world: World, request: Request, now: float) -> Answer:
    """One request below `/_caudal/`. Raises Refused."""
    verb = request.parts[1] if len(request.parts) > 1 else ""
    if request.method == "GET" and verb == "state":
        return Answer(200, _state(world, now))
    change = CHANGES.get(verb)
    if request.method != "POST" or change is None:
        raise Refused(404, "NotFound", f"known: GET state; POST {', '.join(sorted(CHANGES))}")
    try:
        change(world, request.body, now)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(400, "InvalidRequestContent", f"{verb}: {error!r}") from error
    return Answer(200, {"ok": True})


def fault_of(world: World, request: Request) -> Row:
    """The first fault that the request meets; empty where none. One with `times` is used up by it."""
    for fault in world.faults:
        if not _meets(world, fault, request):
            continue
        if fault.get("times") is not None:
            fault["times"] -= 1
            if fault["times"] <= 0:
                world.faults = [one for one in world.faults if one is not fault]
        return fault
    return {}


def refusal(fault: Row) -> Answer:
    """The answer of a fault that refuses."""
    status = int(fault.get("status", 503))
    default = {429: "TooManyRequests", 503: "ServiceUnavailable"}.get(status, "InternalServerError")
    text = str(fault.get("message", "The fake was told to refuse this."))
    pause = str(fault.get("retry_after_s", ""))
    return Refused(status, str(fault.get("code", default)), text, retry_after_s=pause).answer


def _meets(world: World, fault: Row, request: Request) -> bool:
    if fault.get("method") and fault["method"] != request.method:
        return False
    if fault.get("path") and str(fault["path"]).lower() not in request.path.lower():
        return False
    region = str(fault.get("region", "*")).lower()
    return region == "*" or region == _region_of(world, request)


def _region_of(world: World, request: Request) -> str:
    """The region that a call is about; empty where it is about none (lists of a whole resource group)."""
    if request.body.get("location"):
        return str(request.body["location"]).lower()
    if request.after("locations"):
        return request.after("locations").lower()
    group = request.after("resourceGroups").lower()
    vm = world.vms.get((group, request.after("virtualMachines").lower()))
    nic = world.nics.get((group, request.after("networkInterfaces").lower()))
    if vm is not None:
        return vm.location
    return str(nic["location"]).lower() if nic is not None else ""


def _state(world: World, now: float) -> Row:
    machines = [
        {
            "name": vm.name,
            "group": vm.group,
            "size": vm.size,
            "location": vm.location,
            "zone": vm.zone,
            "tags": vm.body.get("tags") or {},
            "making": world.making(vm, now),
            "power": vm.attributes.get("power", vm.power),
            "priority": vm.inner.get("priority", "Regular"),
            "reservation": vm.reservation,
            "pid": world.machines.pid(vm.name),
        }
        for _, vm in sorted(world.vms.items())
    ]
    nics, disks = [r["name"] for r in world.nics.values()], [r["name"] for r in world.disks.values()]
    return {
        "machines": machines,
        "nics": nics,
        "disks": disks,
        "made": world.made,
        "calls": list(world.calls),
    }


def _vm(world: World, body: Row) -> Vm:
    return next(vm for vm in world.vms.values() if vm.name == body["name"])


def _reset(world: World, body: Row, now: float) -> None:
    world.reset()


def _times(world: World, body: Row, now: float) -> None:
    for name in ("boot_s", "delete_s", "fail_s"):
        if name in body:
            setattr(world.times, name, float(body[name]))


def _page(world: World, body: Row, now: float) -> None:
    world.page = max(1, int(body["size"]))


def _leftovers(world: World, body: Row, now: float) -> None:
    world.keep_leftovers = bool(body["keep"])


def _capacity(world: World, body: Row, now: float) -> None:
    key = (str(body["size"]).lower(), str(body["location"]).lower(), str(body.get("zone", "")))
    if body["count"] is None:
        world.limits.pop(key, None)
    else:
        world.limits[key] = Limit(int(body["count"]), bool(body.get("later")), str(body.get("code", "")))


def _quota(world: World, body: Row, now: float) -> None:
    world.quotas[str(body["location"]).lower(), str(body["name"])] = int(body["limit"])


def _restrict(world: World, body: Row, now: float) -> None:
    world.restrictions.append(
        {"size": body["size"], "location": body["location"], "zones": body.get("zones")}
    )


def _missing(world: World, body: Row, now: float) -> None:
    world.missing |= {str(name) for name in body["names"]}


def _reserve(world: World, body: Row, now: float) -> None:
    rows = [{**one, "capacity": int(one["capacity"])} for one in body["reservations"]]
    world.reservations[str(body["group_id"]).lower()] = {"location": body["location"], "reservations": rows}


def _fault(world: World, body: Row, now: float) -> None:
    if body["kind"] not in ("refuse", "slow", "silent", "lost_answer"):
        raise ValueError(body["kind"])
    world.faults.append(dict(body))


def _calm(world: World, body: Row, now: float) -> None:
    world.faults = []


def _evict(world: World, body: Row, now: float) -> None:
    vm = _vm(world, body)
    if vm.inner.get("priority") != "Spot":
        raise ValueError("only spot machines are evicted")
    world.delete(vm, now)


def _power(world: World, body: Row, now: float) -> None:
    _vm(world, body).attributes["power"] = str(body["power"])


def _fail(world: World, body: Row, now: float) -> None:
    vm = _vm(world, body)
    vm.failure = (str(body["code"]), str(body.get("message", "")))
    vm.settles_at = min(vm.settles_at, now)


def _plant(world: World, body: Row, now: float) -> None:
    key = (str(body["group"]).lower(), str(body["name"]).lower())
    if not NAME.fullmatch(str(body["name"])):
        raise ValueError("no name for a resource")
    row: Any = body["body"]
    if body["kind"] == "vm":
        world.create(key, str(body["name"]), row, None, now)
    else:
        table = {"nic": world.nics, "disk": world.disks}[body["kind"]]
        table[key] = {**row, "name": body["name"]}


CHANGES: dict[str, Callable[[World, Row, float], None]] = {
    "reset": _reset,
    "times": _times,
    "page": _page,
    "leftovers": _leftovers,
    "capacity": _capacity,
    "quota": _quota,
    "restrict": _restrict,
    "missing": _missing,
    "reserve": _reserve,
    "fault": _fault,
    "calm": _calm,
    "evict": _evict,
    "power": _power,
    "fail": _fail,
    "plant": _plant,
}
