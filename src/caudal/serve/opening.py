"""What prompts begin with, read ahead of them: into every slot of llama.cpp, or into another engine's prefix cache.

llama.cpp reuses what a slot has read for the next prompt in that slot, and for no other: sixteen requests that come at
once with the same system prompt read it sixteen times (0.4 s each, 54 tokens of SmolLM2-135M on one core). Read once and
copied to all slots it is 0.4 s in all (a copy takes 0.4 ms, 2026-11). That matters most when a site is lost, and
all its streams come to the replicas that are left. vLLM and SGLang keep prefixes for all of their requests, and are
asked once.
"""

from __future__ import annotations

import shutil
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx

READ_S = 300.0
"""How long reading may take: thousands of tokens on a slow core are minutes."""

LEAST_TOKENS = 8
"""Fewer are read sooner than copied."""

FILE = "opening"
UNLIKE = ("Why", "0")
"""Two questions that have no beginning in common: what their prompts share is the opening."""


def read_into_slots(url: str, opening: str, slots: int, folder: Path) -> int:
    """Have a llama.cpp server hold what its chats begin with in each slot: what its template puts first, and the system
    prompt `opening` where there is one. `folder` is its `slot_save_path`, and is gone afterwards. Returns the tokens that
    are held (0: none worth it). Raises httpx.HTTPError, KeyError, ValueError."""
    tokens = shared_tokens(url, opening)
    if len(tokens) < LEAST_TOKENS:
        return 0
    folder.mkdir(mode=0o700)
    try:
        _post(url, "/completions", {"prompt": tokens, "n_predict": 0, "id_slot": 0, "cache_prompt": True})
        _post(url, "/slots/0?action=save", {"filename": FILE})
        for slot in range(1, slots):
            _post(url, f"/slots/{slot}?action=restore", {"filename": FILE})
    finally:
        shutil.rmtree(folder)
    return len(tokens)


def shared_tokens(url: str, opening: str) -> list[int]:
    """The tokens that all chats with this system prompt begin with, by the model's own template."""
    both = []
    for question in UNLIKE:
        prompt = _post(url, "/apply-template", {"messages": _messages(opening, question)})["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        both.append([int(token) for token in _post(url, "/tokenize", asked)["tokens"]])
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False))]


def read_once(url: str, model: str, opening: str) -> int:
    """Have a server that keeps prefixes by itself read the opening. Returns the tokens of that prompt. Raises
    httpx.HTTPError, KeyError, ValueError."""
    asked = {"model": model, "messages": _messages(opening, UNLIKE[0]), "max_tokens": 1, "temperature": 0}
    return int(_post(url, "/v1/chat/completions", asked)["usage"]["prompt_tokens"])


def _messages(opening: str, question: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": opening}] if opening else []
    return [*system, {"role": "user", "content": question}]


def _post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(url + path, json=body, timeout=READ_S, trust_env=False)
    answer.raise_for_status()
    read: dict[str, Any] = answer.json()
    return read
