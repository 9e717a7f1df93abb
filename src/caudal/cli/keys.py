"""`caudal keys`: who may use the gateway, how much, and what was used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from caudal.cli.client import Client, path
from caudal.cli.output import ago, console, count, json_option, plain, print_json, table
from caudal.domain.errors import UsageError
from caudal.domain.key import Slo
from caudal.store.home import home

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = (
    click.option("--weight", type=float, help="Its share against other keys, where not all can be served."),
    click.option("--requests-per-minute", type=int, help="0: without a limit; so for all below."),
    click.option("--tokens-per-minute", type=int, help="Tokens of prompts and answers."),
    click.option("--concurrency", type=int, help="Requests at once."),
    click.option("--budget-tokens", type=int, help="Tokens in a calendar month (UTC)."),
    click.option(
        "--budget-usd",
        type=float,
        help="What external addresses cost, in a calendar month (UTC). Own models cost nothing.",
    ),
    click.option(
        "--slo", type=click.Choice([s.value for s in Slo]), help="The best class that it may ask for."
    ),
    click.option("--model", "models", multiple=True, help="A model that it may use; may be repeated."),
)
_UNITS_S = {"min": 60, "h": 3600, "d": 86400}


def _limit_options(function: F) -> F:
    for option in reversed(_LIMITS):
        function = option(function)
    return function


def _given(limits: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if value not in (None, ())}


def seconds(text: str) -> float:
    """`90min`, `12h`, `30d` in seconds. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,6})(min|h|d)", text)
    if found is None:
        raise UsageError(f"{text!r} is not a length of time", remedy="write it as 90min, 12h or 30d")
    return float(found[1]) * _UNITS_S[found[2]]


def moment(text: str) -> float:
    """`2026-11-30`, with a time after it or not, or how long ago (`24h`), in seconds since 1970. Raises
    UsageError."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time() - seconds(text)


@click.group("keys")
def verb() -> None:
    """Make, limit and revoke keys of the gateway; show what was used with them.

    KEY is a key's name or its id.
    """


@verb.command("create")
@click.argument("name")
@_limit_options
@click.option("--expires", help="How long it is valid: 90min, 12h, 30d. Default: until it is revoked.")
@json_option
@click.pass_obj
def create(root: str | None, /, name: str, expires: str | None, as_json: bool, **limits: Any) -> None:
    """Make a key and print its secret, once: it is not kept and cannot be shown again.

    \b
    OPENAI_API_KEY=$(caudal keys create alice --requests-per-minute 60)
    """
    expires_at = time.time() + seconds(expires) if expires else 0.0
    body = {"name": name, "limits": _given(limits), "expires_at": expires_at}
    answer = Client(home(root)).post("/keys", body)
    if as_json:
        print_json(answer)
        return
    click.echo(answer["secret"])
    click.echo(f"key {name} ({answer['key']['id']}); its secret is shown this once", err=True)


@verb.command("list")
@click.option("--all", "revoked", is_flag=True, help="Also those that were revoked.")
@json_option
@click.pass_obj
def list_keys(root: str | None, revoked: bool, as_json: bool) -> None:
    """List the keys."""
    answer = Client(home(root)).get("/keys", revoked=revoked)
    if as_json:
        print_json(answer)
        return
    rows = [
        (k["name"], k["id"], ago(k["created_at"]), _state(k), _words(k["limits"])) for k in answer["items"]
    ]
    console().print(table(("NAME", "ID", "MADE", "STATE", "LIMITS"), rows))


@verb.command("show")
@click.argument("key")
@json_option
@click.pass_obj
def show(root: str | None, key: str, as_json: bool) -> None:
    """Show one key."""
    _print(Client(home(root)).get(path("keys", key)), as_json)


@verb.command("revoke")
@click.argument("key")
@json_option
@click.pass_obj
def revoke(root: str | None, key: str, as_json: bool) -> None:
    """Have a key refused from now on, for good. Gateways that reach control know it within about a second."""
    _print(Client(home(root)).post(path("keys", key, "revoke")), as_json)


@verb.command("limit")
@click.argument("key")
@_limit_options
@click.option("--all-models", is_flag=True, help="It may use every model again.")
@json_option
@click.pass_obj
def limit(root: str | None, /, key: str, all_models: bool, as_json: bool, **limits: Any) -> None:
    """Change the limits that are given; the others stay."""
    given = _given(limits) | ({"models": []} if all_models else {})
    if not given:
        raise UsageError("no limit is given", remedy="caudal keys limit --help lists them")
    _print(Client(home(root)).post(path("keys", key, "limits"), given), as_json)


@verb.command("usage")
@click.argument("key", required=False)
@click.option("--since", help="A date (2026-11-30), or how long ago (24h, 30d). Default: everything.")
@click.option("--hours", is_flag=True, help="One row for each hour, instead of their sum.")
@json_option
@click.pass_obj
def usage(root: str | None, key: str | None, since: str | None, hours: bool, as_json: bool) -> None:
    """Show what was used by key and model; requests without a key count as `anonymous`."""
    begun_at = moment(since) if since else 0.0
    answer = Client(home(root)).get("/usage", key=key, since=max(0.0, begun_at))
    if as_json:
        print_json(answer)
        return
    sums: dict[tuple[str, ...], list[int]] = {}
    usd: dict[tuple[str, ...], float] = {}
    numbers = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
    for row in answer["items"]:
        when = (datetime.fromtimestamp(row["hour"]).strftime("%Y-%m-%d %H:%M"),) if hours else ()
        place = (row["key"] or row["key_id"], row["model"], *when)
        sums[place] = [a + row[n] for a, n in zip(sums.get(place, [0] * len(numbers)), numbers, strict=True)]
        usd[place] = usd.get(place, 0.0) + row["usd"]
    columns = ("KEY", "MODEL", *(("HOUR",) if hours else ()))
    rows = [(*map(plain, place), *map(count, sums[place]), f"{usd[place]:.4f}") for place in sums]
    console().print(table((*columns, "REQUESTS", "FAILED", "PROMPT", "CACHED", "ANSWER", "USD"), rows))


def _print(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    console().print(f"key {key['name']} ({key['id']}): {_state(key)}, made {ago(key['created_at'])}")
    console().print(f"limits: {_words(key['limits'])}")


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"]:
        return "revoked"
    if not key["expires_at"]:
        return "valid"
    ends = datetime.fromtimestamp(key["expires_at"]).strftime("%Y-%m-%d %H:%M")
    return f"expired {ends}" if key["expires_at"] <= time.time() else f"valid until {ends}"


def _words(limits: dict[str, Any]) -> str:
    """The limits that are not the usual ones."""
    usual = {"weight": 1.0, "slo": Slo.INTERACTIVE.value}
    said = [
        f"{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in limits.items()
        if value and value != usual.get(name)
    ]
    return plain(", ".join(said)) or "none"
