"""The script that makes a machine a node, as text. Pure.

It has two parts. The part of one lease is written into a folder: what is promised of the machine, how its site is
joined, and a join token that works once, for that lease, until it expires. The part of the fleet makes a venv, installs
the pinned wheel and runs the node agent. Nothing else is secret, and nothing secret is on a command line.

What a signature protects: user data, and what comes over SSH, arrive through a channel that is trusted already, and a
script cannot vouch for itself. A script that is fetched (an object store, a mirror) can be exchanged on the way or where
it lies. So the inline form is not signed, and the fetching form carries the fleet's public key and runs nothing that
this key did not sign. The wheel is held to its SHA-256 in both.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from caudal.domain.errors import UsageError
from caudal.domain.fleet import Resources

AWS_LIMIT_BYTES = 16 * 1024
"""Of user data, before base64 (EC2 user guide, read 2026-11)."""

AZURE_LIMIT_BYTES = 64 * 1024
"""Of custom data (Azure's documentation on custom data, read 2026-11)."""

END_OF_TEXT = "CAUDAL_END_OF_TEXT"
OWN_HOME = ('HOME="$PWD"', "export HOME")  # of a machine that is a process: what it keeps is its own
HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something to fetch, and what it has to be. `url`: https://, http:// or file://, or an absolute path."""

    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """What Caudal is installed from: a wheel, and (`lock`) a requirements file with the hash of every dependency.
    `python` is the interpreter of the venv; `installed` one that has Caudal already: then nothing is installed."""

    wheel: Artefact | None = None
    lock: Artefact | None = None
    python: str = "python3"
    installed: str = ""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What one machine is to become. `join` is what makes it part of its site, once it is known to be well, and is done
    then. Of a site whose nodes make up its cluster, `head` is what the first one runs for as long as it lives, `member`
    the others; both have words to be filled in (node/cluster.py). `ca_pem` is the authority of the control API's
    certificate, where it is not a public one. `peers` are `host:port` of other nodes' link tests; `listen` is where this
    one answers theirs (empty: not). `here`: the machine is a process of this one, beside others."""

    lease: str
    api_url: str
    join_token: str = field(repr=False)
    promised: Resources
    join: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    member: tuple[str, ...] = ()
    ca_pem: str = ""
    here: bool = False
    accelerator_memory_bytes: int = 0
    disk_bytes: int = 0
    peers: tuple[str, ...] = ()
    listen: str = ""
    link_least_bytes_per_s: float = 0.0


def fleet_script(source: Source) -> str:
    """The part that all nodes of a fleet share; it finds the other part in $CAUDAL_NODE_DIR. Raises UsageError."""
    return "\n".join(["#!/bin/sh", "set -eu", "umask 077", *_install(source), *RUN, ""])


def script(plan: NodePlan, source: Source, limit_bytes: int = 0) -> str:
    """Both parts in one text. Raises UsageError where it is longer than `limit_bytes` (0: no limit)."""
    return _within("\n".join([*_lease_part(plan), *fleet_script(source).splitlines()[1:], ""]), limit_bytes)


def fetching_script(plan: NodePlan, url: str, public_pem: str, limit_bytes: int = 0) -> str:
    """The lease's part, and a fetch of the fleet's part from `url`, with its signature at `url`.sig; it is run only
    where the key signed it (OpenSSL 3 or Python's cryptography says so; without either, nothing is run)."""
    lines = [*_lease_part(plan), *FETCH, *_text("key.pem", public_pem), f"U={shlex.quote(url)}", *VERIFY, ""]
    return _within("\n".join(lines), limit_bytes)


def _within(text: str, limit_bytes: int) -> str:
    size = len(text.encode())
    if limit_bytes and size > limit_bytes:
        raise UsageError(
            f"the bootstrap has {size} bytes, and user data may have {limit_bytes}",
            remedy="put the fleet's part into an object store, and use the form that fetches it",
        )
    return text


def _lease_part(plan: NodePlan) -> list[str]:
    promised = {
        "cpus": plan.promised.cpus,
        "memory_bytes": plan.promised.memory_bytes,
        "accelerators": plan.promised.accelerators,
        "neuron_cores": plan.promised.neuron_cores,
        "accelerator_memory_bytes": plan.accelerator_memory_bytes,
        "disk_bytes": plan.disk_bytes,
    }
    config: dict[str, Any] = {
        "lease": plan.lease,
        "api_url": plan.api_url,
        "promised": promised,
        "join": list(plan.join),
        "head": list(plan.head),
        "member": list(plan.member),
        "shares_machine": plan.here,
        "peers": list(plan.peers),
        "listen": plan.listen,
        "link_least_bytes_per_s": plan.link_least_bytes_per_s,
    }
    return [
        "#!/bin/sh",
        "set -eu",
        "umask 077",
        *(OWN_HOME if plan.here else ()),
        'CAUDAL_NODE_DIR="${CAUDAL_NODE_DIR:-${HOME:-/root}/.caudal/node}"',
        "export CAUDAL_NODE_DIR",
        'mkdir -p "$CAUDAL_NODE_DIR"',
        'cd "$CAUDAL_NODE_DIR"',
        *_text("config.json", json.dumps(config, sort_keys=True)),
        *_text("join", plan.join_token),
        *(_text("ca.pem", plan.ca_pem) if plan.ca_pem else ()),
    ]


def _text(name: str, content: str) -> list[str]:
    """Lines that write a text into a file; nothing in it is expanded."""
    if END_OF_TEXT in content:
        raise UsageError(f"{name} must not hold {END_OF_TEXT}")
    return [f"cat > {name} <<'{END_OF_TEXT}'", content.rstrip("\n"), END_OF_TEXT]


FETCH = r"""
fetch() {
  case "$1" in
    /*) cp "$1" "$2" ;;
    *) curl -fsS --proto '=https,http,file' --retry 5 --connect-timeout 10 --max-time 600 -o "$2" "$1" ;;
  esac
}
fail() { echo "$1" > "$CAUDAL_NODE_DIR/failed"; echo "$1" >&2; exit 1; }
""".strip().splitlines()

VERIFY = r"""
fetch "$U" fleet.sh || fail "cannot fetch the bootstrap from $U"
fetch "$U.sig" fleet.sh.sig || fail "cannot fetch the signature of the bootstrap from $U.sig"
if openssl version 2>/dev/null | grep -q '^OpenSSL [3-9]'; then
  openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in fleet.sh -sigfile fleet.sh.sig >/dev/null 2>&1 \
    || fail "the bootstrap is not signed by this fleet; it was not run"
else
  python3 -c 'import sys
from cryptography.hazmat.primitives.serialization import load_pem_public_key as load
key, content, signature = (open(name, "rb").read() for name in ("key.pem", "fleet.sh", "fleet.sh.sig"))
load(key).verify(signature, content)' 2>/dev/null \
    || fail "the bootstrap is not signed by this fleet, or neither OpenSSL 3 nor cryptography is here; it was not run"
fi
exec sh fleet.sh
""".strip().splitlines()

RUN = r"""
exec "$PY" -m caudal.node "$CAUDAL_NODE_DIR/config.json"
""".strip().splitlines()


def _install(source: Source) -> list[str]:
    start = [': "${CAUDAL_NODE_DIR:?}"', 'cd "$CAUDAL_NODE_DIR"', *FETCH]
    if source.installed:
        return [*start, f"PY={shlex.quote(source.installed)}"]
    if source.wheel is None:
        raise UsageError("a node needs a wheel of Caudal, or an interpreter that has it")
    lines = [
        *start,
        f"{shlex.quote(source.python)} -m venv venv || fail 'cannot make a venv'",
        "PY=venv/bin/python",
    ]
    if source.lock is not None:
        lines += _fetched(source.lock, "lock.txt")
        lines.append(
            '"$PY" -m pip install -q --require-hashes -r lock.txt || fail "pip refused the lock file"'
        )
    lines += _fetched(source.wheel, source.wheel.url.rpartition("/")[2])
    name = shlex.quote(source.wheel.url.rpartition("/")[2])
    deps = "--no-deps " if source.lock is not None else ""
    lines.append(f'"$PY" -m pip install -q {deps}./{name} || fail "pip refused the wheel"')
    return lines


def _fetched(what: Artefact, name: str) -> list[str]:
    if len(what.sha256) != 64 or not set(what.sha256) <= HEXADECIMAL:
        raise UsageError(f"{what.url}: a SHA-256 in 64 small hexadecimal digits is needed")
    file = shlex.quote(name)
    return [
        f'fetch {shlex.quote(what.url)} {file} || fail "cannot fetch {name}"',
        f"echo '{what.sha256}  '{file} | sha256sum -c - >/dev/null || fail \"{name} is not what was pinned\"",
    ]
