"""Keys at the gateway: who is let in, as whom, to which models, and what guessing costs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from caudal.control.keys import for_gateways
from caudal.domain.key import ApiKey, KeyLimits
from caudal.gateway.callers import MAX_CACHED, NOBODY, Callers, decode_keys, required_at
from caudal.gateway.guesses import MAX_ADDRESSES, WINDOW_S, Guesses
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.process import Gateway
from tests.support.gateway import chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import MockReplica
from tests.unit.test_gateway_replicas import Control

SECRET = "ck-" + "a" * 43
OTHER = "ck-" + "b" * 43


def key(secret: str = SECRET, name: str = "alice", **more: Any) -> ApiKey:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return ApiKey(f"key-{name}", name, digest, 1.0, **more)


def table(*keys: ApiKey) -> bytes:
    """As control sends it."""
    return msgspec.json.encode(for_gateways(keys, 0.0))


class Desk:
    """Callers with a clock that a test turns."""

    def __init__(self, *keys: ApiKey, required: bool = False, known: bool = True) -> None:
        self.now = 1_000.0
        self.callers = Callers(required, wall=lambda: self.now)
        if known:
            self.update(*keys)

    def update(self, *keys: ApiKey) -> None:
        self.callers.update(decode_keys(table(*keys)))

    def asks(self, header: str | None, address: str = "10.0.0.1", name: bytes = b"authorization") -> str:
        """The caller's id, or the code of the refusal."""
        headers = {} if header is None else {name: header.encode("latin-1")}
        try:
            return self.callers.of(headers, lambda: address).id
        except ApiError as error:
            return f"{error.status} {error.code}"


WRONG = "401 invalid_api_key"


def test_a_key_is_recognised_however_it_is_sent() -> None:
    desk = Desk(key(), key(OTHER, "bob"))
    assert desk.asks(f"Bearer {SECRET}") == "key-alice"
    assert desk.asks(f"bearer   {SECRET} ") == "key-alice"
    assert desk.asks(f"Bearer {OTHER}") == "key-bob"
    assert desk.asks(SECRET) == "key-alice"
    assert desk.asks(SECRET, name=b"api-key") == "key-alice"


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Bearer none", "Bearer sk-abc", "Basic abc", "none"])
def test_what_is_no_key_of_ours_is_no_key(header: str | None) -> None:
    assert Desk(key()).asks(header) == NOBODY.id == "anonymous"
    assert Desk(key(), required=True).asks(header) == WRONG


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    "header",
    [f"Bearer {OTHER}", "Bearer ck-", f"Bearer {SECRET[:-1]}", f"Bearer {SECRET}x", f"Bearer {SECRET} x"],
)
def test_a_wrong_key_is_refused_also_where_none_is_needed(header: str, required: bool) -> None:
    desk = Desk(key(), required=required)
    assert desk.asks(header) == WRONG
    assert desk.callers.wrong == 1


def test_a_revoked_key_is_refused_from_the_next_table_on() -> None:
    desk = Desk(key(), key(OTHER, "bob"))
    assert [desk.asks(f"Bearer {s}") for s in (SECRET, OTHER)] == ["key-alice", "key-bob"]
    desk.update(key(OTHER, "bob"))
    assert [desk.asks(f"Bearer {s}") for s in (SECRET, OTHER)] == [WRONG, "key-bob"]


def test_other_limits_hold_from_the_next_table_on() -> None:
    desk = Desk(key())
    for models in ((), ("small",)):
        desk.update(key(limits=KeyLimits(models=models)))
        caller = desk.callers.of({b"authorization": f"Bearer {SECRET}".encode()}, str)
        assert caller.limits.models == models and caller.may_use("big") is not bool(models)


def test_a_key_expires_in_the_middle_of_things_and_counts_as_no_guess() -> None:
    desk = Desk(key(expires_at=1_001.0))
    assert desk.asks(f"Bearer {SECRET}") == "key-alice"
    desk.now = 1_001.0
    for _ in range(100):
        assert desk.asks(f"Bearer {SECRET}") == WRONG
    assert desk.callers.wrong == 0


def test_without_a_table_a_key_can_not_be_told_from_a_wrong_one() -> None:
    desk = Desk(known=False)
    assert desk.asks(f"Bearer {SECRET}") == "503 keys_unknown"
    assert desk.asks("Bearer none") == "anonymous"
    desk.update(key())
    assert desk.asks(f"Bearer {SECRET}") == "key-alice"


def test_who_guesses_waits_and_who_was_right_before_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(key(), key(OTHER, "bob"))
    assert desk.asks(f"Bearer {OTHER}") == "key-bob"
    answers = [desk.asks(f"Bearer ck-guess{n}") for n in range(1_000)]
    assert answers == [WRONG] * 20 + ["429 too_many_wrong_keys"] * 980
    assert desk.callers.wrong == 20
    # A right guess is not told from a wrong one now; a client behind the same address goes on.
    assert desk.asks(f"Bearer {SECRET}") == "429 too_many_wrong_keys"
    desk.update(key(), key(OTHER, "bob"))
    assert desk.asks(f"Bearer {OTHER}") == "key-bob"
    assert desk.asks(f"Bearer {SECRET}", "10.0.0.2") == "key-alice"
    assert desk.asks("Bearer none") == "anonymous"
    (said,) = [r.getMessage() for r in caplog.records]
    assert "20 wrong keys" in said and "10.0.0.1" in said and "ck-" not in said
    desk.now += WINDOW_S
    assert desk.asks("Bearer ck-guess") == WRONG


def test_what_is_remembered_of_headers_is_bounded() -> None:
    desk = Desk(key())
    for spaces in range(1, 300):
        assert desk.asks(f"Bearer{' ' * spaces * 10}{SECRET}") == "key-alice"
    assert max(map(len, desk.callers._seen)) <= 512
    desk.callers._seen = {
        b"%d" % n: desk.callers._seen[b"Bearer          " + SECRET.encode()] for n in range(MAX_CACHED)
    }
    assert desk.asks(f"Bearer {SECRET}") == "key-alice"
    assert len(desk.callers._seen) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), max_size=200), st.integers(1, 10))
def test_no_address_is_looked_at_more_often_than_is_allowed(
    asked: list[tuple[str, float]], most: int
) -> None:
    """Safety: within any window of an address at most `most` keys are looked at. Liveness: a minute of waiting
    is enough, whatever happened."""
    guesses = Guesses(most)
    now = 0.0
    looked: dict[str, list[float]] = {}
    for address, pause in asked:
        now += pause
        wait_s = guesses.wait_s(address, now)
        assert 0 <= wait_s <= WINDOW_S
        if not wait_s:
            guesses.wrong(address, now)
            looked.setdefault(address, []).append(now)
        assert guesses.wait_s(address, now + WINDOW_S) == 0
    for times in looked.values():
        for first in times:
            # Two windows may meet; so twice as many within any minute, and no more.
            assert sum(first <= t < first + WINDOW_S for t in times) <= 2 * most


def test_guesses_know_machines_not_addresses_and_are_bounded() -> None:
    guesses = Guesses(1)
    assert guesses.wrong("2001:db8::1", 0.0) and guesses.wait_s("2001:db8::ffff:2%eth0", 1.0) == 59.0
    assert guesses.wait_s("2001:db8:1::1", 1.0) == 0.0
    assert guesses.wrong("::ffff:1.2.3.4", 0.0) and guesses.wait_s("::ffff:1.2.3.4", 1.0)
    assert guesses.wait_s("::ffff:1.2.3.5", 1.0) == 0.0
    for number in range(2 * MAX_ADDRESSES):
        guesses.wrong(f"host-{number}", 2.0)
    assert len(guesses._wrong) == MAX_ADDRESSES
    assert guesses.wait_s(f"host-{2 * MAX_ADDRESSES - 1}", 2.0) > 0
    guesses.wrong("late", 100.0)
    assert (
        guesses.wait_s("late", 10.0) == 0.0
    )  # the clock was set back: nobody waits for longer than a minute


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"keys": 3}',
        b'{"keys": [{"id": "k"}]}',
        table(key()).replace(b'"sha256":"', b'"sha256":"zz'),
        table(key()).replace(b'"interactive"', b'"whenever"'),
    ],
)
def test_a_table_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_keys(data)


@pytest.mark.parametrize(
    ("host", "keys", "required"),
    [
        ("127.0.0.1", "optional", False),
        ("localhost", "optional", False),
        ("::1", "optional", False),
        ("127.0.0.1", "required", True),
        ("0.0.0.0", "optional", True),
        ("10.1.2.3", "optional", True),
        ("gpu-box.example", "optional", True),
    ],
)
def test_where_others_can_reach_it_keys_are_required(host: str, keys: str, required: bool) -> None:
    assert required_at(host, keys) is required


# Over HTTP.

Scenario = Callable[[Gateway, MockReplica], Awaitable[None]]


def with_two(tmp_path: Path, scenario: Scenario, *, required: bool = False) -> None:
    """A gateway that serves the models `m` and `n`, and knows alice (`m` only) and bob."""

    async def run() -> None:
        replica = await MockReplica("engine-name").start()
        async with gateway(tmp_path, {"m": [replica], "n": [replica]}) as one:
            one.callers.required = required
            one.callers.update(decode_keys(table(key(limits=KeyLimits(models=("m",))), key(OTHER, "bob"))))
            await scenario(one, replica)
        await replica.die()

    uvloop.run(run())


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n".encode()


def bearer(secret: str) -> str:
    return f"authorization: Bearer {secret}\r\n"


def test_a_head_that_is_known_opens_nothing_that_its_key_does_not(tmp_path: Path) -> None:
    """The same bytes on the same connection: what follows from a head alone is kept, who it is is not."""

    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            one.callers.update(decode_keys(table(key())))
            reader, writer = await connect(one)
            asked = post(chat(max_tokens=2), close=False, headers=f"authorization: Bearer {SECRET}\r\n")

            async def answered() -> tuple[int, Any]:
                writer.write(asked)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                return parsed(head + await reader.readexactly(length))

            assert [(await answered())[0] for _ in range(3)] == [200, 200, 200]
            one.callers.update(decode_keys(table(key(limits=KeyLimits(models=("other",))))))
            assert (await answered())[1]["error"]["code"] == "model_not_found"
            one.callers.update(decode_keys(table(key(limits=KeyLimits(requests_per_minute=1)))))
            assert [(await answered())[0] for _ in range(2)] == [200, 429]
            one.callers.update(decode_keys(table(key(expires_at=2.0))))
            status, told = await answered()
            assert status == 401 and "expired" in told["error"]["message"]
            one.callers.update(decode_keys(table(key(OTHER, "bob"))))
            assert (await answered())[0] == 401
            writer.close()
        await replica.die()

    uvloop.run(run())


def test_a_model_that_is_not_for_a_key_does_not_exist_for_it(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        for secret, seen in ((SECRET, ["m"]), (OTHER, ["m", "n"]), ("none", ["m", "n"])):
            status, listed = parsed(await raw(one, get("/v1/models", bearer(secret))))
            assert (status, [m["id"] for m in listed["data"]]) == (200, seen)
            status, _ = parsed(await raw(one, get("/v1/models/n", bearer(secret))))
            assert status == (200 if "n" in seen else 404)
            status, body = parsed(await raw(one, post(chat(model="n"), headers=bearer(secret))))
            assert status == (200 if "n" in seen else 404)
            assert status == 200 or body["error"]["code"] == "model_not_found"

    with_two(tmp_path, scenario)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/chat/completions", "/v1/no-such-path"])
def test_nothing_below_v1_is_said_to_who_has_no_key(tmp_path: Path, path: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        for headers in ("", bearer("none"), bearer("ck-wrong")):
            asked = (
                post(chat(), path, headers=headers) if path.endswith("completions") else get(path, headers)
            )
            answer = await raw(one, asked)
            status, body = parsed(answer)
            assert (status, body["error"]["code"], body["error"]["type"]) == (
                401,
                "invalid_api_key",
                "invalid_request_error",
            )
            assert b"www-authenticate: Bearer\r\n" in answer and b"ck-wrong" not in answer
        assert replica.requests == []
        for open_path in ("/health", "/ready"):
            assert parsed(await raw(one, get(open_path)))[0] == 200
        metrics = await raw(one, get("/metrics"))
        assert b"caudal_gateway_wrong_keys_total 1\n" in metrics
        assert b'caudal_gateway_requests_total{model="unknown",status="401"} 3\n' in metrics
        assert parsed(await raw(one, post(chat(), headers=bearer(OTHER))))[0] == 200

    with_two(tmp_path, scenario, required=True)


def test_guessing_over_http_gets_429_with_retry_after_and_no_key_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        answers = [await raw(one, post(chat(), headers=bearer(f"ck-guess-{n}"))) for n in range(22)]
        assert [parsed(a)[0] for a in answers] == [401] * 20 + [429] * 2
        assert b"retry-after: 60\r\n" in answers[-1] or b"retry-after: 59\r\n" in answers[-1]
        assert parsed(await raw(one, post(chat())))[0] == 200

    with_two(tmp_path, scenario)
    assert "127.0.0.1" in caplog.text and "ck-guess" not in caplog.text


def test_keys_are_fetched_and_outlive_control_and_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    monkeypatch.setenv("CAUDAL_TOKEN_FILE", str(secret))
    file = tmp_path / "keys.json"

    async def run() -> None:
        replica = await MockReplica().start()
        control = await Control().start()
        control.answer = table(key())
        options = {"keys_url": control.url, "keys_file": str(file), "keys": "required"}
        async with gateway(tmp_path, {"m": [replica]}, more=options) as one:
            assert one.keys is not None and await one.keys.poll()
            assert set(control.tokens) == {"s3cret"}
            assert parsed(await raw(one, post(chat(), headers=bearer(SECRET))))[0] == 200
            for status, answer in ((500, b"{}"), (200, b"not json"), (200, b'{"keys": [{}]}')):
                control.status, control.answer = status, answer
                assert not await one.keys.poll()
                assert parsed(await raw(one, post(chat(), headers=bearer(SECRET))))[0] == 200
            assert control.server is not None
            control.server.close()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and SECRET not in file.read_text()
        options["keys_url"] = "http://127.0.0.1:9/"
        async with gateway(tmp_path, {"m": [replica]}, more=options) as again:
            assert parsed(await raw(again, post(chat(), headers=bearer(SECRET))))[0] == 200
            assert parsed(await raw(again, post(chat(), headers=bearer(OTHER))))[0] == 401
        file.write_text("half a fi")
        async with gateway(tmp_path, {"m": [replica]}, more=options) as blank:
            answer = await raw(blank, post(chat(), headers=bearer(SECRET)))
            assert parsed(answer)[0] == 503 and b"retry-after: 1\r\n" in answer
            assert json.loads((await raw(blank, get("/ready"))).partition(b"\r\n\r\n")[2])["error"][
                "code"
            ] == ("keys_unknown")
        await replica.die()

    asyncio.run(run())
