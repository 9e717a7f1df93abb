"""What `caudal doctor` asks of a fleet's drivers: whether Ray or Slurm answers, is new enough, and is set well. And
whether machines elsewhere could read what they are told to."""

from __future__ import annotations

from caudal.composition.world import elsewhere
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import DriverSpec, FleetSpec
from caudal.drivers.ray.driver import RayDriver
from caudal.drivers.slurm.check import advice
from caudal.drivers.slurm.driver import open_driver
from caudal.ports import Check
from caudal.store.home import Home


def driver_checks(fleet: FleetSpec, place: Home) -> list[Check]:
    """What every driver of a fleet says. Raises nothing."""
    found: list[Check] = []
    for spec in fleet.drivers:
        name = f"driver {spec.name}"
        try:
            if spec.kind == "ray":
                found.append(_ray(spec, name))
            elif spec.kind == "slurm":
                found += _slurm(spec, name)
        except CaudalError as error:
            said = f"{error.what}: {error.why}" if error.why else error.what
            found.append(Check(name, "fail", said, error.remedy))
    return [*found, *_objects(fleet, place)]


def _ray(spec: DriverSpec, name: str) -> Check:
    if not spec.address:
        return Check(name, "ok", "each site's first node begins a cluster; none to ask before that")
    driver = RayDriver(spec.name, spec.address)
    try:
        return Check(name, "ok", f"Ray {driver.version()} at {spec.address}")
    finally:
        driver.close()


def _slurm(spec: DriverSpec, name: str) -> list[Check]:
    found = open_driver(spec.name, spec).check()
    where = spec.address or "this machine"
    text = f"Slurm {found['version']} at {where}, {len(found['nodes'])} nodes, folder {found['folder']}"
    settings = {str(key): str(value) for key, value in dict(found["settings"]).items()}
    warned = [Check(f"{name} settings", "warn", said, "set it in slurm.conf") for said in advice(settings)]
    return [Check(name, "ok", text), *warned]


def _objects(fleet: FleetSpec, place: Home) -> list[Check]:
    """Gangs on other machines read and write the object store by its address."""
    fakes = {p.name for p in fleet.providers if p.endpoint}
    away = sorted(s for s in elsewhere(fleet) if (site := fleet.site(s)) and site.provider not in fakes)
    if not away or not place.blobs_url.startswith("file:"):
        return []
    said = f"{place.blobs_url} is a folder, and the machines of {', '.join(away)} are others"
    remedy = "set CAUDAL_BLOBS_URL to s3://, az:// or gs://, unless that folder is the same on all of them"
    return [Check("object store", "warn", said, remedy)]
