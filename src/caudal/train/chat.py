"""How a conversation becomes one text: the same in training, in Hugging Face and in llama.cpp.

`<|user|>question<|assistant|>answer<|end|>`, turn after turn, without a token at the beginning. A system
message is left out: models this small were never shown one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] | trim + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Jinja, for models that had a chat stage."""

TEXT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Jinja, for models that only ever read text: what is said is the text that they go on with."""


def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
    """What CHAT_TEMPLATE makes of the messages (`role` and `content` each)."""
    parts = []
    for message in messages:
        if message["role"] == "user":
            parts.append(USER + message["content"].strip())
        elif message["role"] == "assistant":
            parts.append(ASSISTANT + message["content"].strip() + END)
    return "".join(parts) + (ASSISTANT if add_generation_prompt else "")
