"""`caudal doctor`: what is wrong here, and what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil

from caudal.cli.client import Client
from caudal.cli.fleet_checks import fleet_checks
from caudal.cli.output import console, json_option, plain, print_json, size
from caudal.domain.errors import CaudalError, UsageError
from caudal.domain.fleet import ApiSpec, FleetSpec, GatewaySpec
from caudal.domain.gang import Role
from caudal.serve.engines import installed
from caudal.spec.files import load
from caudal.store.blobs import open_blobs
from caudal.store.home import Home, home
from caudal.store.state import open_store

NEEDED_DISK_BYTES = 2 << 30
NEEDED_MEMORY_BYTES = 2 << 30
EXTRAS = {"torch": "train", "xllamacpp": "serve", "gguf": "train", "nicegui": "console"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, and what to do if not. One with `warn` is well
    for now."""

    check: str
    ok: bool
    seen: str
    remedy: str = ""
    warn: bool = False


def _machine(place: Home) -> list[Finding]:
    root = place.root if place.root.exists() else place.root.parent
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    memory = psutil.virtual_memory()
    return [
        Finding("python", True, f"{platform.python_version()} on {platform.platform()}"),
        Finding("cores", True, f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"),
        Finding(
            "memory",
            memory.available >= NEEDED_MEMORY_BYTES,
            f"{size(memory.available)} of {size(memory.total)} free",
            "the starter run and a small assistant need about 2 GiB",
        ),
        Finding(
            "disk",
            free >= NEEDED_DISK_BYTES,
            f"{size(free)} free at {root}",
            f"free {size(NEEDED_DISK_BYTES)}, or set CAUDAL_HOME to a larger disk",
        ),
    ]


def _extras() -> list[Finding]:
    return [
        Finding(
            f"package {package}",
            importlib.util.find_spec(package) is not None,
            "installed" if importlib.util.find_spec(package) else "missing",
            f"pip install 'caudal[{extra}]'",
        )
        for package, extra in EXTRAS.items()
    ]


def _engines() -> list[Finding]:
    """One that is missing is no fault: only services that ask for it need it."""
    return [
        Finding(f"engine {name}", True, found or "not installed here; needed where a service asks for it")
        for name, found in installed().items()
    ]


def _state(place: Home) -> list[Finding]:
    findings = []
    for name, look in (("state", _read_state), ("blobs", _read_blobs)):
        try:
            findings.append(Finding(name, True, look(place)))
        except CaudalError as error:
            findings.append(Finding(name, False, error.what, error.remedy or error.why))
    return findings


def _made(place: Home) -> bool:
    """Whether there is a state to look into: opening what is not there would make it."""
    file = place.database_url.removeprefix("sqlite:///")
    return file == place.database_url or not place.root.is_dir() or Path(file).exists()


def _read_state(place: Home) -> str:
    if not place.root.exists() or not _made(place):
        return f"nothing is in {place.root} yet; `caudal up` makes it"
    state = open_store(place.database_url).read()
    return f"{place.root}: version {state.version}, {len(state.workloads)} workloads"


def _read_blobs(place: Home) -> str:
    if not place.root.exists():
        return "not made yet"
    blobs = open_blobs(place.blobs_url)
    probe = "doctor/probe"
    blobs.put(probe, b"probe")
    blobs.get(probe)
    blobs.delete(probe)
    return f"{place.blobs_url}: written, read and deleted"


def _control(place: Home) -> list[Finding]:
    client = Client(place, timeout_s=3.0)
    if client.answers():
        return [Finding("control process", True, f"answers at {client.url}")]
    ports = _ports(place)
    taken = [port for port in ports if _listens(port)]
    return [
        Finding("control process", True, "none runs for this state directory"),
        Finding(
            "ports",
            not taken,
            f"in use: {taken}" if taken else f"free: {ports}",
            "end what uses them, or set api.port and gateway.port in the fleet file",
        ),
    ]


def _ports(place: Home) -> list[int]:
    """Where the fleet of the state directory will listen; without its gateway, where that runs already."""
    usual = [ApiSpec().port, GatewaySpec().port]
    try:
        state = open_store(place.database_url).read() if place.root.exists() and _made(place) else None
    except CaudalError:
        return usual  # what is wrong is said by the check of the state
    if state is None or state.fleet is None:
        return usual
    runs = any(g.role is Role.GATEWAY and g.ended_at is None for g in state.gangs)
    return [state.fleet.api.port] if runs else [state.fleet.api.port, *state.fleet.gateway_ports()]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fleet(place: Home, paths: Sequence[str]) -> list[Finding]:
    """What the fleet's providers say of themselves: of the fleet in the files that are given, else of the one in the
    state directory."""
    try:
        fleet = _given(paths) if paths else _known(place)
    except CaudalError as error:
        return [Finding("fleet file", False, error.what, error.remedy or error.why)]
    if fleet is None:
        return []
    return [
        Finding(check.name, check.state != "fail", check.said, check.remedy, check.state == "warn")
        for check in fleet_checks(fleet, place)
    ]


def _given(paths: Sequence[str]) -> FleetSpec:
    fleets = [spec for path in paths for spec in load(path) if isinstance(spec, FleetSpec)]
    if len(fleets) != 1:
        raise UsageError(f"{len(fleets)} fleets are in these files", remedy="name the file of one fleet")
    return fleets[0]


def _known(place: Home) -> FleetSpec | None:
    if not place.root.is_dir() or not _made(place):
        return None
    try:
        return open_store(place.database_url).read().fleet
    except CaudalError:
        return None  # what is wrong is said by the check of the state


@click.command("doctor")
@click.argument("paths", nargs=-1)
@json_option
@click.pass_obj
def verb(root: str | None, paths: tuple[str, ...], as_json: bool) -> int:
    """Check this machine, this state directory and the fleet's providers; exit code 1 where something is wrong.

    PATHS are fleet files (or folders with one) to check before they are applied.
    """
    place = home(root)
    findings = [*_machine(place), *_extras(), *_engines(), *_state(place), *_control(place)]
    findings += _fleet(place, paths)
    if as_json:
        print_json({"shape": "doctor/1", "items": [asdict(f) for f in findings]})
    else:
        out = console()
        for f in findings:
            mark = "[bold red]BAD [/]" if not f.ok else "[yellow]warn[/]" if f.warn else "[green]ok  [/]"
            out.print(f"{mark} {f.check:<18} {plain(f.seen)}")
            if f.remedy and (f.warn or not f.ok):
                out.print(f"     do: {plain(f.remedy)}")
    return 0 if all(f.ok for f in findings) else 1
