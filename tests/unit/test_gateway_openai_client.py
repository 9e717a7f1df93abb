"""The unmodified `openai` package against the gateway: sync and async, streaming and not, and its errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import openai
import pytest
import uvloop

from tests.support.gateway import gateway
from tests.support.mock_replica import MockReplica

HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with one replica, in an event loop of its own thread."""
    started = threading.Event()
    box: dict[str, object] = {}

    async def run() -> None:
        replica = await MockReplica("inner").start()
        end = asyncio.Event()
        async with gateway(tmp_path_factory.mktemp("gateway"), {"m": [replica], "empty": []}) as one:
            box.update(url=one.url, end=end, loop=asyncio.get_running_loop())
            started.set()
            await end.wait()
        await replica.die()

    thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield str(box["url"])
    loop, end = box["loop"], box["end"]
    assert isinstance(loop, asyncio.AbstractEventLoop) and isinstance(end, asyncio.Event)
    loop.call_soon_threadsafe(end.set)
    thread.join(10)


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as one:
        yield one


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["m", "empty"]
    assert client.models.retrieve("m").id == "m"


def test_whole_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HI, temperature=0, max_tokens=4)
    assert answer.choices[0].message.content == "w0 w1 w2 w3"
    assert answer.usage is not None and answer.usage.total_tokens == 10 and answer.model == "m"
    assert client.completions.create(model="m", prompt="x").choices[0].text == "w0 w1 w2"


def test_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "w0 w1 w2 "
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert {c.model for c in chunks} == {"m"} and len({c.id for c in chunks}) == 1


def test_async_client(base_url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="m", messages=HI)
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True, max_tokens=50)
            said = [c.choices[0].delta.content or "" async for c in stream]
            assert "".join(said).split() == [f"w{i}" for i in range(50)]
            assert (await whole).choices[0].message.content == "w0 w1 w2"

    asyncio.run(run())


def test_leaving_a_stream_early_leaves_the_client_usable(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="m", messages=HI, stream=True, max_tokens=500, seed=5
    ) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model="m", messages=HI).choices[0].finish_reason == "stop"


def test_errors_become_its_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=HI)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="m", messages=HI, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="m", messages=HI, user="context")
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError) as away:
        client.chat.completions.create(model="empty", messages=HI)
    assert away.value.status_code == 503 and away.value.response.headers["retry-after"]
    with pytest.raises(openai.APIError, match="in the middle of this answer"):
        list(
            client.chat.completions.create(model="m", messages=HI, stream=True, max_tokens=9, user="die_mid")
        )
