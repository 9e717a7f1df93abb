"""A chat's answer as a response: a state machine with chunks of a chat in and OpenAI's typed events out.

The whole answer of a chat goes through the same machine as one large chunk, so that a response that is asked
for whole and one that is put together from its events are the same. Pure: ids and times are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from caudal.gateway.responses_request import Item, ResponseRequest

FINISH = {"length": "max_output_tokens", "content_filter": "content_filter"}

NewId = Callable[[str], str]


class ResponseStream:
    """One response that comes into being. `new_id` makes an id with the prefix that it is given."""

    def __init__(self, request: ResponseRequest, response_id: str, created_at: int, new_id: NewId) -> None:
        self.response = _blank(request, response_id, created_at)
        self.failed = False
        self._new_id = new_id
        self._number = 0
        self._open: Item | None = None  # the item that is being said; tool calls stay open side by side
        self._calls: dict[int, Item] = {}
        self._logprobs: list[Any] = []
        self._finish = ""

    @property
    def output(self) -> list[Item]:
        """The items so far."""
        items: list[Item] = self.response["output"]
        return items

    def begin(self) -> bytes:
        """The first events."""
        return self._event("response.created", response=self.response) + self._event(
            "response.in_progress", response=self.response
        )

    def chunk(self, chunk: Any) -> bytes:
        """The events of one chunk of the chat, which may be an error."""
        if not isinstance(chunk, dict):
            return b""
        if "error" in chunk:
            self._fail(chunk["error"])
            return b""
        if chunk.get("usage"):
            self.response["usage"] = _usage(chunk["usage"])
        out = b""
        for choice in chunk.get("choices") or ():
            out += self._choice(choice)
        return out

    def answer(self, answer: dict[str, Any]) -> None:
        """The whole answer of a chat at once."""
        choice = answer["choices"][0]
        delta = dict(choice["message"])
        calls = delta.get("tool_calls") or ()
        delta["tool_calls"] = [{**call, "index": i} for i, call in enumerate(calls)]
        self.chunk({"choices": [{**choice, "delta": delta}], "usage": answer.get("usage")})

    def end(self, completed_at: int) -> tuple[bytes, bytes]:
        """The events that close what is open, and apart from them the last one. To be called once."""
        out = self._close()
        for call in self._calls.values():
            out += self._call_done(call)
        response = self.response
        if self.failed:
            response["status"] = "failed"
            return out, self._event("response.failed", response=response)
        reason = FINISH.get(self._finish)
        if reason:
            response["status"] = "incomplete"
            response["incomplete_details"] = {"reason": reason}
            if self.output:
                self.output[-1]["status"] = "incomplete"
            return out, self._event("response.incomplete", response=response)
        response["status"] = "completed"
        response["completed_at"] = completed_at
        return out, self._event("response.completed", response=response)

    def _choice(self, choice: dict[str, Any]) -> bytes:
        delta = choice.get("delta") or {}
        out = b""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            out += self._thought(thought)
        if delta.get("content"):
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            out += self._text(delta["content"], logprobs)
        for call in delta.get("tool_calls") or ():
            out += self._call(call)
        self._finish = choice.get("finish_reason") or self._finish
        return out

    def _text(self, text: str, logprobs: list[Any]) -> bytes:
        out = b""
        if self._open is None or self._open["type"] != "message":
            out = self._close()
            item = {"type": "message", "id": self._new_id("msg_"), "status": "in_progress"}
            self._open = {**item, "role": "assistant", "content": []}
            out += self._added(self._open)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            out += self._event("response.content_part.added", **self._place(), part=part)
            self._open["content"].append({**part, "logprobs": []})
        part = self._open["content"][0]
        part["text"] += text
        part["logprobs"].extend(logprobs)
        return out + self._event("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _thought(self, text: str) -> bytes:
        out = b""
        if self._open is None or self._open["type"] != "reasoning":
            out = self._close()
            self._open = {"type": "reasoning", "id": self._new_id("rs_"), "summary": [], "content": []}
            self._open["status"] = "in_progress"
            out += self._added(self._open)
            self._open["content"].append({"type": "reasoning_text", "text": ""})
        self._open["content"][0]["text"] += text
        return out + self._event("response.reasoning_text.delta", **self._place(), delta=text)

    def _call(self, call: dict[str, Any]) -> bytes:
        out = self._close()
        index = call.get("index") or 0
        function = call.get("function") or {}
        item = self._calls.get(index)
        if item is None:
            item = {"type": "function_call", "id": self._new_id("fc_"), "status": "in_progress"}
            item |= {"call_id": call.get("id") or self._new_id("call_"), "name": function.get("name") or ""}
            item["arguments"] = ""
            self._calls[index] = item
            out += self._added(item)
        said = function.get("arguments")
        if not said:
            return out
        item["arguments"] += said
        return out + self._event("response.function_call_arguments.delta", **self._item(item), delta=said)

    def _added(self, item: Item) -> bytes:
        self.output.append(item)
        return self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)

    def _close(self) -> bytes:
        """End the message or the thought that is open."""
        item, place = self._open, self._place()
        if item is None:
            return b""
        self._open = None
        item["status"] = "completed"
        part = item["content"][0]
        text = part["text"]
        if item["type"] == "reasoning":
            out = self._event("response.reasoning_text.done", **place, text=text)
        else:
            out = self._event("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
            out += self._event("response.content_part.done", **place, part=part)
        index = place["output_index"]
        return out + self._event("response.output_item.done", output_index=index, item=item)

    def _call_done(self, item: Item) -> bytes:
        item["status"] = "completed"
        said = {"name": item["name"], "arguments": item["arguments"]}
        out = self._event("response.function_call_arguments.done", **self._item(item), **said)
        index = self.output.index(item)
        return out + self._event("response.output_item.done", output_index=index, item=item)

    def _item(self, item: Item) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": self.output.index(item)}

    def _place(self) -> dict[str, Any]:
        if self._open is None:
            return {}
        return {"item_id": self._open["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _fail(self, error: Any) -> None:
        told = error if isinstance(error, dict) else {}
        self.failed = True
        message = str(told.get("message") or "The engine failed.")
        self.response["error"] = {"code": "server_error", "message": message}

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(event))


def _blank(request: ResponseRequest, response_id: str, created_at: int) -> dict[str, Any]:
    """OpenAI's fields, with what the request said or its defaults."""
    reasoning = request.reasoning
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {"format": (request.text and request.text.format) or {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    prompt, reply = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": reply,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + reply,
    }
