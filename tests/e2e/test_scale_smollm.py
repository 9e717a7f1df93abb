"""`caudal up` with the real SmolLM2 on the real llama.cpp: a model that sleeps is woken by a request, has two replicas
under load, drains one when the load falls, and sleeps again. A prewarmed replica is there before it is asked. No
request fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.fleet import Fleet
from tests.support.smollm import smollm_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "smollm"
IDLE_S = 6.0
SERVICE = """\
type: service
name: assistant
models:
  - {id: smollm, source: '%s', context: 512, slots: 2, resources: {cpus: 0.3, memory_bytes: 384MiB},
     scale: {min: 0, max: 2, idle_s: %g, prewarmed: %d}}
"""


class Clients:
    """Streamed answers, one after the other, by several threads; `fewer` lets some of them end."""

    def __init__(self, url: str) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        self._client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)

    def ask(self) -> float:
        """One answer; how long it took, in seconds."""
        begun = time.monotonic()
        chunks = self._client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count from one to five."}],
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        self.answers.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        return time.monotonic() - begun

    def more(self, count: int) -> None:
        for _ in range(count):
            over = threading.Event()
            thread = threading.Thread(target=self._talk, args=(over,), daemon=True)
            self._threads.append((thread, over))
            thread.start()

    def fewer(self, count: int) -> None:
        going, self._threads = self._threads[:count], self._threads[count:]
        for _, over in going:
            over.set()
        for thread, _ in going:
            thread.join()

    def _talk(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                self.ask()
            except openai.OpenAIError as error:
                self.failures.append(repr(error))


def slots(one: Fleet) -> list[str]:
    return sorted(g["slot"] for g in one.get("/gangs")["items"] if g["role"] == "replica")


def test_a_model_wakes_grows_drains_and_sleeps(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    one = fleet()
    (one.files / "run.yaml").unlink()
    (one.files / "service.yaml").write_text(SERVICE % (smollm_gguf(tmp_path / "gguf"), IDLE_S, 0))
    one.up()
    one.wait_for(lambda: one.get("/status")["models"], 60, "the model in the model store")
    listed = f"{one.openai}/models"
    one.wait_for(lambda: MODEL in httpx.get(listed, trust_env=False).text, 30, "the sleeping model listed")
    one.wait_for(lambda: one.workload("assistant")["state"] == "running", 20, "the service to run, asleep")
    assert slots(one) == []
    assert "scale.asleep" in one.caudal("explain", "assistant", "--json").stdout
    clients = Clients(one.openai)
    woken_s = clients.ask()
    one.wait_for(lambda: slots(one) == [], IDLE_S + 20, "it to sleep")
    again_s = clients.ask()
    print(f"\nwoken and answered in {woken_s:.2f} s, the second time in {again_s:.2f} s")
    awake_s = clients.ask()
    print(f"awake: {awake_s:.2f} s")

    clients.more(4)
    begun = time.monotonic()
    pair = ["assistant.replica.smollm.0", "assistant.replica.smollm.1"]
    one.wait_for(lambda: slots(one) == pair, 30, "a second replica")
    one.wait_for(lambda: one.get("/status")["models"][0]["ready_replicas"] == 2, 30, "it to be ready")
    print(f"two replicas {time.monotonic() - begun:.2f} s after the load began")
    assert "take more than 80% of the slots" in one.caudal("explain", pair[1]).stdout
    clients.fewer(3)
    one.wait_for(lambda: slots(one) == pair[:1], 60, "one replica to be enough")
    before = len(clients.answers)
    one.wait_for(lambda: len(clients.answers) >= before + 3, 60, "answers of the one that is left")
    clients.fewer(1)
    assert not clients.failures and len(set(clients.answers)) == 1 and clients.answers[0], clients.failures
    one.wait_for(lambda: slots(one) == [], IDLE_S + 20, "it to sleep")
    events = one.get("/events?limit=1000")["items"]
    assert "gang.draining" in [e["kind"] for e in events]
    stops = [e["data"]["code"] for e in events if e["kind"] == "gang.stopping" and "replica" in e["subject"]]
    assert stops == ["scale.down"] * 3


def test_a_prewarmed_replica_answers_the_first_request_and_another_takes_its_place(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    one = fleet()
    (one.files / "run.yaml").unlink()
    (one.files / "service.yaml").write_text(SERVICE % (smollm_gguf(tmp_path / "gguf"), IDLE_S, 1))
    one.up()

    def ready() -> int:
        models = one.get("/status")["models"]
        return int(models[0]["ready_replicas"]) if models else 0

    one.wait_for(lambda: ready() == 1, 90, "the prewarmed replica to be ready")
    assert "and 1 prewarmed" in one.caudal("explain", "assistant.replica.smollm.0").stdout
    clients = Clients(one.openai)
    one.wait_for(lambda: MODEL in httpx.get(f"{one.openai}/models", trust_env=False).text, 30, "it listed")
    print(f"\nthe first request was answered in {clients.ask():.2f} s")
    one.wait_for(lambda: ready() == 2, 60, "the next one to be prewarmed")
    events = one.get("/events?limit=1000")["items"]
    started = [e["subject"] for e in events if e["kind"] == "gang.started" and "replica" in e["subject"]]
    assert len(started) == 2, started
    one.wait_for(lambda: len(slots(one)) == 1, IDLE_S + 60, "one to be enough again")
    assert not clients.failures and clients.answers[0]
