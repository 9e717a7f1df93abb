"""Built-in training data: a tiny bilingual world of stories, facts and chat, the same for the same seed.

Documents (pre-training text) and dialogues (chat) come separately; held-out questions are never in either.
Our own text, CC0. Knows nothing of tokens or templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from random import Random

from caudal.train.data import questions
from caudal.train.data.questions import Exchange, ask, loosely
from caudal.train.data.stories import story_en, story_es

Dialogue = tuple[Exchange, ...]
"""Questions and answers that follow each other in one conversation."""

_FOLLOW_UP_P = 0.35
"""How often a conversation goes on after an answer."""

_HELD_OUT_MAKERS = (
    questions.sound, questions.home, questions.capital, questions.colour, questions.count, questions.next_one,
    questions.addition, questions.word, questions.phrase, questions.opposite, questions.reading,
)  # fmt: skip


def documents(seed: int) -> Iterator[str]:
    """Stories and plain facts without end."""
    random = Random(f"documents {seed}")
    while True:
        draw = random.random()
        if draw < 0.5:
            yield story_en(random)
        elif draw < 0.8:
            yield story_es(random)
        else:
            yield " ".join(_fact(random) for _ in range(random.randint(2, 4)))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Conversations without end, of one question mostly."""
    random = Random(f"dialogues {seed}")
    while True:
        turns = [_typed(random, ask(random))]
        while random.random() < _FOLLOW_UP_P and len(turns) < 4:
            turns.append(_typed(random, _asked_back(turns) if _can_ask_back(random, turns) else ask(random)))
        yield tuple(turns)


def heldout(seed: int, n: int) -> list[Exchange]:
    """`n` different questions that no document and no dialogue contains, the kinds taking turns."""
    random = Random(f"held out {seed}")
    chosen: dict[str, Exchange] = {}
    for maker in cycle(_HELD_OUT_MAKERS):
        if len(chosen) >= n:
            break
        exchange = ask(random, held_out=True, maker=maker)
        chosen.setdefault(exchange.question, exchange)
    return list(chosen.values())


def _typed(random: Random, exchange: Exchange) -> Exchange:
    return Exchange(exchange.kind, loosely(random, exchange.question), exchange.answer, exchange.key)


def _fact(random: Random) -> str:
    """An answer that makes sense without its question."""
    maker = random.choice(
        [
            questions.sound,
            questions.home,
            questions.capital,
            questions.colour,
            questions.opposite,
            questions.next_one,
        ]
    )
    return ask(random, maker=maker).answer


def _can_ask_back(random: Random, turns: list[Exchange]) -> bool:
    """Whether somebody has just said their name, and asks whether it was heard."""
    return turns[-1].kind == "name" and random.random() < 0.7


def _asked_back(turns: list[Exchange]) -> Exchange:
    answer = turns[-1].answer
    who = answer.rstrip("!").split(", ")[1]
    if answer.startswith("Nice"):
        return Exchange("memory", "What is my name?", f"Your name is {who}.")
    return Exchange("memory", "¿Cómo me llamo?", f"Te llamas {who}.")
