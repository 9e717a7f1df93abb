"""The held-out score: how many questions that were never trained on get exactly the right answer.

An answer is right when greedy decoding says every token of the expected one, and ends there. That is seen in
one pass: at each place of the expected answer, is the next token the most probable one? Knows nothing of
what is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from caudal.train.chat import END, render
from caudal.train.data.tokenizer import token_id
from caudal.train.model import Llama

_AT_ONCE = 25
_SAMPLES = 8
_SAMPLE_TOKENS = 60


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its only right answer, as words and as tokens (the answer with its end)."""

    kind: str
    question: str
    answer: str
    prompt: tuple[int, ...]
    reply: tuple[int, ...]


def load_questions(file: Path, tokenizer: Tokenizer, context: int) -> list[Question]:
    """The held-out questions of a run's data that fit the context; none where it has no such file."""
    if not file.is_file():
        return []
    questions = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        prompt = prompt_tokens(tokenizer, row["question"])
        reply = tokenizer.encode(row["answer"] + END, add_special_tokens=False).ids
        if len(prompt) + len(reply) <= context:
            questions.append(
                Question(row["kind"], row["question"], row["answer"], tuple(prompt), tuple(reply))
            )
    return questions


def prompt_tokens(tokenizer: Tokenizer, question: str) -> list[int]:
    """A question as the model sees it, up to where it is to answer."""
    text = render([{"role": "user", "content": question}], add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def score(model: Llama, flat: Tensor, questions: list[Question], tokenizer: Tokenizer) -> dict[str, Any]:
    """`correct`, `of`, the same by kind, and some samples with what the model really said."""
    right = [
        value
        for i in range(0, len(questions), _AT_ONCE)
        for value in _right(model, flat, questions[i : i + _AT_ONCE])
    ]
    of = Counter(question.kind for question in questions)
    correct = Counter(q.kind for q, is_right in zip(questions, right, strict=True) if is_right)
    return {
        "correct": sum(right),
        "of": len(questions),
        "kinds": {kind: {"correct": correct[kind], "of": of[kind]} for kind in sorted(of)},
        "samples": [_sample(model, flat, q, tokenizer) for q in _one_of_each(questions)],
    }


def _right(model: Llama, flat: Tensor, questions: list[Question]) -> list[bool]:
    """Whether each question's whole reply is what greedy decoding says."""
    longest = max(len(q.prompt) + len(q.reply) for q in questions) - 1
    assert longest <= model.shape.context
    tokens = torch.zeros(len(questions), longest, dtype=torch.int64)
    places: list[int] = []
    expected: list[int] = []
    for row, question in enumerate(questions):
        both = (*question.prompt, *question.reply)
        tokens[row, : len(both) - 1] = torch.tensor(both[:-1])
        start = row * longest + len(question.prompt) - 1
        places.extend(range(start, start + len(question.reply)))
        expected.extend(question.reply)
    said = model.logits(flat, tokens, torch.tensor(places)).argmax(dim=-1)
    same = torch.split(said == torch.tensor(expected), [len(question.reply) for question in questions])
    return [bool(part.all()) for part in same]


def _one_of_each(questions: list[Question]) -> list[Question]:
    """The first question of each kind, up to a few."""
    firsts: dict[str, Question] = {}
    for question in questions:
        firsts.setdefault(question.kind, question)
    return list(firsts.values())[:_SAMPLES]


def _sample(model: Llama, flat: Tensor, question: Question, tokenizer: Tokenizer) -> dict[str, Any]:
    end = token_id(tokenizer, END)
    said = tokenizer.decode(model.generate(flat, question.prompt, end, _SAMPLE_TOKENS))
    return {
        "kind": question.kind,
        "question": question.question,
        "expected": question.answer,
        "answer": said,
        "correct": said == question.answer,
    }
