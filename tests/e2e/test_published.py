"""From a model that is published to its first token: control notices, a replica starts, the gateway learns of it."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from caudal.store.blobs import open_blobs
from caudal.store.home import Home
from caudal.store.models import ModelStore
from tests.support.checkpoint import exported
from tests.support.fleet import SERVICE, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

GOAL_S = 5.0
ASKED = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 4,
    "stream": True,
}


def first_token(one: Fleet) -> bool:
    """Whether a token comes, as a client sees it."""
    try:
        with httpx.stream("POST", f"{one.openai}/chat/completions", json=ASKED, trust_env=False) as answer:
            return answer.status_code == 200 and any('"delta"' in line for line in answer.iter_lines())
    except httpx.TransportError:
        return False


def store(one: Fleet) -> ModelStore:
    place = Home(one.home)
    return ModelStore(open_blobs(place.blobs_url), one.root / "cache")


def waiting(one: Fleet) -> None:
    """A fleet whose service waits for what a run publishes; the run itself is not here."""
    (one.files / "run.yaml").unlink()
    one.up()
    one.wait_for(lambda: one.pids("gateway.0"), 30, "the gateway")
    one.wait_for(lambda: one.workload("assistant")["reason"], 10, "the service to wait")


def test_a_checkpoint_answers_within_five_seconds_of_its_publication(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    one = fleet(service=True)
    waiting(one)
    folder = exported(tmp_path / "model")
    begun = time.monotonic()
    store(one).publish("tiny", folder, source="run:tiny", run="tiny", context=128)
    one.wait_for(lambda: first_token(one), 30, "the first token")
    took_s = time.monotonic() - begun
    print(json.dumps({"published_to_first_token_s": round(took_s, 2)}))
    assert took_s <= GOAL_S
    metrics = httpx.get(f"http://127.0.0.1:{one.api_port}/metrics", trust_env=False).text
    one.wait_for(lambda: _generated(one) >= 1, 10, f"the replica's figures, which are\n{metrics}")
    assert one.leave() == 0


def _generated(one: Fleet) -> float:
    text = httpx.get(f"http://127.0.0.1:{one.api_port}/metrics", trust_env=False).text
    found = re.search(
        r'^vllm:generation_tokens_total\{model_name="tiny",.*engine="llama.cpp"\} (\S+)$', text, re.M
    )
    return float(found[1]) if found else 0.0


def test_the_same_checkpoint_on_vllm(
    fleet: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way with another engine, by a stand-in for its server: spec, replica, child, route, gateway, drain."""
    program = tmp_path / "vllm"
    fake = Path(__file__).parents[1] / "support" / "fake_vllm.py"
    said = tmp_path / "said.json"
    program.write_text(f'#!/bin/sh\nFAKE_ENGINE_SAID={said} exec {sys.executable} {fake} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("CAUDAL_VLLM", str(program))
    one = fleet(service=True)
    text = SERVICE.replace("run: tiny,", "run: tiny, engine: vllm,")
    (one.files / "service.yaml").write_text(text)
    waiting(one)
    store(one).publish("tiny", exported(tmp_path / "model"), source="run:tiny", run="tiny", context=128)
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 3}

    def answered() -> bool:
        answer = httpx.post(f"{one.openai}/completions", json=asked, timeout=20, trust_env=False)
        return answer.status_code == 200 and answer.json()["choices"][0]["text"] == " w w w"

    one.wait_for(answered, 30, "an answer")
    started = json.loads(said.read_text())
    assert started["argv"][:1] == ["serve"] and "CAUDAL_TOKEN_FILE" not in started["env"]
    text = one.caudal("logs", "assistant.replica.tiny.0").stdout
    assert "INFO fake engine: loading weights" in text
    os.kill(started["pid"], 9)
    one.wait_for(lambda: json.loads(said.read_text())["pid"] != started["pid"], 20, "another engine")
    one.wait_for(answered, 30, "an answer again")
    assert one.leave() == 0
    assert one.children() == []
    assert not Path(f"/proc/{json.loads(said.read_text())['pid']}").exists()
