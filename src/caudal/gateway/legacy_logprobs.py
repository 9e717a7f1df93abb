"""`logprobs` of /v1/completions in the shape that OpenAI gave that endpoint, out of the one of chats.

llama.cpp answers both endpoints with `{"content": [{token, logprob, top_logprobs}]}`; clients of completions
read `tokens`, `token_logprobs`, `top_logprobs` and `text_offset`. What has that shape already passes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caudal.gateway.exchange import Exchange
from caudal.gateway.filtered_exchange import EventLines, FilteredExchange


class LegacyLogprobs(FilteredExchange):
    """Whole answers and streams of completions."""

    __slots__ = ("_lines", "_offsets")

    def __init__(self, inner: Exchange) -> None:
        super().__init__(inner)
        self._lines = EventLines()
        self._offsets: dict[int, int] = {}

    def whole(self, body: bytes) -> bytes:
        """The answer with its logprobs rewritten."""
        return msgspec.json.encode(self._rewritten(msgspec.json.decode(body)))

    def events(self, data: bytes) -> bytes:
        """The events with theirs."""
        return b"".join(self._event(one) for one in self._lines.feed(data))

    def _event(self, data: bytes) -> bytes:
        if data != b"[DONE]":
            data = msgspec.json.encode(self._rewritten(msgspec.json.decode(data)))
        return b"data: %b\n\n" % data

    def _rewritten(self, answer: Any) -> Any:
        for choice in answer.get("choices") or () if isinstance(answer, dict) else ():
            given = choice.get("logprobs")
            if isinstance(given, dict) and isinstance(given.get("content"), list):
                index = choice.get("index", 0)
                choice["logprobs"], self._offsets[index] = legacy(
                    given["content"], self._offsets.get(index, 0)
                )
        return answer


def legacy(content: list[dict[str, Any]], offset: int) -> tuple[dict[str, Any], int]:
    """The lists, and the offset (in characters of the text) after the last token."""
    tokens = [str(one.get("token", "")) for one in content]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [{t["token"]: t["logprob"] for t in one.get("top_logprobs") or ()} for one in content]
    lists = {
        "tokens": tokens,
        "token_logprobs": [one.get("logprob") for one in content],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return lists, offset
