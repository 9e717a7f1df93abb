"""The seam between the driver and the desk: in this process, or on a login host through the system's ssh.

The system's ssh, not a library: a cluster's login hosts are reached by what its users have already set up there
(~/.ssh/config, jump hosts, agents, Kerberos, a master connection that was opened with a one-time password). It never
asks for anything (BatchMode). Knows nothing about gangs.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from caudal.domain.errors import CaudalError, Failed, Unreachable, UsageError, from_dict
from caudal.drivers.slurm import desk

DEFAULT_PYTHON = ".caudal/venv/bin/python"  # below the home directory on the login host
CONNECT_S = 5
ANSWER_S = 60.0  # the desk's own time-outs end before: this is for a connection that died in silence
MAX_ANSWER_BYTES = 64 << 20
ADDRESS = re.compile(r"(?:ssh://)?[A-Za-z0-9._][A-Za-z0-9._@:-]{0,250}")
SSH_FAILED = 255
NOT_FOUND = {126, 127}


class Host(Protocol):
    """Where questions to the desk go."""

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The answer. Raises what the desk raised, or Unreachable."""
        ...


class Here:
    """The desk in this process."""

    def ask(self, question: Mapping[str, Any]) -> Any:
        """See `Host`."""
        return _opened(desk.answer(question))


class OverSsh:
    """The desk on another host. `options` are ssh's own, before those that it always gets."""

    def __init__(self, address: str, python: str = "", options: Sequence[str] = ()) -> None:
        if not ADDRESS.fullmatch(address):
            raise UsageError(
                f"{address[:80]!r} is no host for ssh",
                remedy="write `host`, `user@host` or `ssh://user@host:port`",
            )
        self._address = address
        self._python = python or DEFAULT_PYTHON
        self._options = tuple(options)

    def ask(self, question: Mapping[str, Any]) -> Any:
        """See `Host`. The question goes over standard input: no secret is on a command line."""
        remote = shlex.join([self._python, "-I", "-m", "caudal.drivers.slurm.desk"])
        keep = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=5")
        argv = ["ssh", *self._options, *keep, "-T", "--", self._address, remote]
        try:
            done = subprocess.run(
                argv, input=json.dumps(question).encode(), capture_output=True, timeout=ANSWER_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise self._away(f"no answer after {ANSWER_S:.0f} s") from error
        except OSError as error:
            raise Failed("cannot run ssh", why=str(error), remedy="install an OpenSSH client") from error
        said = done.stderr.decode(errors="replace").strip()[-500:]
        if done.returncode == SSH_FAILED:
            raise self._away(said.splitlines()[-1] if said else "ssh says nothing")
        if done.returncode in NOT_FOUND or "No module named" in said:
            raise Failed(
                "there is no Caudal on the login host",
                where=self._address,
                why=said,
                remedy=f"make {self._python} there with `python3 -m venv` and `pip install caudal`, "
                "or name another one in the driver's `slurm: python`",
            )
        try:
            assert len(done.stdout) <= MAX_ANSWER_BYTES
            return _opened(json.loads(done.stdout))
        except (ValueError, AssertionError, TypeError) as error:
            raise Failed("the login host's answer cannot be read", where=self._address, why=said) from error

    def _away(self, why: str) -> CaudalError:
        return Unreachable(
            "the login host does not answer",
            where=self._address,
            why=why,
            remedy=f"see whether `ssh -o BatchMode=yes {self._address} true` works",
        )


def _opened(answered: Mapping[str, Any]) -> Any:
    if "error" in answered:
        raise from_dict(answered["error"])
    return answered["ok"]
