"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with their HTTP status.

`code` is stable: clients match on it. Also turns what engines say into it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from caudal.gateway.http_request import Refusal

RETRY_AFTER_S = 2
"""What a client is told to wait where nothing better is known; a replica restarts in about a second."""

INVALID_API_KEY = "invalid_api_key"

CLIENTS_FAULT = (
    "input is not supported",
    "Failed to parse ",
    "Unknown reasoning format",
    "Cannot use both json_schema and grammar",
    "empty grammar stack",
    "does not support embeddings",
    "_M_range_check",
)
"""llama.cpp answers 500 or 501 to some requests that are simply wrong (pictures for a text model, tools without
a type, tokens beyond the vocabulary); a client that reads 500 sends the same again."""

_TOO_LARGE = re.compile(r"input \((\d{1,9}) tokens\) is too large .* batch size: (\d{1,9})\)")
"""How llama.cpp says it of texts for embeddings."""


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON to answer with."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> bytes:
        """Further header lines."""
        if self.status == 401:
            return b"www-authenticate: Bearer\r\n"
        return b"" if self.retry_after_s is None else b"retry-after: %d\r\n" % self.retry_after_s

    def event(self) -> bytes:
        """The same within a stream that has begun: what OpenAI's clients raise as an APIError."""
        return b"data: %b\n\n" % self.body()


def refusal_body(refusal: Refusal) -> bytes:
    """A refusal of the HTTP server in the same shape."""
    return ApiError(refusal.status, refusal.code, refusal.message).body()


def model_not_found(model: str) -> ApiError:
    """The fleet serves no such model."""
    shown = model[:100]
    return ApiError(
        404, "model_not_found", f"The model {shown!r} does not exist on this fleet.", param="model"
    )


def key_missing() -> ApiError:
    """Keys are required here, and the request has none."""
    message = (
        "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'. "
        "`caudal keys create NAME` makes one."
    )
    return ApiError(401, INVALID_API_KEY, message)


def key_wrong() -> ApiError:
    """No key of this fleet is like the one that came, or it was revoked."""
    return ApiError(401, INVALID_API_KEY, "Incorrect API key provided: it is not valid on this fleet.")


def key_expired() -> ApiError:
    """The key was valid until some time ago."""
    return ApiError(401, INVALID_API_KEY, "The API key that you provided has expired.")


def keys_unknown() -> ApiError:
    """A key cannot be told from a wrong one yet."""
    message = "The gateway knows no keys yet: control has not answered since it was started."
    return ApiError(503, "keys_unknown", message, retry_after_s=1)


def too_many_keys(wait_s: float) -> ApiError:
    """Wrong keys came from the client's address, again and again."""
    message = "Too many wrong API keys came from this address. Wait a minute, and check the key."
    return ApiError(429, "too_many_wrong_keys", message, retry_after_s=math.ceil(wait_s))


def no_replica(model: str, reason: str) -> ApiError:
    """The model is known and cannot be served now. `reason` is policy/routing's."""
    said = {
        "no_replica": f"The model {model!r} has no ready replica at the moment. Try again in a few seconds.",
        "failing": f"The replicas of {model!r} are failing at the moment. Try again in a few seconds.",
        "budget_spent": f"The model {model!r} is served by a provider whose budget for this month is spent. "
        "It begins anew with the next month.",
        "full": f"All replicas of {model!r} are busy. Try again in a few seconds.",
    }
    return ApiError(503, reason, said[reason], retry_after_s=RETRY_AFTER_S)


def replica_failed(model: str, why: str) -> ApiError:
    """Replicas were tried and failed."""
    message = f"The replicas of {model!r} failed this request ({why}). Try again in a few seconds."
    return ApiError(503, "replica_failed", message, retry_after_s=RETRY_AFTER_S)


def stream_broken(why: str) -> ApiError:
    """A replica failed after part of the answer had been sent."""
    message = (
        f"The replica failed in the middle of this answer ({why}). What you have is not the whole of it."
    )
    return ApiError(502, "replica_failed", message)


def rescue_impossible(why: str) -> ApiError:
    """A replica failed in the middle of an answer that cannot go on at another one."""
    message = (
        f"The replica failed in the middle of this answer, which cannot go on at another one: {why}. "
        "What you have is not the whole of it. Send the request again."
    )
    return ApiError(502, "rescue_impossible", message)


def engine_error(status: int, body: bytes, prompt_param: str) -> ApiError:
    """What an engine refused, in the shape and with the codes that OpenAI's clients know.

    llama.cpp says `exceed_context_size_error`, vLLM and others say it in their message only.
    """
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    if not isinstance(error, dict):
        return ApiError(status, "engine_error", f"The engine answered with status {status}.")
    message = error.get("message")
    text = message[:2000] if isinstance(message, str) else f"The engine answered with status {status}."
    kind = error.get("type")
    too_large = _TOO_LARGE.search(text)
    if too_large:
        error = {"n_prompt_tokens": int(too_large[1]), "n_ctx": int(too_large[2])}
    if too_large or kind == "exceed_context_size_error" or "maximum context length" in text:
        return _too_long(error, text, prompt_param)
    code = error.get("code")
    param = error.get("param")
    if status in (500, 501) and any(words in text for words in CLIENTS_FAULT):
        status, kind = 400, "invalid_request_error"
    return ApiError(
        status,
        code if isinstance(code, str) else str(kind or "engine_error"),
        text,
        param=param if isinstance(param, str) else None,
    )


def _too_long(error: dict[str, Any], text: str, prompt_param: str) -> ApiError:
    has, most = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(has, int) and isinstance(most, int):
        text = f"This model's maximum context length is {most} tokens; the prompt has {has}. Make it shorter."
    return ApiError(400, "context_length_exceeded", text, param=prompt_param)
