"""vLLM and SGLang behind the seam, as real processes of a small stand-in for both."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from caudal.domain.errors import Failed, ModelInvalid, PortInUse
from caudal.ports import EngineLaunch
from caudal.serve import sglang, vllm
from caudal.serve.child_engine import MARK, ChildEngine, child_environment
from caudal.serve.engines import installed, make_engine
from caudal.serve.sglang import SglangEngine
from caudal.serve.vllm import VllmEngine
from caudal.store.blobs import open_blobs
from caudal.store.models import ModelStore
from caudal.telemetry import names
from tests.support.fleet import free_port
from tests.support.models import write_directory

ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A machine with both engines installed, and a model."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = write_directory(root / "model")
        self.said_file = root / "said.json"
        self._patch = monkeypatch
        program = root / "bin" / "vllm"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/fake_vllm.py "$@"\n')
        program.chmod(0o755)
        package = root / "python" / "sglang"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "launch_server.py").write_text(
            "import sys\nfrom tests.support.fake_vllm import main\nmain(sys.argv[1:])\n"
        )
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{ROOT}")
        monkeypatch.setenv(sglang.PYTHON, sys.executable)
        monkeypatch.delenv(vllm.PROGRAM, raising=False)
        monkeypatch.setenv("FAKE_ENGINE_SAID", str(self.said_file))
        self.engines: list[ChildEngine] = []

    def start(self, kind: type[ChildEngine] = VllmEngine, fail: str = "", **more: Any) -> ChildEngine:
        """An engine that is ready."""
        self._patch.setenv("FAKE_ENGINE", fail)
        engine = kind()
        self.engines.append(engine)
        engine.start(self.launch(**more))
        return engine

    def launch(self, **more: Any) -> EngineLaunch:
        """What is asked of it."""
        asked = {"port": 0, "context": 64, "slots": 3, "threads": 1, **more}
        return EngineLaunch("tiny", self.model, "127.0.0.1", **asked)

    @property
    def said(self) -> dict[str, Any]:
        """What the server was started with."""
        found: dict[str, Any] = json.loads(self.said_file.read_text())
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    found = Place(tmp_path, monkeypatch)
    yield found
    for engine in found.engines:
        engine.kill()


def complete(engine: ChildEngine, **more: Any) -> httpx.Response:
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 2, **more}
    return httpx.post(f"{engine.url}/v1/completions", json=asked, timeout=30, trust_env=False)


def gone(pid: int, within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_vllm_from_start_to_end(place: Place) -> None:
    engine = place.start(fail="slow", accelerators=2)
    assert engine.healthy() and complete(engine).json()["choices"][0]["text"] == " w w"
    argv = place.said["argv"]
    assert argv[:2] == ["serve", str(place.model)]
    flags = dict(zip(argv[2::2], argv[3::2], strict=True))
    port = engine.url.rpartition(":")[2]
    assert flags == {
        "--host": "127.0.0.1",
        "--port": port,
        "--served-model-name": "tiny",
        "--max-model-len": "64",
        "--max-num-seqs": "3",
        "--tensor-parallel-size": "2",
    }
    engine.stop()
    assert not engine.healthy() and gone(place.said["pid"])


def test_sglang_from_start_to_end(place: Place) -> None:
    engine = place.start(SglangEngine, accelerators=2)
    assert complete(engine).status_code == 200
    argv = place.said["argv"]
    assert argv[argv.index("--max-running-requests") + 1] == "3"
    assert argv[argv.index("--context-length") + 1] == "64" and argv[argv.index("--tp-size") + 1] == "2"
    figures = engine.figures()
    assert figures[names.GENERATION_TOKENS] == 2 and figures[names.KV_CACHE] == 0.28
    assert figures[names.FIRST_TOKEN] == [0.5, 1.0]
    engine.stop()
    assert gone(place.said["pid"])


def test_figures_are_vllms_own(place: Place) -> None:
    engine = place.start()
    complete(engine, max_tokens=5)
    figures = engine.figures()
    assert figures[names.RUNNING] == 0 and figures[names.WAITING] == 0
    assert figures[names.PROMPT_TOKENS] == 5 and figures[names.GENERATION_TOKENS] == 5
    assert figures[names.FIRST_TOKEN] == [0.125, 1.0, 0.001, 0.0, 0.25, 1.0]
    engine.kill()
    assert engine.figures() == {}


def test_the_end_waits_for_what_runs(place: Place) -> None:
    engine = place.start()
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(complete(engine, seed=900).status_code))
    asking.start()
    while engine.figures()[names.RUNNING] == 0:
        time.sleep(0.01)
    engine.stop()
    asking.join()
    assert answers == [200] and gone(place.said["pid"])


def test_one_that_ignores_the_signal_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.serve.child_engine.TERM_S", 0.3)
    engine = place.start(fail="deaf")
    engine.stop()
    assert gone(place.said["pid"])


def test_death_is_noticed_at_once_and_leaves_nothing_behind(place: Place) -> None:
    engine = place.start(fail="child")
    told = threading.Event()
    engine.when_gone(told.set)
    os.kill(place.said["pid"], signal.SIGKILL)
    begun = time.monotonic()
    assert told.wait(2) and time.monotonic() - begun < 0.5
    assert not engine.healthy() and gone(place.said["child"])
    late = threading.Event()
    engine.when_gone(late.set)
    assert late.is_set(), "told also where it asks too late"


def test_an_end_that_was_asked_for_is_no_death(place: Place) -> None:
    engine = place.start()
    told = threading.Event()
    engine.when_gone(told.set)
    engine.stop()
    assert not told.wait(0.2)


def test_one_that_cannot_load_says_so_within_a_second_or_two(place: Place, capfd: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelInvalid, match="vllm cannot serve the model") as error:
        place.start(fail="broken")
    assert time.monotonic() - begun < 10
    assert "ended with 1" in error.value.why and "engine_args" in error.value.remedy
    assert "Model architectures ['Strange']" in capfd.readouterr().err, "what it printed is in the gang's log"


def test_one_that_is_never_ready_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.serve.child_engine.START_S", 0.2)
    with pytest.raises(Failed, match="is not ready"):
        place.start(fail="slow")
    assert gone(place.said["pid"])


def test_no_secret_reaches_the_child(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CAUDAL_TOKEN_FILE",
        "CAUDAL_REPORT_URL",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
    ):
        monkeypatch.setenv(name, "secret-value")
    monkeypatch.setenv(MARK, "mark-1")
    place.start()
    said = place.said
    assert "secret-value" not in json.dumps(said)
    assert said["env"][MARK] == "mark-1", "the driver has to find it"
    assert said["env"]["HF_HUB_OFFLINE"] == "1" and said["env"]["VLLM_NO_USAGE_STATS"] == "1"


def test_environment_is_the_replicas_without_secrets() -> None:
    own = {"PATH": "/bin", "CAUDAL_X": "1", MARK: "m", "CUDA_VISIBLE_DEVICES": "0", "AZURE_KEY": "2"}
    kept = child_environment(own, {"A": "b"})
    assert {k: kept.get(k) for k in own} == {**own, "CAUDAL_X": None, "AZURE_KEY": None} and kept["A"] == "b"


def test_models_of_another_kind_are_refused_before_anything_starts(place: Place, tmp_path: Path) -> None:
    place.model = tmp_path / "nothing"
    with pytest.raises(ModelInvalid, match="not a Hugging Face directory"):
        place.start()
    assert not place.said_file.exists()


def test_a_port_that_is_taken(place: Place) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUse):
        place.start(port=port)


def test_engines_that_are_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.PROGRAM, "/nowhere/vllm")
    monkeypatch.setenv(sglang.PYTHON, "/nowhere/python")
    for kind, words in ((VllmEngine, "vLLM is not installed"), (SglangEngine, "SGLang is not installed")):
        with pytest.raises(Failed, match=words) as error:
            place.start(kind)
        assert "llama.cpp" in error.value.remedy and "/nowhere" in error.value.why
    assert installed()["vllm"] == installed()["sglang"] == ""
    monkeypatch.delenv(vllm.PROGRAM)
    assert installed()["vllm"].endswith("bin/vllm")


def test_arguments_of_the_users_own_come_last_and_say_whether_there_are_tools(place: Place) -> None:
    arguments = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    engine = place.start(arguments=arguments)
    assert tuple(place.said["argv"][-3:]) == arguments and engine.capabilities().tools
    assert not make_engine("vllm").capabilities().tools
    assert make_engine("sglang").capabilities().chat
    assert len(make_engine("vllm").capabilities().parameters) <= 64, "a report takes so many"
    assert len(make_engine("sglang").capabilities().parameters) <= 64


@pytest.fixture
def replica(place: Place, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a whole replica process for the model in a store; its output is in `log`."""
    url = (tmp_path / "blobs").as_uri()
    ModelStore(open_blobs(url), tmp_path / "cache").publish("tiny", place.model, source="here")
    config = {
        **{"model": "tiny", "version": 1, "context": 2048, "slots": 3, "threads": 1, "blobs_url": url},
        **{"cache_dir": str(tmp_path), "host": "127.0.0.1", "site": "north", "gang": "g", "engine": "vllm"},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    started: list[subprocess.Popen[bytes]] = []

    def start(fail: str = "") -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ['PYTHONPATH']}"}
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "caudal.serve.replica", str(path)]
            environment |= {"FAKE_ENGINE": fail}
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until_logged(process: subprocess.Popen[bytes], log: Path, words: str) -> str:
    text = ""
    end = time.monotonic() + 30
    while words not in text and time.monotonic() < end and process.poll() is None:
        text = log.read_text()
        time.sleep(0.02)
    assert words in text
    return text


Starts = Callable[..., subprocess.Popen[bytes]]


def test_a_replica_runs_it_from_the_store_to_tokens_and_ends_when_it_dies(
    place: Place, replica: Starts, tmp_path: Path
) -> None:
    process = replica()
    text = until_logged(process, tmp_path / "log", "is ready at")
    assert "tiny version 1 is ready at http://127.0.0.1:" in text and "loading weights" in text
    assert place.said["argv"][place.said["argv"].index("--max-model-len") + 1] == "64", "the model's own"
    os.kill(place.said["pid"], signal.SIGKILL)
    begun = time.monotonic()
    assert process.wait(10) == 3 and time.monotonic() - begun < 2


def test_a_replica_that_is_told_to_end_lets_requests_end(
    place: Place, replica: Starts, tmp_path: Path
) -> None:
    process = replica()
    text = until_logged(process, tmp_path / "log", "is ready at")
    url = text.partition("is ready at ")[2].split()[0]
    answers: list[int] = []
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 2, "seed": 1500}
    asking = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{url}/v1/completions", json=asked, timeout=30, trust_env=False).status_code
        )
    )
    asking.start()
    time.sleep(0.3)
    process.terminate()
    assert process.wait(15) == 0
    asking.join()
    assert answers == [200] and gone(place.said["pid"])


def test_a_replica_that_is_told_to_end_while_it_loads_ends_at_once(
    place: Place, replica: Starts, tmp_path: Path
) -> None:
    process = replica("never")
    until_logged(process, tmp_path / "log", "loading weights")
    process.terminate()
    begun = time.monotonic()
    assert process.wait(10) == 0 and time.monotonic() - begun < 2
    assert gone(place.said["pid"])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_replica_that_is_killed_takes_the_engine_with_it(place: Place, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from caudal.ports import EngineLaunch; "
        "from caudal.serve.vllm import VllmEngine; "
        "VllmEngine().start(EngineLaunch('tiny', Path(sys.argv[1]), '127.0.0.1', 0, 64, 1, 1)); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{os.environ['PYTHONPATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(place.model)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        process.kill()
    assert gone(place.said["pid"])
