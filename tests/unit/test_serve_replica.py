"""A replica's life around its engine, with an engine that is told how to behave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from caudal.domain.errors import ModelInvalid, UsageError
from caudal.domain.model import ModelRecord
from caudal.ports import EngineCapabilities, EngineLaunch
from caudal.serve.engines import ENGINES, make_engine
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.serve.replica import ReplicaConfig, described, drain, launch_of, read_config, watch

RECORD = ModelRecord("m", 3, "here", 0.0, (("a.gguf", "0"),), 1, gguf="a.gguf", context=256)
CONFIG = ReplicaConfig("m", 3, 2048, 4, 1, "file:///nowhere", "/nowhere", "127.0.0.1", "north", "g-1")


class ScriptedEngine:
    """ports.Engine that is healthy as scripted and takes as long to stop as it is told."""

    name = "scripted"
    url = ""

    def __init__(self, health: str = "", until: threading.Event | None = None) -> None:
        self._health: Iterator[str] = iter(health)
        self._until = until
        self.killed = False

    def start(self, launch: EngineLaunch) -> None:
        """Nothing to load."""

    def healthy(self) -> bool:
        """As scripted: + or -."""
        return next(self._health) == "+"

    def capabilities(self) -> EngineCapabilities:
        """None."""
        return EngineCapabilities(False, False, False, False)

    def figures(self) -> Mapping[str, float | list[float]]:
        """None."""
        return {}

    def open_with(self, opening: str) -> int:
        """Nothing is held."""
        return 0

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Never."""

    def stop(self) -> None:
        """Returns when it may."""
        if self._until is not None:
            self._until.wait()

    def kill(self) -> None:
        """What would have been cut off."""
        self.killed = True


def told_after(checks: int) -> threading.Event:
    """An event whose wait returns True after that many calls, without waiting."""

    class Told(threading.Event):
        left = checks

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            return self.left < 0

    return Told()


@pytest.mark.parametrize(
    ("health", "well"), [("+++++", True), ("--+--", True), ("+---+", False), ("-----", False)]
)
def test_three_bad_checks_in_a_row_are_death(health: str, well: bool) -> None:
    assert watch(ScriptedEngine(health), told_after(5).wait) is well


def test_drain_waits_for_requests_but_not_for_ever() -> None:
    assert drain(ScriptedEngine(), grace_s=5)
    never = threading.Event()
    engine = ScriptedEngine(until=never)
    assert not drain(engine, grace_s=0.05) and engine.killed
    never.set()


def test_context_is_the_smaller_of_what_is_asked_and_what_the_model_has(tmp_path: Path) -> None:
    launch = launch_of(CONFIG, RECORD, tmp_path)
    assert (launch.context, launch.path, launch.slots) == (256, tmp_path / "a.gguf", 4)
    assert launch_of(CONFIG, replace(RECORD, context=0), tmp_path).context == 2048
    with pytest.raises(ModelInvalid, match="no GGUF"):
        launch_of(CONFIG, replace(RECORD, gguf=""), tmp_path)


def test_engines_other_than_llama_cpp_are_given_a_folder(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, engine="vllm", engine_args=("--dtype", "half"), accelerators=2)
    with pytest.raises(ModelInvalid, match="not a Hugging Face directory"):
        launch_of(config, RECORD, tmp_path)
    launch = launch_of(config, replace(RECORD, files=(*RECORD.files, ("config.json", "0"))), tmp_path)
    assert (launch.path, launch.arguments, launch.accelerators) == (tmp_path, ("--dtype", "half"), 2)


def test_what_a_replica_says_of_its_engine() -> None:
    said = described(CONFIG, make_engine())
    assert (said["engine"], said["slots"]) == ("llama.cpp", 4)
    assert said["capabilities"]["chat"] is True and "grammar" in said["capabilities"]["parameters"]
    assert len(said["capabilities"]["parameters"]) <= 64


def test_engines_by_name() -> None:
    assert set(ENGINES) == {"llama.cpp", "vllm", "sglang"} and make_engine().name == "llama.cpp"
    assert make_engine().capabilities().chat
    with pytest.raises(UsageError, match="no engine 'lama'"):
        make_engine("lama")


@pytest.mark.parametrize("content", [None, b"", b"this is not a model"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelInvalid) as error:
        LlamaCppEngine().start(EngineLaunch("m", path, "127.0.0.1", 0, 64, 1, 1))
    assert error.value.why and error.value.remedy


def test_file_that_only_begins_like_a_model(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(ModelInvalid, match="not a usable GGUF file"):
        LlamaCppEngine().start(EngineLaunch("m", path, "127.0.0.1", 0, 64, 1, 1))


def test_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UsageError):
        read_config(path)
    path.write_bytes(b'{"model": 3}')
    with pytest.raises(UsageError, match="model"):
        read_config(path)
    path.write_bytes(msgspec.json.encode(CONFIG))
    assert read_config(path) == CONFIG


def test_process_says_that_the_model_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    blobs = (tmp_path / "blobs").as_uri()
    path.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(CONFIG, blobs_url=blobs, cache_dir=str(tmp_path)))
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUDAL_")}
    command = [sys.executable, "-m", "caudal.serve.replica", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert done.returncode == 1 and done.stderr.startswith("not_found: ")
