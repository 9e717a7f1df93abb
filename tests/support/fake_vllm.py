"""A small server with the shapes of vLLM (or SGLang): what `vllm serve` is in tests of the adapters.

Takes the flags that the adapters give and refuses all others, speaks `/health`, `/v1/models`, `/metrics`,
`/v1/completions`, `/v1/chat/completions`, `/tokenize`, keeps the prefixes of its chats, and writes its arguments and its
environment to `FAKE_ENGINE_SAID`. `FAKE_ENGINE`
names a misbehaviour: `broken` (cannot load), `slow` (0.5 s until it is ready), `never` (is not ready), `deaf`
(ignores SIGTERM), `child` (starts a process of its own). A completion takes `seed` milliseconds. After the
documentation of vLLM 0.30 and SGLang 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from typing import Any

FAIL = os.environ.get("FAKE_ENGINE", "")

VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} {running}.0
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} 0.0
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} 0.25
vllm:prompt_tokens_total{{engine="0",model_name="{model}"}} {prompt}.0
vllm:generation_tokens_total{{engine="0",model_name="{model}"}} {generated}.0
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.001",model_name="{model}"}} 0.0
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.25",model_name="{model}"}} {requests}.0
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf",model_name="{model}"}} {requests}.0
vllm:time_to_first_token_seconds_count{{engine="0",model_name="{model}"}} {requests}.0
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="{model}"}} 0.125
"""

SGLANG_METRICS = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{model_name="{model}"}} {running}.0
sglang:num_queue_reqs{{model_name="{model}"}} 0.0
sglang:token_usage{{model_name="{model}"}} 0.28
sglang:prompt_tokens_total{{model_name="{model}"}} {prompt}.0
sglang:generation_tokens_total{{model_name="{model}"}} {generated}.0
sglang:time_to_first_token_seconds_count{{model_name="{model}"}} {requests}.0
sglang:time_to_first_token_seconds_sum{{model_name="{model}"}} 0.5
"""


class Server(ThreadingHTTPServer):
    """One engine: its counters."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], model: str, metrics: str) -> None:
        super().__init__(address, Handler)
        self.model = model
        self.metrics = metrics
        self.lock = threading.Lock()
        self.chats: list[str] = []
        self.counts = {"running": 0, "prompt": 0, "generated": 0, "requests": 0}
        self.ready_at = time.monotonic() + {"slow": 0.5, "never": 1e9}.get(FAIL, 0.0)

    def count(self, **more: int) -> None:
        """Add to the counters."""
        with self.lock:
            for key, value in more.items():
                self.counts[key] += value


class Handler(BaseHTTPRequestHandler):
    """The endpoints."""

    server: Server

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200 if time.monotonic() >= self.server.ready_at else 503, b"")
        elif self.path == "/metrics" and self.server.metrics:
            text = self.server.metrics.format(model=self.server.model, **self.server.counts)
            self._send(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/v1/models":
            model = {"id": self.server.model, "object": "model", "owned_by": "vllm", "max_model_len": 64}
            self._json({"object": "list", "data": [model]})
        else:
            self._send(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            tokens = list(body["prompt"].encode())
            self._json({"count": len(tokens), "max_model_len": 64, "tokens": tokens})
        elif self.path == "/v1/completions" and body["model"] == self.server.model:
            self._complete(body)
        elif self.path == "/v1/chat/completions" and body["model"] == self.server.model:
            self._chat(body)
        else:
            error = {"message": f"The model `{body.get('model')}` does not exist.", "type": "NotFoundError"}
            self._json({"error": {**error, "param": "model", "code": 404}}, 404)

    def _complete(self, body: dict[str, Any]) -> None:
        self.server.count(running=1)
        time.sleep(float(body.get("seed") or 0) / 1e3)
        generated = int(body.get("max_tokens", 16))
        self.server.count(running=-1, requests=1, prompt=len(body["prompt"]), generated=generated)
        choice = {"index": 0, "text": " w" * generated, "logprobs": None, "finish_reason": "length"}
        self._json({"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]})

    def _chat(self, body: dict[str, Any]) -> None:
        prompt = "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"])
        cached = max((_common(prompt, said) for said in self.server.chats), default=0)
        self.server.chats.append(prompt)
        generated = int(body.get("max_tokens", 16))
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": generated}
        usage["prompt_tokens_details"] = {"cached_tokens": min(cached, len(prompt) - 1)}
        message = {"role": "assistant", "content": " w" * generated}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        self._json({"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def main(argv: list[str]) -> None:
    """Serve until ended."""
    vllm = argv[:1] == ["serve"]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    if vllm:
        parser.add_argument("serve")
        parser.add_argument("model")
        flags = ("max-model-len", "max-num-seqs", "tensor-parallel-size", "tool-call-parser", "dtype")
        parser.add_argument("--enable-auto-tool-choice", action="store_true")
    else:
        flags = ("model-path", "context-length", "max-running-requests", "tp-size", "tool-call-parser")
        parser.add_argument("--enable-metrics", action="store_true")
    for flag in ("host", "port", "served-model-name", *flags):
        parser.add_argument(f"--{flag}")
    args = parser.parse_args(argv)
    said = {"argv": argv, "env": dict(os.environ), "pid": os.getpid(), "child": 0}
    if FAIL == "child":
        said["child"] = subprocess.Popen(["sleep", "600"]).pid
    if FAIL == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(os.environ["FAKE_ENGINE_SAID"]).write_text(json.dumps(said))
    print("INFO fake engine: loading weights", flush=True)
    if FAIL == "broken":
        sys.exit("ValueError: Model architectures ['Strange'] are not supported for now.")
    metrics = VLLM_METRICS if vllm else SGLANG_METRICS if args.enable_metrics else ""
    Server((args.host, int(args.port)), args.served_model_name, metrics).serve_forever(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
