"""`caudal up` with a gateway at each site and the real SmolLM2 on the real llama.cpp: a new version of the model is
published under load, takes over, and no request notices."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from caudal.cli.models import model_store
from caudal.store.home import home
from tests.support.fleet import Fleet, free_port
from tests.support.smollm import smollm_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "smollm"
SERVICE = """\
type: service
name: assistant
models:
  - {id: smollm, source: '%s', context: 512, slots: 2, resources: {cpus: 0.3, memory_bytes: 384MiB}}
"""
REPLY_TOKENS = 24


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def talk(client: openai.OpenAI, over: threading.Event, answers: list[str], failures: list[str]) -> None:
    """Streamed answers, one after the other."""
    while not over.is_set():
        try:
            chunks = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Count from one to five."}],
                temperature=0,
                max_tokens=REPLY_TOKENS,
                stream=True,
            )
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            answers.append(said)
        except openai.OpenAIError as error:
            failures.append(repr(error))


def test_a_new_version_takes_over_under_load_and_nobody_notices(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    gguf = smollm_gguf(tmp_path / "gguf")
    one = fleet()
    (one.files / "run.yaml").unlink()
    (one.files / "service.yaml").write_text(SERVICE % gguf)
    port = free_port()
    (one.files / "fleet.yaml").write_text(
        "type: fleet\nname: test\nsites: [{name: north}, {name: south}]\n"
        f"api: {{port: {one.api_port}}}\ngateway: {{port: {port}, each_site: true}}\n"
    )
    one.up()
    one.wait_for(lambda: one.ready(MODEL), 60, "a replica")
    one.wait_for(lambda: all(g["ready"] for g in one.get("/status")["gateways"]), 30, "both gateways")
    gateways = [g["url"] for g in one.get("/status")["gateways"]]
    assert gateways == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
    shown = one.caudal("status")
    assert all(url in shown.stdout for url in gateways)
    time.sleep(1.0)  # gateways ask for routes twice a second
    over = threading.Event()
    answers: list[str] = []
    failures: list[str] = []
    clients = [
        threading.Thread(target=talk, args=(client_of(gateways[n % 2]), over, answers, failures), daemon=True)
        for n in range(4)
    ]
    for thread in clients:
        thread.start()
    one.wait_for(lambda: len(answers) >= 4, 60, "answers of the first version")
    folder = tmp_path / "second"
    folder.mkdir()
    os.link(gguf, folder / "model.gguf")
    (folder / "notes.txt").write_text("another version, of the same weights\n")
    assert model_store(home(str(one.home))).publish(MODEL, folder, source="test").version == 2

    def versions() -> set[str]:
        return {g["slot"] for g in one.get("/gangs")["items"] if g["role"] == "replica"}

    one.wait_for(lambda: versions() == {"assistant.replica.smollm.0@v2"}, 90, "the second version alone")
    before = len(answers)
    one.wait_for(lambda: len(answers) >= before + 4, 60, "answers of the second version")
    over.set()
    for thread in clients:
        thread.join()
    assert not failures and len(set(answers)) == 1 and answers[0], (failures, set(answers))
    told = [e["kind"] for e in one.get("/events?limit=1000")["items"]]
    assert "gang.draining" in told
