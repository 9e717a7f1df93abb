"""What every engine promises a replica: llama.cpp on a real model, vLLM and SGLang on a stand-in for their servers."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from caudal.domain.errors import ModelInvalid
from caudal.ports import Engine, EngineLaunch
from caudal.serve import sglang, vllm
from caudal.serve.engines import ENGINES, make_engine
from caudal.serve.figures import in_flight
from caudal.telemetry import names
from tests.support.checkpoint import exported

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run publishes: all engines can read it."""
    return exported(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(params=sorted(ENGINES))
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine, installed."""
    if request.param == "llama.cpp":
        pytest.importorskip("xllamacpp")
    program, package = tmp_path / "vllm", tmp_path / "python" / "sglang"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/fake_vllm.py "$@"\n')
    program.chmod(0o755)
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        "import sys\nfrom tests.support.fake_vllm import main\nmain(sys.argv[1:])\n"
    )
    monkeypatch.setenv(vllm.PROGRAM, str(program))
    monkeypatch.setenv(sglang.PYTHON, sys.executable)
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FAKE_ENGINE_SAID", str(tmp_path / "said.json"))
    return str(request.param)


@pytest.fixture
def launch(name: str, model: Path) -> EngineLaunch:
    """What is asked of it."""
    path = next(model.glob("*.gguf")) if name == "llama.cpp" else model
    return EngineLaunch("tiny", path, "127.0.0.1", 0, 64, 2, 1)


@pytest.fixture
def engine(name: str, launch: EngineLaunch) -> Iterator[Engine]:
    """One that is started."""
    one = make_engine(name)
    one.start(launch)
    yield one
    one.kill()


def complete(engine: Engine, **more: object) -> httpx.Response:
    asked = {
        "model": "tiny",
        "prompt": "Hello",
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }
    return httpx.post(f"{engine.url}/v1/completions", json=asked, timeout=60, trust_env=False)


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_it_is_well_once_it_is_started_and_calls_the_model_by_its_id(engine: Engine) -> None:
    assert engine.healthy() and engine.url.startswith("http://127.0.0.1:")
    assert complete(engine).json()["model"] == "tiny"
    listed = httpx.get(f"{engine.url}/v1/models", trust_env=False).json()["data"]
    assert [m["id"] for m in listed] == ["tiny"]
    can = engine.capabilities()
    assert can.chat and can.completions and {"messages", "prompt", "stream", "max_tokens"} <= can.parameters


def test_it_counts_what_it_does_under_the_same_names(engine: Engine) -> None:
    assert engine.healthy()
    before = engine.figures()
    assert in_flight(before) == 0
    assert complete(engine).status_code == 200
    assert engine.healthy()
    after = engine.figures()
    for key in (names.PROMPT_TOKENS, names.GENERATION_TOKENS):
        was, now = before[key], after[key]
        assert isinstance(was, float) and isinstance(now, float) and now > was
    assert set(after) <= set(names.REPLICA)


def test_two_of_them_do_not_meet(engine: Engine, name: str, launch: EngineLaunch) -> None:
    other = make_engine(name)
    other.start(launch)
    try:
        assert other.url != engine.url and other.healthy() and engine.healthy()
    finally:
        other.kill()


def test_it_lets_requests_end_before_it_leaves(engine: Engine) -> None:
    answers: list[int] = []
    asking = threading.Thread(
        target=lambda: answers.append(complete(engine, seed=700, max_tokens=48).status_code)
    )
    asking.start()
    until(lambda: answers or (engine.healthy() and in_flight(engine.figures())), "the request to be there")
    engine.stop()
    asking.join(10)
    assert answers == [200]
    assert not engine.healthy()
    engine.stop()  # again: nothing is there to leave


def test_what_is_no_model_is_refused_with_the_place_and_a_remedy(name: str, launch: EngineLaunch) -> None:
    engine = make_engine(name)
    with pytest.raises(ModelInvalid) as error:
        engine.start(replace(launch, path=launch.path.parent / "nothing"))
    assert error.value.where.endswith("nothing") and error.value.remedy
    engine.kill()


def test_what_chats_begin_with_is_read_ahead_and_in_every_slot(engine: Engine, launch: EngineLaunch) -> None:
    opening = "Say what it is."
    held = engine.open_with(opening)
    assert held > 0

    def ask(number: int) -> int:
        messages = [{"role": "system", "content": opening}, {"role": "user", "content": f"{number} more"}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 1, "temperature": 0}
        answer = httpx.post(f"{engine.url}/v1/chat/completions", json=asked, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", -1))

    with ThreadPoolExecutor(launch.slots) as pool:
        cached = list(pool.map(ask, range(launch.slots)))
    question = 0 if engine.name == "llama.cpp" else len("Why\n")  # others count what they were asked, too
    assert min(cached) >= held - question, "a request had to read it again"
    assert not list(Path(tempfile.gettempdir()).glob("caudal-slots-*"))
