"""The node agent: has a token of its own, looks whether the machine is as promised, joins its site, and says that it lives.

Reports are `{"state": "burning" | "joining" | "ready" | "failed", "why", "found", "load", "disk_free_bytes"}`. A machine
that is not as promised never joins. When the control API is away, what has joined goes on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from caudal.node.burn_in import Found, faults, look
from caudal.node.cluster import Member
from caudal.node.control import Away, ControlApi, Refused
from caudal.node.links import Answering, measured

BEAT_S = 5.0
JOIN_S = 300.0
PATIENCE_S = 120.0
"""For the first word with the control API: a machine that nobody knows is of no use."""

MAX_WHY = 1000


class Agent:
    """One node. `config` as providers/bootstrap.py writes it; its files are in `folder`."""

    def __init__(self, config: Mapping[str, Any], folder: Path, ending: threading.Event) -> None:
        self._config, self._folder, self._ending = config, folder, ending
        self._api = ControlApi(str(config["api_url"]), str(config["lease"]), folder)
        self._member: Member | None = None

    def run(self) -> int:
        """Until it is asked to end; the exit code is 0 then, and 1 where this is no node."""
        try:
            self._first_word()
        except (Refused, Away, OSError) as error:
            return self._failed(f"the control API does not take this node: {error}", tell=False)
        links = Answering(self._config["listen"]) if self._config.get("listen") else None
        try:
            self._tell("burning")
            found = self._found()
            wrong = faults(self._config["promised"], found, self._config.get("link_least_bytes_per_s", 0.0))
            if wrong:
                return self._failed("; ".join(wrong))
            self._tell("joining", found=_shown(found))
            if why := self._join():
                return self._failed(why)
            (self._folder / "state").write_text("0\n")
            while True:
                self._tell("ready", found=_shown(found), **self._now())
                if self._ending.wait(BEAT_S):
                    return 0
                if self._member is not None and (why := self._member.over()):
                    return self._failed(why)
        finally:
            if self._member is not None:
                self._member.close()
            if links is not None:
                links.close()

    def _first_word(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._api.join()
            except Away:
                if time.monotonic() > end or self._ending.wait(1.0):
                    raise

    def _found(self) -> Found:
        found = look(self._folder)
        tested = [(peer, measured(peer)) for peer in self._config.get("peers", ())]
        return replace(
            found, links=tuple((peer, link.bytes_per_s if link else None) for peer, link in tested)
        )

    def _join(self) -> str:
        """Join the site; why not, or empty."""
        try:
            if self._api.part():
                return self._join_cluster()
        except (OSError, Refused) as error:
            return f"cannot join the site: {type(error).__name__}: {error}"
        argv = [str(part) for part in self._config.get("join", ())]
        if not argv:
            return ""
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=JOIN_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"cannot join the site: {type(error).__name__}: {error}"
        tail = (done.stderr or done.stdout).strip()[-300:]
        return f"joining the site ended with code {done.returncode}: {tail}" if done.returncode else ""

    def _join_cluster(self) -> str:
        """Be the head of the site's cluster, or join it; why not, or empty. Raises OSError, Refused."""
        self._member = Member(
            self._folder,
            str(self._config["api_url"]),
            shares_machine=bool(self._config.get("shares_machine")),
        )
        end = time.monotonic() + JOIN_S
        leads = self._api.part()["role"] == "head"
        while not leads and not self._api.part()["head"]:
            if time.monotonic() > end or self._ending.wait(1.0):
                return f"the site's head was not there within {JOIN_S:.0f} s"
            try:
                self._api.join(again=True)
            except Away:
                continue
        argv = [str(part) for part in self._config.get("head" if leads else "member", ())]
        if not argv:
            return "its site is a cluster, and it was not told how to join one"
        self._member.start(argv, self._api.part()["head"])
        return self._member.wait_up(self._ending, head=leads)

    def _now(self) -> dict[str, Any]:
        now = {"load": os.getloadavg()[0], "disk_free_bytes": shutil.disk_usage(self._folder).free}
        leads = self._member is not None and self._api.part().get("role") == "head"
        return {**now, "head": dict(self._member.head())} if self._member is not None and leads else now

    def _failed(self, why: str, *, tell: bool = True) -> int:
        line = " ".join(why.split())[:MAX_WHY]
        (self._folder / "failed").write_text(line + "\n")
        if tell:
            for _ in range(
                3
            ):  # where nobody hears it, the provider's own list says it later, or the boot time-out
                if self._tell("failed", why=line) or self._ending.wait(1.0):
                    break
        print(line, flush=True)
        return 1

    def _tell(self, state: str, **status: Any) -> bool:
        try:
            self._api.report({"state": state, **status})
        except (Refused, Away):
            return False
        return True


def _shown(found: Found) -> dict[str, Any]:
    shown = asdict(found)
    return {**shown, "links": dict(found.links)}
