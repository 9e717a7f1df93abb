"""vLLM as an engine: `vllm serve` as a child of the replica, with a Hugging Face directory.

Which program: the environment variable CAUDAL_VLLM (a path; vLLM often lives in a virtual environment of its
own), else `vllm` on PATH, else beside the Python that runs the replica. Flags as of vLLM 0.30 (docs.vllm.ai,
2026-11). Verified on a fake server only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from caudal.domain.errors import Failed
from caudal.ports import EngineCapabilities, EngineLaunch
from caudal.serve.child_engine import ChildEngine
from caudal.serve.figures import VLLM

PROGRAM = "CAUDAL_VLLM"
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser")

# fmt: off
PARAMETERS = frozenset((
    "messages", "prompt", "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
    "n", "max_tokens", "stop", "seed", "max_completion_tokens", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "repetition_penalty", "ignore_eos", "user", "stop_token_ids", "min_tokens",
    "echo", "suffix", "best_of", "skip_special_tokens", "prompt_logprobs", "structured_outputs",
    "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "priority",
    "return_token_ids", "include_stop_str_in_output",
))
# fmt: on


class VllmEngine(ChildEngine):
    """ports.Engine with vLLM."""

    name = "vllm"
    table = VLLM
    environment = {"VLLM_NO_USAGE_STATS": "1"}  # noqa: RUF012 (read only)

    def command(self, launch: EngineLaunch, port: int) -> Sequence[str]:
        """`vllm serve PATH ...`. Raises Failed where it is not installed."""
        command = [
            *(_program(), "serve", str(launch.path)),
            *("--host", launch.host, "--port", str(port)),
            *("--served-model-name", launch.model_id),
            *("--max-model-len", str(launch.context)),
            *("--max-num-seqs", str(launch.slots)),
        ]
        if launch.accelerators > 1:
            command += ["--tensor-parallel-size", str(launch.accelerators)]
        return command

    def capabilities(self) -> EngineCapabilities:
        """What vLLM understands; tools only where `engine_args` name their parser."""
        said = {argument.partition("=")[0] for argument in self._arguments}
        return EngineCapabilities(
            chat=True, completions=True, embeddings=False, tools=said.issuperset(TOOLS), parameters=PARAMETERS
        )


def found() -> str:
    """The program's path, empty where there is none."""
    beside = Path(sys.executable).with_name("vllm")
    named = os.environ.get(PROGRAM, "")
    return shutil.which(named or "vllm") or (str(beside) if not named and beside.is_file() else "")


def _program() -> str:
    program = found()
    if not program:
        named = os.environ.get(PROGRAM, "")
        raise Failed(
            "vLLM is not installed here",
            why=f"{PROGRAM} names {named!r}, which is no program" if named else "there is no `vllm` on PATH",
            remedy=f"install vLLM on the machines of this site, or set {PROGRAM} to its program "
            "where `caudal up` runs, or serve the model with `engine: llama.cpp`",
        )
    return program
