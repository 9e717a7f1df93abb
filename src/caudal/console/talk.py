"""One answer from the gateway, in pieces. Knows the OpenAI-compatible API, nothing about pages."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator

import httpx

from caudal.domain.key import SECRET_VARIABLE

Trusted = ssl.SSLContext | bool
"""What certificates are checked by; True: the system's authorities."""


async def answer_pieces(
    gateway_url: str,
    model: str,
    messages: list[dict[str, str]],
    max_tokens: int = 256,
    trusted: Trusted = True,
) -> AsyncIterator[str]:
    """The assistant's words as they come; a failure comes as words too, in brackets, since a person reads."""
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}
    try:
        async with (
            httpx.AsyncClient(timeout=60.0, trust_env=False, verify=trusted) as client,
            client.stream("POST", f"{gateway_url}/v1/chat/completions", json=body, headers=_key()) as answer,
        ):
            if answer.status_code >= 400:
                yield f"[{message_of(await answer.aread())}]"
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield piece_of(line.removeprefix("data: "))
    except httpx.TransportError as error:
        yield f"[the gateway does not answer: {error}]"


def _key() -> dict[str, str]:
    """The key of the process that shows the page, where the gateway requires one."""
    key = os.environ.get(SECRET_VARIABLE, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def piece_of(data: str) -> str:
    """The words in one event of the stream."""
    chunk = json.loads(data)
    if "error" in chunk:
        return f"[{chunk['error'].get('message', 'the stream broke')}]"
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", ()))


def message_of(body: bytes) -> str:
    """The message of an OpenAI-shaped error body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
