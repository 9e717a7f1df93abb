"""The unmodified `openai` package for Node against the gateway with a real llama.cpp behind it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.front_door import front_door
from tests.support.real_replica import real_replica, write_model

FOLDER = Path(__file__).parents[1] / "node"
INSTALLED = Path(__file__).parents[2] / ".venv" / "node-openai"
CHECKS = 12


def installed() -> Path:
    """A folder with the package as the lock file has it; skips where npm or its registry is not there."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("the test of the package for Node needs npm: apt-get install npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    lock = INSTALLED / "package-lock.json"
    if not lock.exists() or lock.read_bytes() != (FOLDER / "package-lock.json").read_bytes():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, INSTALLED / name)
        command = [npm, "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(INSTALLED)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode != 0:
            lock.unlink()
            pytest.skip(f"npm's registry is not reachable: {done.stderr[-300:]}")
    shutil.copy(FOLDER / "conformance.mjs", INSTALLED / "conformance.mjs")
    return INSTALLED / "conformance.mjs"


@pytest.mark.timeout(300)
def test_node_client(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")
    script = installed()
    tiny = write_model(tmp_path / "tiny.gguf")
    eager = write_model(tmp_path / "eager.gguf", pooling=False, eager=True)
    with real_replica(tiny) as one, real_replica(eager, "caller") as other:
        models: Any = {"m": [f"north@{one.url}"], "caller": [f"north@{other.url}"], "empty": []}
        with front_door(tmp_path / "gateway", models) as gateway:
            command = ["node", str(script), gateway.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("ok ") == CHECKS
        assert one.alive and other.alive
