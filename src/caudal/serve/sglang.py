"""SGLang as an engine: `python -m sglang.launch_server` as a child of the replica, with a Hugging Face directory.

Which Python: the environment variable CAUDAL_SGLANG_PYTHON (SGLang often lives in a virtual environment of its
own), else the one that runs the replica. Flags as of SGLang 0.5 (docs.sglang.io, "Server Arguments", 2026-11).
Verified on a fake server only.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence

from caudal.domain.errors import Failed
from caudal.ports import EngineCapabilities, EngineLaunch
from caudal.serve.child_engine import ChildEngine
from caudal.serve.figures import SGLANG

PYTHON = "CAUDAL_SGLANG_PYTHON"

# fmt: off
PARAMETERS = frozenset((
    "messages", "prompt", "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
    "n", "max_tokens", "stop", "seed", "max_completion_tokens", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "repetition_penalty", "ignore_eos", "user", "stop_token_ids", "min_tokens", "echo",
    "suffix", "best_of", "skip_special_tokens", "regex", "ebnf", "json_schema", "continue_final_message",
    "chat_template_kwargs", "separate_reasoning", "no_stop_trim", "stop_regex",
))
# fmt: on


class SglangEngine(ChildEngine):
    """ports.Engine with SGLang."""

    name = "sglang"
    table = SGLANG

    def command(self, launch: EngineLaunch, port: int) -> Sequence[str]:
        """`python -m sglang.launch_server ...`. Raises Failed where it is not installed."""
        command = [
            *(_python(), "-m", "sglang.launch_server", "--model-path", str(launch.path)),
            *("--host", launch.host, "--port", str(port)),
            *("--served-model-name", launch.model_id),
            *("--context-length", str(launch.context)),
            *("--max-running-requests", str(launch.slots)),
            "--enable-metrics",  # off by default; drain and figures need them
        ]
        if launch.accelerators > 1:
            command += ["--tp-size", str(launch.accelerators)]
        return command

    def capabilities(self) -> EngineCapabilities:
        """What SGLang understands; tools only where `engine_args` name their parser."""
        said = {argument.partition("=")[0] for argument in self._arguments}
        return EngineCapabilities(
            chat=True,
            completions=True,
            embeddings=False,
            tools="--tool-call-parser" in said,
            parameters=PARAMETERS,
        )


def found() -> str:
    """The Python that has SGLang, empty where none is known. One that is named is not asked: that takes
    seconds."""
    named = os.environ.get(PYTHON, "")
    if named:
        return shutil.which(named) or ""
    return sys.executable if importlib.util.find_spec("sglang") is not None else ""


def _python() -> str:
    python = found()
    if not python:
        named = os.environ.get(PYTHON, "")
        raise Failed(
            "SGLang is not installed here",
            why=f"{PYTHON} names {named!r}, which is no program"
            if named
            else f"{sys.executable} has no package sglang",
            remedy=f"install SGLang on the machines of this site, or set {PYTHON} to a Python that has it "
            "where `caudal up` runs, or serve the model with `engine: llama.cpp`",
        )
    return python
