"""`ray start` for a site's head and for the nodes that join it, and which Ray is new enough.

What makes a loss known soon is set here: the head asks every node for its health, and a node that has not answered
often enough is dead. Ray's defaults (2.60: after 5 s every 3 s, 10 s time, 5 times) are made for clusters that
would rather wait. Ray's autoscaler is off: its monitor is not even started.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping

from caudal.domain.errors import Failed, UsageError
from caudal.domain.fleet import Resources
from caudal.drivers.ray.names import lease_resource

MIN_RAY = (2, 56)
"""The oldest that was tried (2026-11). 2.51 and older have no tokens; 2.52.1 has, and refuses its own when logs are read."""

HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""ray_config_def.h, Ray 2.60. Set on the head, which does the asking; nodes get it from there."""

HEAD_PORT = 6379
JOBS_PORT = 8265
OBJECT_STORE_BYTES = 128 << 20  # gangs do not use it; Ray would take 30 % of the memory


def check_version(version: str, where: str) -> None:
    """Raises Failed, with what to do, where that Ray is too old; a version that says nothing is one."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) >= MIN_RAY:
        return
    oldest = ".".join(str(number) for number in MIN_RAY)
    raise Failed(
        f"Ray {version or '(unknown version)'} is too old",
        where=where,
        why=f"Caudal needs Ray {oldest} or newer: older ones have no tokens, or do not heed them everywhere",
        remedy=f'install "ray[default]>={oldest}" on the site\'s machines and start its head again',
    )


def head_command(
    lease_id: str,
    resources: Resources,
    *,
    node_address: str,
    token_file: str,
    port: int | str = HEAD_PORT,
    jobs_host: str = "127.0.0.1",
    jobs_port: int | str = JOBS_PORT,
    more: tuple[str, ...] = (),
) -> list[str]:
    """Start a site's head on its first node, which runs gangs like any other. Blocks for as long as it lives.

    `token_file` is the path, on that machine, of the cluster's token, readable by its owner only. The Jobs API
    listens at `jobs_host`; one that is not loopback is refused without a token. Raises UsageError."""
    if not token_file and not _loopback(jobs_host):
        raise UsageError(
            f"the Jobs API would listen on {jobs_host} for anybody",
            why="whoever reaches a Ray head without a token runs programs there",
            remedy="give a token file, or let it listen on 127.0.0.1 and reach it through a tunnel",
        )
    return [
        *_environment(token_file),
        *("ray", "start", "--head", f"--node-ip-address={node_address}", f"--port={port}"),
        *(f"--dashboard-host={jobs_host}", f"--dashboard-port={jobs_port}", "--include-dashboard=true"),
        *("--no-monitor",),
        *_node(lease_id, resources),
        *more,
    ]


def join_command(
    lease_id: str,
    head_address: str,
    resources: Resources,
    *,
    token_file: str,
    node_address: str = "",
    more: tuple[str, ...] = (),
) -> list[str]:
    """Join a node to its site's head (`host:port`) under its lease. Blocks for as long as it belongs to it."""
    own = (f"--node-ip-address={node_address}",) if node_address else ()
    start = ("ray", "start", f"--address={head_address}", *own)
    return [*_environment(token_file), *start, *_node(lease_id, resources), *more]


def _environment(token_file: str) -> list[str]:
    settings: dict[str, str] = {**HEALTH, "RAY_worker_niceness": "0", "RAY_enable_metrics_collection": "0"}
    if token_file:
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_file}
    return ["env", *(f"{name}={value}" for name, value in settings.items())]


def _node(lease_id: str, resources: Resources) -> list[str]:
    own: Mapping[str, float] = {lease_resource(lease_id): 1}
    if resources.neuron_cores:
        own = {**own, "neuron_cores": resources.neuron_cores}
    words = [
        f"--num-cpus={int(resources.cpus)}",
        f"--resources={json.dumps(own, sort_keys=True)}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--block",
    ]
    if resources.accelerators and not resources.neuron_cores:
        words.append(f"--num-gpus={resources.accelerators}")
    if resources.memory_bytes:
        words.append(f"--memory={resources.memory_bytes}")
    return words


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
