"""A stream that loses replicas reads, to its client, as one that lost none: whatever byte they fail at, and
however their bytes are cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.key import Usage
from tests.support.fake_engine import FakeEngine
from tests.support.rescue_world import Failures, Outcome, ask, parsed_events

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS = st.text(alphabet="ab é😀.<x", min_size=1, max_size=12)
STOPS = st.sampled_from([None, "..", ".a", [". ", ".é"], "😀", ["éa"]])
USAGE = st.sampled_from([{}, {"stream_options": {"include_usage": True}}, {"stream_options": {}}])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A chat or a completion that is greedy."""
    body: dict[str, Any] = {"temperature": 0, **draw(USAGE)}
    stop, prompt = draw(STOPS), draw(PROMPTS)
    if stop is not None:
        body["stop"] = stop
    limit = draw(st.none() | st.integers(1, 30))
    if draw(st.booleans()):
        if limit:
            body[draw(st.sampled_from(["max_tokens", "max_completion_tokens"]))] = limit
        return CHAT, {**body, "messages": [{"role": "user", "content": prompt}]}
    if limit:
        body["max_tokens"] = limit
    kind = draw(st.sampled_from(["text", "one", "ids"]))
    forms: dict[str, Any] = {"text": prompt, "one": [prompt], "ids": [1000, 2100, 0, 3]}
    return COMPLETIONS, {**body, "prompt": forms[kind]}


def said(events: list[dict[str, Any]]) -> str:
    """The text of a stream."""
    choices = [c for e in events for c in e.get("choices", ())]
    return "".join((c.get("delta") or {}).get("content") or c.get("text") or "" for c in choices)


def well_formed(outcome: Outcome, path: str) -> None:
    """One stream: one id, one role, one finish, one [DONE] at its end."""
    events = outcome.events
    assert outcome.done == 1 and outcome.data.endswith(b"data: [DONE]\n\n")
    for name in ("id", "created", "model", "object"):
        assert len({e[name] for e in events}) == 1
    assert events[0]["model"] == "m"
    choices = [c for e in events for c in e["choices"]]
    assert sum("role" in c.get("delta", ()) for c in choices) == (path == CHAT)
    finishes = [c["finish_reason"] for c in choices if c["finish_reason"]]
    assert len(finishes) == 1 and choices[-1]["finish_reason"] == finishes[0]


@settings(max_examples=300, deadline=None)
@given(
    request=requests(),
    share=st.floats(0, 1),
    later=st.lists(st.integers(0, 4000), max_size=2),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    dialect=st.sampled_from(["llama.cpp", ""]),
)
def test_client_cannot_tell(
    request: tuple[str, dict[str, Any]],
    share: float,
    later: list[int],
    sizes: list[int],
    dialect: str,
) -> None:
    path, body = request
    engine = FakeEngine()
    usage_too = {**body, "stream_options": {"include_usage": True}}
    whole = engine.undisturbed(path, usage_too)
    first = whole.index(b"\n\n") + 2
    outcome = ask(
        path, body, Failures([first + int(share * (len(whole) - first)), *later], sizes), dialect=dialect
    )
    alone = parsed_events(whole)
    well_formed(outcome, path)
    assert said(outcome.events) == said(alone)
    finish = [c["finish_reason"] for e in alone for c in e["choices"]][-1]
    assert [c["finish_reason"] for e in outcome.events for c in e["choices"]][-1] == finish
    [used] = outcome.used
    usage = alone[-1]["usage"]
    exact = Usage(usage["prompt_tokens"], usage["completion_tokens"])
    assert used.usage == exact if used.exact else body.get("stop") and finish == "stop"
    shown = [e["usage"] for e in outcome.events if e.get("usage")]
    asked = bool((body.get("stream_options") or {}).get("include_usage"))
    assert [u["total_tokens"] for u in shown] == (
        [used.usage.prompt_tokens + used.usage.completion_tokens] if asked else []
    )
    assert outcome.metrics.rescues["impossible"] == outcome.metrics.rescues["failed"] == 0


@settings(max_examples=200, deadline=None)
@given(request=requests(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_usage_is_taken_out_of_any_cutting_and_the_rest_is_untouched(
    request: tuple[str, dict[str, Any]], sizes: list[int]
) -> None:
    path, body = request
    outcome = ask(path, body, Failures([], sizes))
    sent = outcome.by(0)[0][1]
    assert sent["stream_options"]["include_usage"] is True
    assert {k: v for k, v in sent.items() if k not in ("stream_options", "model")} == {
        **{k: v for k, v in body.items() if k != "stream_options"},
        "stream": True,
    }
    asked = bool((body.get("stream_options") or {}).get("include_usage"))
    alone = parsed_events(FakeEngine().undisturbed(path, body))
    assert [e["choices"] for e in outcome.events] == [e["choices"] for e in alone]
    assert sum("usage" in e for e in outcome.events) == asked
    assert outcome.done == 1 and outcome.used[0].exact and b"\n\n\n" not in outcome.data
