"""A small engine that speaks OpenAI's dialect and does what a test tells it: slow, failing, dying, garbled.

A request steers it by its parameters: `max_tokens` is the number of words, `seed` the milliseconds between
them, and `user` names a misbehaviour. Everything that it was asked is kept in `requests`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class MockReplica:
    """Serves on a loopback port of its own. `model` is what it calls itself in answers."""

    def __init__(self, model: str = "m", fail: str = "") -> None:
        self.model = model
        self.fail = fail
        self.requests: list[dict[str, Any]] = []
        self.running = 0
        self.left = 0
        self.connections = 0
        self.port = 0
        self.gate = asyncio.Event()  # no answer begins before it is set
        self.gate.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> MockReplica:
        """Listen."""
        self._server = await asyncio.start_server(self._client, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def die(self) -> None:
        """As by kill -9: every connection is reset, nobody listens any more."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Close every connection, as an engine does with those that were idle for too long."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if b"content-length" in line
                    ),
                    0,
                )
                body = json.loads(await reader.readexactly(length)) if length else {}
                body["_path"] = head.split(b" ")[1].decode()
                body["_head"] = head.decode("latin-1")
                self.requests.append(body)
                await self._watched(reader, writer, body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _watched(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Any) -> None:
        """Answer, and notice when the asker leaves meanwhile."""
        self.running += 1
        answer = asyncio.ensure_future(self._answer(writer, body))
        leaving = asyncio.ensure_future(self._gone(reader))
        try:
            await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.left += 1
                raise ConnectionResetError
            await answer
        finally:
            answer.cancel()
            leaving.cancel()
            self.running -= 1

    async def _gone(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        fail = self.fail or body.get("user", "")
        await self.gate.wait()
        if fail == "die_before":
            writer.transport.abort()
            raise ConnectionResetError
        if fail == "hang":
            await asyncio.sleep(3600)
        if fail in ("301", "400", "401", "429", "context", "500", "503"):
            self._error(writer, fail)
        elif fail == "garbage":
            writer.write(b"\x00\x01 hello, I am not HTTP \xff\r\n\r\n")
        elif fail == "not_json":
            writer.write(_whole(200, b"<html>hello</html>"))
        elif fail == "short_length":
            writer.write(_whole(200, b"{}").replace(b"content-length: 2", b"content-length: 200"))
            await writer.drain()
            writer.transport.abort()
            raise ConnectionResetError
        elif body.get("stream"):
            await self._stream(writer, body, fail)
        else:
            await asyncio.sleep(float(body.get("seed") or 0) / 1e3)
            writer.write(_whole(200, json.dumps(self._reply(body)).encode()))
        await writer.drain()

    def _error(self, writer: asyncio.StreamWriter, fail: str) -> None:
        error: dict[str, Any] = {"code": 400, "message": "Field 'x': no", "type": "invalid_request_error"}
        if fail == "context":
            error = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
            error |= {"n_prompt_tokens": 5031, "n_ctx": 2048}
        writer.write(_whole(400 if fail == "context" else int(fail), json.dumps({"error": error}).encode()))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = " ".join(self._words(body))
        chat = "chat" in body["_path"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "id": "cmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": self.model,
            "choices": [choice],
            "usage": USAGE,
        }

    def _words(self, body: dict[str, Any]) -> list[str]:
        count = body.get("max_tokens") or body.get("max_completion_tokens") or 3
        return [f"w{i}" for i in range(count)]

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], fail: str) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for i, word in enumerate(self._words(body)):
            await asyncio.sleep(float(body.get("seed") or 0) / 1e3)
            if fail == "die_mid" and i == 2:
                event = self._event(body, "half").encode()
                writer.write(_chunk(event[: len(event) // 2]))
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.transport.abort()
                raise ConnectionResetError
            if fail == "stall" and i == 2:
                await asyncio.sleep(3600)
            if fail == "endless_line":
                writer.write(_chunk(b"x" * 65536))
                await writer.drain()
                continue
            said = word.ljust(50_000) if fail == "fat" else word + " "
            writer.write(_chunk(self._event(body, said).encode()))
            await writer.drain()
        tail = self._event(body, "", "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            tail += self._event(body, None, usage=USAGE)
        if fail != "no_done":
            tail += "data: [DONE]\n\n"
        writer.write(_chunk(tail.encode()) + b"0\r\n\r\n")

    def _event(self, body: dict[str, Any], text: str | None, finish: str | None = None, **more: Any) -> str:
        chat = "chat" in body["_path"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {"content": text} if text else {}} if chat else {"text": text}
        event = {
            "id": "cmpl-1",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1,
            "model": self.model,
            "choices": [] if text is None else [choice],
            **more,
        }
        return f"data: {json.dumps(event)}\n\n"


def _whole(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
