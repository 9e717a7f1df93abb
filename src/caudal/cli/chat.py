"""`caudal chat`: talk to a model in the terminal."""

from __future__ import annotations

import json
import os
import ssl
import sys
from collections.abc import Iterator

import click
import httpx

from caudal.cli.client import Client
from caudal.cli.output import console
from caudal.domain.errors import CaudalError, ControlAway, Failed, NotFound, Unauthorized
from caudal.domain.fleet import GatewaySpec
from caudal.domain.key import SECRET_VARIABLE
from caudal.store.authority import trusting
from caudal.store.home import Home, home
from caudal.store.state import open_store

Message = dict[str, str]

END = "data: [DONE]"


def gateway_url(place: Home) -> str:
    """Where the fleet's gateway listens: as the control process says; where that is away, as the state
    directory does, since the gateway goes on without it."""
    client = Client(place)
    if client.answers():
        return str(client.get("/status")["gateway_url"])
    fleet = open_store(place.database_url).read().fleet if place.root.exists() else None
    listens = fleet.gateway if fleet is not None else GatewaySpec()
    return listens.url(listens.port)


def trusted_by(place: Home, url: str) -> ssl.SSLContext | bool:
    """What the gateway's certificate is checked by: the system's authorities and the fleet's own. Raises UsageError."""
    return trusting(place.certificates) if url.startswith("https:") else True


def key_header() -> dict[str, str]:
    """The caller's key, where one is set."""
    key = os.environ.get(SECRET_VARIABLE, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def reply(
    url: str, model: str, messages: list[Message], max_tokens: int, trusted: ssl.SSLContext | bool = True
) -> Iterator[str]:
    """The assistant's words as they come. `trusted`: what the gateway's certificate is checked by. Raises NotFound,
    ControlAway, Failed."""
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}
    try:
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body,
            headers=key_header(),
            timeout=httpx.Timeout(60.0),
            trust_env=False,
            verify=trusted,
        ) as answer:
            if answer.status_code >= 400:
                raise _refused(answer.status_code, answer.read())
            for line in answer.iter_lines():
                if line == END:
                    return
                if line.startswith("data: "):
                    yield _words(line.removeprefix("data: "))
        raise Failed("the answer ended before it was whole", where=url, remedy="ask again")
    except httpx.TransportError as error:
        raise ControlAway(f"no gateway answers at {url}", why=str(error), remedy="caudal up") from error


def _words(data: str) -> str:
    """The words in one event of the stream. Raises Failed."""
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise Failed(str(chunk["error"].get("message", "the stream broke")))
        return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed("a part of the answer cannot be read", why=data[:200]) from error


def _refused(status: int, body: bytes) -> CaudalError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    if status == 401:
        return Unauthorized(message, remedy=f"set {SECRET_VARIABLE} to a key of this fleet")
    return NotFound(message, remedy="caudal models list") if status == 404 else Failed(message)


def choose(url: str, trusted: ssl.SSLContext | bool = True) -> str:
    """The first model that the gateway lists."""
    try:
        answer = httpx.get(
            f"{url}/v1/models", headers=key_header(), timeout=5.0, trust_env=False, verify=trusted
        )
    except httpx.TransportError as error:
        raise ControlAway(f"no gateway answers at {url}", why=str(error), remedy="caudal up") from error
    if answer.status_code >= 400:
        raise _refused(answer.status_code, answer.content)
    models = answer.json()["data"]
    if not models:
        raise NotFound("no model is served yet", remedy="caudal status says what the assistant waits for")
    return str(models[0]["id"])


@click.command("chat")
@click.argument("words", nargs=-1)
@click.option("-m", "--model", help="Which model. Default: the first that is served.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1, 100_000))
@click.pass_obj
def verb(root: str | None, words: tuple[str, ...], model: str | None, max_tokens: int) -> None:
    """Talk to a model. With WORDS: one answer; without: a conversation (Ctrl-D ends it). Where the gateway
    requires keys, set $CAUDAL_API_KEY."""
    url = gateway_url(home(root))
    trusted = trusted_by(home(root), url)
    chosen = model or choose(url, trusted)
    messages: list[Message] = []

    def turn(said: str) -> None:
        messages.append({"role": "user", "content": said})
        messages.append(
            {"role": "assistant", "content": _shown(reply(url, chosen, messages, max_tokens, trusted))}
        )

    if words:
        turn(" ".join(words))
        return
    out = console(stderr=True)
    if sys.stdin.isatty():
        out.print(f"[dim]{chosen} at {url}/v1; Ctrl-D ends[/]")
    while True:
        try:
            said = click.prompt("you", prompt_suffix="> ", err=True) if sys.stdin.isatty() else _line()
        except (EOFError, click.exceptions.Abort):
            return
        if said:
            turn(said)


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _shown(pieces: Iterator[str]) -> str:
    """An answer as it comes, and whole at the end."""
    answer = ""
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            answer += piece
    finally:
        if answer:
            click.echo()  # also below what was said before it broke
    return answer
