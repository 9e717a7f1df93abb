"""An engine without a network: what it says next is a function of all token ids so far, so that one id that
differs changes the rest of the answer. Its tokenizer joins what its generator says apart, it splits characters
over tokens, holds incomplete ones and begun stop sequences back, and frames its chunks as llama.cpp does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import count
from typing import Any

BOS, EOS = 1000, 1001
PIECES = [b"a", b"b", b"ab", b" ", b" a", b"ba", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98", b"\x80", b"."]
UNITS = [[0], [1], [2], [3], [4], [5], [6, 7], [8, 9, 10], [11]]
NEXT = {6: 7, 8: 9, 9: 10}
END_ODDS = 23
RANDOM = "by chance"  # such answers end at their limit only, so that none is too short for a test
RUNS = count(1_000_000)


def tokenize(text: str) -> list[int]:
    """Longest piece first; other bytes are tokens of their own."""
    data, ids = text.encode(), []
    order = sorted(range(len(PIECES)), key=lambda i: -len(PIECES[i]))
    while data:
        found = next((i for i in order if data.startswith(PIECES[i])), None)
        ids.append(data[0] + 2000 if found is None else found)
        data = data[1:] if found is None else data[len(PIECES[found]) :]
    return ids


def template(messages: list[dict[str, Any]]) -> str:
    """A prompt."""
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def next_id(ids: list[int], salt: str = "") -> int:
    """What is said after these."""
    if ids[-1] in NEXT:
        return NEXT[ids[-1]]
    number = zlib.crc32(repr(ids).encode() + salt.encode())
    return EOS if number % END_ODDS == 0 and RANDOM not in salt else UNITS[number // END_ODDS % len(UNITS)][0]


def generate(
    ids: list[int], limit: int, stops: list[str], salt: str = ""
) -> Iterator[tuple[str, int | None, str | None]]:
    """Texts with the token that completed each (None where it came with others), last a reason to finish.
    The number of tokens is that of `next_id` calls: see `spent`."""
    ids, unsent, apart, used = list(ids), b"", 0, 0
    finish = "length"
    while used < limit:
        token = next_id(ids, salt)
        ids.append(token)
        used += 1
        if token == EOS:
            finish = "stop"
            break
        unsent += PIECES[token]
        apart += 1
        try:
            text = unsent.decode()
        except UnicodeDecodeError:
            continue
        at = min((text.find(s) for s in stops if s in text), default=-1)
        if at >= 0:
            yield text[:at], None, None
            unsent, finish = b"", "stop"
            break
        if any(text[i:] == s[: len(text) - i] for s in stops for i in range(len(text))):
            continue
        yield text, token if apart == 1 else None, None
        unsent, apart = b"", 0
    yield unsent.decode(errors="ignore"), None, finish
    yield "", used, "spent"


class FakeEngine:
    """Answers requests, as bytes of events or as JSON. `dialect` is llama.cpp's, vllm's or sglang's."""

    def __init__(self, dialect: str = "llama.cpp") -> None:
        self.dialect = dialect

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body."""
        if path == "/apply-template" and self.dialect == "llama.cpp":
            return 200, json.dumps({"prompt": template(body["messages"])}).encode()
        if path == "/tokenize":
            ids = self._tokenize(body)
            return 200, json.dumps({"tokens": ids, "count": len(ids)}).encode()
        if path in ("/v1/chat/completions", "/v1/completions"):
            if body.get("stream"):
                return 200, "".join(self._stream(path, body)).encode()
            return 200, self._whole(path, body)
        return 404, b'{"error":{"message":"no such path","code":404,"type":"not_found_error"}}'

    def _whole(self, path: str, body: dict[str, Any]) -> bytes:
        """The stream's events as one answer: its text, its finish, its usage."""
        lines = self.undisturbed(path, {**body, "stream_options": {"include_usage": True}}).split(b"\n\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        message = {"role": "assistant", "content": text}
        finish = events[-2]["choices"][0]["finish_reason"]
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return json.dumps({**events[-1], "choices": [choice]}).encode()

    def undisturbed(self, path: str, body: dict[str, Any]) -> bytes:
        """What a client without a gateway gets."""
        return "".join(self._stream(path, body)).encode()

    def _tokenize(self, body: dict[str, Any]) -> list[int]:
        if self.dialect == "llama.cpp":
            start = [BOS] if body["add_special"] and isinstance(body["content"][0], str) else []
            mixed = [[p] if isinstance(p, int) else tokenize(p) for p in body["content"]]
            return [*start, *(i for ids in mixed for i in ids)]
        if "messages" in body:
            return self._prompt("/v1/chat/completions", body)
        return [BOS] * body["add_special_tokens"] + tokenize(body["prompt"])

    def _prompt(self, path: str, body: dict[str, Any]) -> list[int]:
        if path == "/v1/completions":
            prompt = body["prompt"]
            if isinstance(prompt, list) and isinstance(prompt[0], str):
                prompt = prompt[0]
            return [BOS, *tokenize(prompt)] if isinstance(prompt, str) else list(prompt)
        if not body.get("continue_final_message"):
            return [BOS, *tokenize(template(body["messages"]))]
        assert self.dialect == "sglang"
        said = body["messages"][-1]["content"]
        return [BOS, *tokenize(template(body["messages"][:-1])), *tokenize(said)]

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        chat = path == "/v1/chat/completions"
        shape = {
            "created": next(RUNS),
            "id": f"{'chat' if chat else ''}cmpl-{next(RUNS)}",
            "model": "engine",
            "object": "chat.completion.chunk" if chat else "text_completion",
        }
        ids = self._prompt(path, body)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
        for index in range(body.get("n") or 1):
            for choice in self._choices(chat, ids, body, index, usage):
                chunk: dict[str, Any] = {"choices": [{"index": index, **choice}], **shape}
                yield f"data: {json.dumps(chunk)}\n\n"
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({'choices': [], **shape, 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    def _choices(
        self, chat: bool, ids: list[int], body: dict[str, Any], index: int, usage: dict[str, int]
    ) -> Iterator[dict[str, Any]]:
        stop = body.get("stop") or []
        salt = str(index or "") + json.dumps(body.get("response_format") or "")
        if body.get("temperature") != 0:
            salt += RANDOM + str(next(RUNS))
        if chat:
            yield {"finish_reason": None, "delta": {"role": "assistant", "content": None}}
        if body.get("tools"):
            call = {"index": 0, "id": f"call-{next(RUNS)}", "type": "function"}
            yield _delta(tool_calls=[{**call, "function": {"name": "f", "arguments": ""}}])
        thinking = 3 if (body.get("chat_template_kwargs") or {}).get("think") else 0
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 10_000
        for text, token, finish in generate(ids, limit, [stop] if isinstance(stop, str) else stop, salt):
            if finish == "spent":
                usage["completion_tokens"] += token or 0
                break
            extra: dict[str, Any] = {}
            if body.get("logprobs") and text:
                extra["logprobs"] = {"content": [{"id": token, "token": text if token is not None else "?"}]}
            if text and body.get("tools"):
                yield _delta(tool_calls=[{"index": 0, "function": {"arguments": text}}])
            elif text and thinking:
                thinking -= 1
                yield _delta(reasoning_content=text)
            elif text:
                said = {"delta": {"content": text}} if chat else {"text": text}
                yield {"finish_reason": None, **said, **extra}
            if finish:
                yield {"finish_reason": finish, **({"delta": {}} if chat else {"text": ""})}


def _delta(**fields: Any) -> dict[str, Any]:
    return {"finish_reason": None, "delta": fields}
