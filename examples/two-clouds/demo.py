"""The demonstration of examples/two-clouds: one run over two clouds, one of which fails and comes back.

    python examples/two-clouds/demo.py

Both clouds are fakes on this machine; what is shown is `caudal` itself, called as anybody would. Every line has the
seconds since the start. The exit code is 0 only where all of it was seen. The state is in $CAUDAL_HOME, or in a new folder
that is removed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from caudal.providers.aws_fake import launcher as aws
from caudal.providers.azure_fake import launcher as azure

HERE = Path(__file__).resolve().parent
RUN = "both"
FAILS, STAYS = "stockholm", "gavle"
REGION = "eu-north-1"
PATIENCE_S = 150.0
TOLD = (
    "lease.",
    "contact.",
    "gang.started",
    "run.epoch",
    "run.joined",
    "run.phase",
    "run.pending",
    "run.running",
)
T = TypeVar("T")


class NotSeen(Exception):
    """Something that had to be seen was not."""


class Demo:
    """One fleet, what happens to it, and what is seen of that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.began = time.monotonic()
        self.http = httpx.Client(timeout=10.0, trust_env=False)
        self.log = root / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.after = 0

    def say(self, text: str) -> None:
        """A line, with the time."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def caudal(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of `caudal` on this fleet."""
        command = [sys.executable, "-m", "caudal.cli", "--home", str(self.root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S + 60, check=False)

    def get(self, path: str, **query: Any) -> Any:
        """A GET of the control API."""
        url = (self.root / "control.url").read_text().strip()
        answer = self.http.get(f"{url}/api/v1{path}", params=query)
        answer.raise_for_status()
        return answer.json()

    def events(self) -> list[dict[str, Any]]:
        """What the fleet has said since the last look; what matters here is told."""
        new: list[dict[str, Any]] = self.get("/events", after=self.after)["items"]
        for event in new:
            self.after = max(self.after, int(event["seq"]))
            if event["kind"].startswith(TOLD):
                self.say(f"  {event['kind']:<16} {event['text'][:150]}")
        return new

    def until(self, what: str, look: Callable[[], T], seconds: float = PATIENCE_S) -> T:
        """Wait until something is seen. Raises NotSeen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise NotSeen(f"`caudal up` ended:\n{self.log.read_text()[-3000:]}")
            with contextlib.suppress(httpx.HTTPError, OSError, KeyError, StopIteration):
                self.events()
                if found := look():
                    return found
            time.sleep(0.5)
        raise NotSeen(f"not within {seconds:.0f} s: {what}\n{self.log.read_text()[-3000:]}")

    def up(self) -> None:
        """`caudal up`, beside this."""
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "caudal.cli", "--home", str(self.root), "up", str(HERE)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def round(self) -> int:
        """The run's last committed round."""
        return int(self.get(f"/workloads/{RUN}")["progress"].get("round") or 0)

    def training(self) -> set[str]:
        """The sites that hold a worker and have taken part in one of the last rounds."""
        view = self.get(f"/workloads/{RUN}")
        said = view["progress"]
        if said.get("phase") != "training":
            return set()
        workers = {g["site"] for g in view["gangs"] if g["role"] == "worker" and not g["stopping"]}
        newest = int(said["round"])
        return {s for s in workers & set(said["sites"]) if int(said["sites"][s]["round"] or 0) >= newest - 2}

    def machines(self) -> dict[str, list[str]]:
        """What the clouds themselves list, whatever Caudal believes."""
        found: dict[str, list[str]] = {}
        url = aws.running(aws.folder(self.root, "amazon"))
        if url:
            rows = self.http.get(f"{url}/_caudal/state").json()["instances"]
            found["amazon"] = [row["id"] for row in rows if row["state"] != "terminated"]
        there = azure.running(azure.folder(self.root, "azure"))
        if there:
            headers = {"Authorization": f"Bearer {there[1]}"}
            rows = self.http.get(f"{there[0]}/_caudal/state", headers=headers).json()["machines"]
            found["azure"] = [row["name"] for row in rows]
        return found

    def region(self, **change: str) -> None:
        """Change what a region of the fake of AWS does."""
        url = aws.running(aws.folder(self.root, "amazon"))
        self.http.post(f"{url}/_caudal/region", json={"region": REGION, **change}).raise_for_status()

    def end(self) -> None:
        """End what is left: also where something was not seen, nothing stays behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        aws.stop(aws.folder(self.root, "amazon"))
        azure.stop(azure.folder(self.root, "azure"))


def show(demo: Demo) -> None:
    """The whole of it. Raises NotSeen."""
    demo.say(
        f"caudal up {HERE.name}: two clouds (fakes on this machine), a Ray cluster at each, one run over both"
    )
    demo.up()
    demo.until("the run at both clouds", lambda: demo.training() == {FAILS, STAYS})
    at = demo.until("a few rounds", lambda: (n := demo.round()) >= 3 and n)
    demo.say(f"the run trains at {FAILS} and {STAYS}; round {at}; the clouds list {_listed(demo.machines())}")

    lost = set(demo.machines()["amazon"])
    demo.region(mode="down", machines="lose_power")
    failed_at = time.monotonic()
    demo.say(f"OUTAGE: {REGION} answers 503 to everything, and its machines have lost power")
    demo.until("the outage to be noticed", lambda: _state(demo, FAILS) == "suspect")
    demo.say(
        f"noticed after {time.monotonic() - failed_at:.1f} s: {FAILS} is under suspicion, its epoch is raised"
    )
    before = demo.until(
        "the run at one cloud", lambda: demo.training() == {STAYS} and _leads(demo) and demo.round()
    )
    demo.until("rounds without the cloud that failed", lambda: demo.round() >= before + 3)
    demo.say(
        f"the run goes on at {STAYS} alone: round {demo.round()}, {time.monotonic() - failed_at:.1f} s after the outage"
    )

    demo.region(mode="")
    healed_at = time.monotonic()
    demo.say(f"HEALED: {REGION} answers again; its machines are gone for good")
    demo.until("the run at both clouds again", lambda: demo.training() == {FAILS, STAYS})
    again = demo.round()
    demo.until("rounds at both", lambda: demo.round() >= again + 3)
    new = set(demo.machines()["amazon"]) - lost
    if not new:
        raise NotSeen("the cloud that failed has no new machine")
    took_s = time.monotonic() - healed_at
    demo.say(
        f"placed again on {', '.join(sorted(new))} at {FAILS}, {took_s:.1f} s after the healing: round {demo.round()}"
    )

    cost = demo.caudal("cost", "--by", "provider")
    demo.say("caudal cost --by provider:")
    print(cost.stdout)
    if cost.returncode or "reserved-f2" not in cost.stdout:
        raise NotSeen(f"caudal cost: {cost.stderr}")
    demo.say("caudal down")
    down = demo.caudal("down")
    print(down.stdout)
    if down.returncode:
        raise NotSeen(f"caudal down: {down.stderr}")
    assert demo.process is not None
    demo.process.wait(60)
    left = demo.machines()
    if left != {"amazon": [], "azure": []}:
        raise NotSeen(f"the clouds still list {left}")
    demo.say("both clouds list no machine: nothing bills any more")


def _state(demo: Demo, site: str) -> str:
    return str(next(s["node_state"] for s in demo.get("/status")["sites"] if s["name"] == site))


def _leads(demo: Demo) -> bool:
    """Whether the coordinator runs where the sun shines."""
    gangs = demo.get(f"/workloads/{RUN}")["gangs"]
    return any(g["role"] == "coordinator" and g["site"] == STAYS and g["status"].get("round") for g in gangs)


def _listed(machines: dict[str, list[str]]) -> str:
    return json.dumps(machines)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """$CAUDAL_HOME, or a new folder; the name is short, since Ray's sockets lie below."""
    if given := os.environ.get("CAUDAL_HOME"):
        Path(given).mkdir(parents=True, exist_ok=True, mode=0o700)
        yield Path(given).resolve()
        return
    made = Path(tempfile.mkdtemp(prefix="caudal-"))
    os.environ["TMPDIR"] = str(made / "t")  # also what lost its power leaves nothing behind
    (made / "t").mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    """Run it; returns the exit code."""
    with folder() as root:
        demo = Demo(root)
        try:
            show(demo)
        except NotSeen as error:
            demo.say(f"NOT SEEN: {error}")
            return 1
        finally:
            demo.end()
        demo.say("done: all of it was seen")
        return 0


if __name__ == "__main__":
    sys.exit(main())
