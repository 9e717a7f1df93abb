"""llama.cpp as an engine: its own HTTP server, embedded in this process through the xllamacpp wheel.

Knows nothing of the model store, of reports or of gateways.
"""

from __future__ import annotations

import http.client
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from caudal.domain.errors import Failed, ModelInvalid, PortInUse
from caudal.ports import EngineCapabilities, EngineLaunch
from caudal.serve import figures
from caudal.serve.opening import read_into_slots
from caudal.store.gguf_header import GgufInfo, read_gguf

BATCH_TOKENS = 64
"""Prompt tokens per step. A step is the longest pause that one client's long prompt makes in the streams of
the others: 512 gave 3.8 s with SmolLM2-135M on one core, 128 gave 1.1 s, at the same prompt speed
(2026-11, AMD EPYC with AVX2: prompts gain nothing from larger batches there)."""

HTTP_THREADS = 48
"""Above what a gateway sends to one replica at once: a thread waits with each request, and the health check
needs one too."""

PROBE_S = 10.0
"""How long a probe may take. It passes through the queue of the inference loop, so that an engine whose HTTP
side alone is alive does not count as healthy; the loop looks there between two steps."""

QUIET_S = 0.3

# fmt: off
PARAMETERS = frozenset((
    "messages", "prompt", "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
    "n", "max_tokens", "stop", "seed", "max_completion_tokens", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "grammar", "json_schema", "repeat_penalty", "ignore_eos", "cache_prompt", "user",
))
# fmt: on


class LlamaCppEngine:
    """ports.Engine with llama.cpp. One model, `slots` requests at once, each with the whole context."""

    name = "llama.cpp"

    def __init__(self) -> None:
        self.url = ""
        self._server: Any = None
        self._embeds = False
        self._generates = True
        self._said = ""
        self._slots = 0
        # Where slots are saved to be copied: there while that is done, and of a name that nobody can make first.
        self._folder = Path(tempfile.gettempdir()) / f"caudal-slots-{secrets.token_hex(16)}"

    def start(self, launch: EngineLaunch) -> None:
        """Load and listen; port 0 takes any. Raises ModelInvalid, PortInUse."""
        assert self._server is None
        path = _gguf_file(launch)
        # The one seam where the native library enters: gateways and tests of the rest do without it.
        import xllamacpp  # noqa: PLC0415

        info = read_gguf(path)
        self._embeds, self._generates = info.embeds, info.generates
        params = _params(xllamacpp, launch, path, info)
        params.slot_save_path = f"{self._folder}/"
        self._slots = launch.slots
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            if launch.port and _somebody_listens(launch.host, launch.port):
                raise PortInUse(
                    f"port {launch.port} is taken", where=f"engine of {launch.model_id}"
                ) from error
            raise ModelInvalid(
                "llama.cpp cannot load the model",
                where=str(path),
                why=f"{error} The lines above, from llama.cpp, say what it found.",
                remedy="The file is damaged or of an unknown architecture: pull or publish the model again.",
            ) from error
        self.url = str(self._server.listening_address)

    def open_with(self, opening: str) -> int:
        """Into each slot. Raises Failed where a text was given and could not be read."""
        if not self._generates:
            return 0
        try:
            return read_into_slots(self.url, opening, self._slots, self._folder)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            if not opening:
                return 0  # a model without a template for chats
            raise Failed("the opening could not be read", where=self.name, why=str(error)) from error

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Never: it ends with this process."""

    def healthy(self) -> bool:
        """Whether its inference loop answers now (waits up to 10 s)."""
        return self._probe() is not None

    def capabilities(self) -> EngineCapabilities:
        """What llama.cpp's server understands, with the model that it has."""
        return EngineCapabilities(
            chat=self._generates,
            completions=self._generates,
            embeddings=self._embeds,
            tools=self._generates,
            parameters=PARAMETERS,
        )

    def figures(self) -> Mapping[str, figures.Figure]:
        """Its metrics under vLLM's names, as far as it has them, as of the last look at its health."""
        return figures.llama_cpp(self._said)

    def stop(self) -> None:
        """Wait until nothing runs or waits, then leave. Takes as long as the longest request: callers that
        have a deadline end the process."""
        while self._server is not None:
            if self._probe() == 0:
                time.sleep(QUIET_S)  # a request that was on its way
                if not self._probe():
                    break
            time.sleep(0.1)
        self._server = None

    def kill(self) -> None:
        """Nothing to do: it ends with this process."""

    def _probe(self) -> int | None:
        """Requests that run or wait; None where it does not answer."""
        text = self._scrape()
        return None if text is None else figures.in_flight(figures.llama_cpp(text))

    def _scrape(self) -> str | None:
        """Its metrics; None where it does not answer."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PROBE_S)
        try:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            text = response.read(1 << 20).decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        self._said = text if response.status == 200 else ""
        return self._said or None


def _gguf_file(launch: EngineLaunch) -> Path:
    """The file to load, with llama.cpp's own first check done in words that say more than its own."""
    path = launch.path
    remedy = "Pull the model again, or publish it again."
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelInvalid(
            "the model's file cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            remedy=remedy,
        ) from error
    if magic != b"GGUF":
        raise ModelInvalid(
            "this is not a GGUF file", where=str(path), why=f"begins with {magic!r}", remedy=remedy
        )
    return path


def _params(xllamacpp: Any, launch: EngineLaunch, path: Path, info: GgufInfo) -> Any:
    """llama.cpp's parameters. What is not set here has its server's default."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {launch.model_id}  # what answers call the model: gateways forward them untouched
    params.hostnames = [launch.host]
    params.port = launch.port
    # A fixed share per slot, not one that slots compete for (kv_unified): a long chat must not end others'.
    params.n_ctx = launch.context * launch.slots
    params.n_parallel = launch.slots
    params.kv_unified = False
    params.cont_batching = True
    params.ctx_shift = False  # forgetting the beginning silently is worse than `finish_reason: length`
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = launch.threads
    params.n_threads_http = HTTP_THREADS
    params.cache_ram_mib = 0  # its default lets saved prompts grow to 8 GiB
    params.use_jinja = True
    params.warmup = True
    params.ui = False
    params.endpoint_metrics = True  # requests_processing and requests_deferred
    params.endpoint_slots = False  # would show one client's prompt to another
    params.verbosity = 1
    if info.embeds:
        params.embedding = True  # of each request: the others generate as ever
        # With a share per slot, texts that are embedded in one step get vectors that are none of theirs
        # (xllamacpp 2026.10, mean pooling, 2026-11).
        params.kv_unified = True
        params.n_batch = params.n_ubatch = launch.context  # a text is one step, however long it is
    if info.float32:
        _exact(xllamacpp, params)
    return params


def _exact(xllamacpp: Any, params: Any) -> None:
    """Serve a float32 model as its trainer computes it, so that greedy answers are the trainer's own.

    With llama.cpp's half-precision keys, values and fused attention its log probabilities are 0.001 away
    (measured on 1 M parameters), enough to turn a tie; like this 0.00001. Costs memory and speed that only a
    large model would feel, and those are not served in float32.
    """
    single = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_k = params.cache_type_v = single
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED


def _somebody_listens(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True
