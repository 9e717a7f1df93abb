"""What a driver is asked to start for a gang: modules to run, their configuration, their surroundings.

Knows the configuration files of all roles; knows nothing about where they run or whether they should. A gang on this
machine is told where things lie here; one on another machine gets its own copies of what it needs (a token that is good
for it alone, its site's certificates) as files of its own, and never the secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from caudal.control.tokens import gang_token, run_token
from caudal.domain.errors import Failed
from caudal.domain.fleet import GatewaySpec
from caudal.domain.gang import Gang, GangSpec, ProcessSpec, Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec, TrainSpec, Workload
from caudal.policy.slots import gateway_number
from caudal.store.site_tls import AUTHORITY, site_files
from caudal.telemetry.report import CA_FILE, REPORT_URL, TOKEN_FILE

HOST = "127.0.0.1"
CONFIG = "config.json"
TOKEN = "token"
DOOR, DOOR_KEY = "door.pem", "door.key"
CACHE_ELSEWHERE = "~/.cache/caudal"
STATE_ELSEWHERE = "~/.local/share/caudal"

MODULES = {
    Role.COORDINATOR: "caudal.train.coordinator",
    Role.WORKER: "caudal.train.worker",
    Role.REPLICA: "caudal.serve.replica",
    Role.GATEWAY: "caudal.gateway",
}


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Where gangs find things. `secret` is the control API's; it is never handed on, only runs' tokens are
    made from it. `gateway` None: as the fleet says. In `gateway_dir` gateways keep keys and usage; without it
    they keep no usage."""

    api_url: str = ""
    token_file: str = ""
    blobs_url: str = ""
    cache_dir: str = ""
    secret: str = field(default="", repr=False)
    certificates: str = ""
    gateway: GatewaySpec | None = None
    gateway_certificate: str = ""  # and its key: files of this machine, where the gateway has TLS
    gateway_key: str = ""
    gateway_state_file: str = ""
    gateway_dir: str = ""
    elsewhere: frozenset[str] = frozenset()  # sites whose machines are not this one
    ca_file: str = ""  # of the control API's certificate, where it is called over TLS


def gang_spec(gang: Gang, state: State, settings: LaunchSettings, address: str = "") -> GangSpec:
    """What to start for a gang; `address` is its machine's, where that is not this one. Raises Failed where the books no
    longer hold what it is for, or the machine has no address yet."""
    threads = max(1, int(gang.resources.cpus))
    elsewhere = gang.site in settings.elsewhere
    if elsewhere and not address:
        raise Failed(f"the machine of {gang.id} has no address yet", remedy="nothing: it is tried again")
    config = dict(_config(gang, state, settings, threads))
    files = {}
    if elsewhere:
        config |= _at(config, address, bool(settings.certificates))
        files = _carried(gang, settings)
    files[CONFIG] = json.dumps(config, sort_keys=True, indent=1)
    process = ProcessSpec(
        argv=("{python}", "-m", MODULES[gang.role], "{dir}/" + CONFIG),
        env=_env(gang, settings, threads, elsewhere),
        files=files,
    )
    return GangSpec(
        *(gang.id, gang.site, gang.node, gang.epoch, (process,)),
        resources=gang.resources,
        lease_id=gang.lease_id,
        role=gang.role,
    )


def _at(config: Mapping[str, Any], address: str, certified: bool) -> dict[str, Any]:
    """What differs for a gang on another machine: paths are its user's own or beside its configuration."""
    told: dict[str, Any] = {}
    if (
        "routes_url" not in config
    ):  # a gateway listens where the fleet says; all others where their machine is
        told["host"] = address
    if "cache_dir" in config:
        told["cache_dir"] = CACHE_ELSEWHERE
    if config.get("certificates") or (certified and "slots" in config):
        told["certificates"] = "."  # those of its site are carried there
    if "state_file" in config:
        told["state_file"] = f"{STATE_ELSEWHERE}/{config['gang']}/routes.json"
        told["keys_file"] = f"{STATE_ELSEWHERE}/{config['gang']}/keys.json"
        told["usage_dir"] = f"{STATE_ELSEWHERE}/usage" if config["usage_dir"] else ""
        if config["certificate"]:
            told |= {"certificate": DOOR, "certificate_key": DOOR_KEY}
    return told


def _carried(gang: Gang, settings: LaunchSettings) -> dict[str, str]:
    """The files that a gang on another machine is given, readable by its user only."""
    files = {TOKEN: gang_token(settings.secret, gang.id) + "\n"}
    if settings.certificates:
        folder = Path(settings.certificates)
        certificate, key = site_files(folder, gang.site)
        for file in (folder / AUTHORITY, certificate, key):
            files[file.name] = file.read_text()
    if gang.role is Role.GATEWAY and settings.gateway_certificate:
        files[DOOR] = Path(settings.gateway_certificate).read_text()
        files[DOOR_KEY] = Path(settings.gateway_key).read_text()
    return files


def _env(gang: Gang, settings: LaunchSettings, threads: int, elsewhere: bool) -> dict[str, str]:
    ca_file = ("{dir}/" + AUTHORITY if elsewhere else settings.ca_file) if settings.ca_file else ""
    return {
        REPORT_URL: f"{settings.api_url}/api/v1/gangs/{gang.id}/report",
        TOKEN_FILE: "{dir}/" + TOKEN if elsewhere else settings.token_file,
        **({CA_FILE: ca_file} if ca_file else {}),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # several gangs share a node: a waiting thread must not spin
        "PYTHONUNBUFFERED": "1",
    }


def _config(gang: Gang, state: State, settings: LaunchSettings, threads: int) -> Mapping[str, Any]:
    if gang.role is Role.GATEWAY:
        return _gateway(gang, state, settings)
    workload = _workload(gang, state)
    common = {
        "site": gang.site,
        "gang": gang.id,
        "blobs_url": settings.blobs_url,
        "cache_dir": settings.cache_dir,
    }
    if gang.role is Role.REPLICA:
        model = _served(gang, workload)
        asked: dict[str, Any] = {"model": model.id, "context": model.context, "slots": model.slots}
        asked |= {"engine": model.engine, "engine_args": model.engine_args, "opening": model.opening}
        asked |= {"accelerators": gang.resources.accelerators}
        return {**common, **asked, "version": gang.model_version, "threads": threads, "host": HOST}
    assert isinstance(workload.spec, TrainSpec), f"{gang.id} is a {gang.role} of a service"
    run = {
        **common,
        "run": workload.name,
        "generation": gang.generation,
        "spec": msgspec.to_builtins(workload.spec),
        "token": run_token(settings.secret, workload.name, gang.generation),
        "certificates": settings.certificates,
    }
    return {**run, "host": HOST} if gang.role is Role.COORDINATOR else {**run, "threads": threads}


def _gateway(gang: Gang, state: State, settings: LaunchSettings) -> Mapping[str, Any]:
    spec = settings.gateway or (state.fleet.gateway if state.fleet else GatewaySpec())
    number = gateway_number(gang.slot)
    state_file = settings.gateway_state_file or f"{settings.cache_dir}/gateway-routes.json"
    return {
        "host": spec.host,
        "port": spec.port + number,
        "certificate": settings.gateway_certificate,
        "certificate_key": settings.gateway_key,
        "hedge": spec.hedge,
        "traces": spec.traces,
        "processes": spec.processes,
        "routes_url": f"{settings.api_url}/api/v1/routes",
        "state_file": state_file.replace(".json", f"-{number}.json") if number else state_file,
        "site": gang.site,
        "gang": gang.id,
        "certificates": settings.certificates if settings.elsewhere else "",
        "keys": spec.keys,
        "keys_url": f"{settings.api_url}/api/v1/gateway/keys",
        "keys_file": f"{settings.gateway_dir or settings.cache_dir}/gateway-keys.json",
        "usage_url": f"{settings.api_url}/api/v1/gateway/usage",
        "usage_dir": f"{settings.gateway_dir}/gateway-usage" if settings.gateway_dir else "",
    }


def _workload(gang: Gang, state: State) -> Workload:
    found = next((w for w in state.workloads if w.name == gang.workload), None)
    if found is None or found.generation != gang.generation:
        raise Failed(f"{gang.id} is of a spec that has changed since", remedy="nothing: it is replaced")
    return found


def _served(gang: Gang, workload: Workload) -> ServedModel:
    assert isinstance(workload.spec, ServiceSpec), f"{gang.id} is a replica of a run"
    found = next((m for m in workload.spec.models if m.id == gang.model), None)
    if found is None:
        raise Failed(f"{workload.name} no longer serves {gang.model}", remedy="nothing: it is replaced")
    return found
