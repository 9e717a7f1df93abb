"""What a driver is asked to start for a gang: modules to run, their configuration, their surroundings.

Knows the configuration files of all roles; knows nothing about where they run or whether they should.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from caudal.domain.errors import Failed
from caudal.domain.fleet import GatewaySpec
from caudal.domain.gang import Gang, GangSpec, ProcessSpec, Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec, TrainSpec, Workload
from caudal.policy.slots import gateway_number
from caudal.telemetry.report import REPORT_URL, TOKEN_FILE

HOST = "127.0.0.1"
CONFIG = "config.json"

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
    gateway_state_file: str = ""
    gateway_dir: str = ""


def run_token(secret: str, run: str, generation: int) -> str:
    """The token that the coordinator and the workers of a run share: made, so that nothing has to be kept."""
    message = f"caudal run {run} generation {generation}"
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()


def gang_spec(gang: Gang, state: State, settings: LaunchSettings) -> GangSpec:
    """What to start for a gang. Raises Failed where the books no longer hold what it is for."""
    threads = max(1, int(gang.resources.cpus))
    process = ProcessSpec(
        argv=("{python}", "-m", MODULES[gang.role], "{dir}/" + CONFIG),
        env=_env(gang, settings, threads),
        files={CONFIG: json.dumps(_config(gang, state, settings, threads), sort_keys=True, indent=1)},
    )
    return GangSpec(
        *(gang.id, gang.site, gang.node, gang.epoch, (process,)),
        resources=gang.resources,
        lease_id=gang.lease_id,
        role=gang.role,
    )


def _env(gang: Gang, settings: LaunchSettings, threads: int) -> dict[str, str]:
    return {
        REPORT_URL: f"{settings.api_url}/api/v1/gangs/{gang.id}/report",
        TOKEN_FILE: settings.token_file,
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
        asked |= {"engine": model.engine, "engine_args": model.engine_args}
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
        "hedge": spec.hedge,
        "traces": spec.traces,
        "processes": spec.processes,
        "routes_url": f"{settings.api_url}/api/v1/routes",
        "state_file": state_file.replace(".json", f"-{number}.json") if number else state_file,
        "site": gang.site,
        "gang": gang.id,
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
