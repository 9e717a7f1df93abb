"""Specifies train/inner and train/heldout: steps over exactly the samples asked for, and honest scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from caudal.domain.workload import ModelShape, StageSpec, TokenizerSpec, TrainSpec
from caudal.store.blobs import open_blobs
from caudal.train.codec import Encoder
from caudal.train.data.prepare import TINYWORLD, prepare
from caudal.train.fetch import data_folder
from caudal.train.inner import TorchInner
from caudal.train.interface import IdRange, RunPlan, plan
from caudal.train.layout import initial_state
from caudal.train.ledger import Contribution, Entry
from caudal.train.replay import _Replay
from caudal.train.schedule import fresh_factor, learning_rate

SPEC = TrainSpec(
    name="tiny",
    data=TINYWORLD,
    stages=(
        StageSpec("read", tokens=20_000, sample_tokens=32, batch=4, learning_rate=3e-3),
        StageSpec("chat", tokens=8_000, kind="chat", sample_tokens=64, batch=4),
    ),
    tokenizer=TokenizerSpec(entries=300),
    model=ModelShape(layers=1, heads=2, kv_heads=1, width=32, ffn_width=64, context=256),
)


def never(_: int) -> bool:
    """Nobody asks to stop."""
    return False


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPlan, TorchInner, TorchInner]:
    """A plan and two copies of a small model, ready to train."""
    blobs, cache = open_blobs("memory://"), tmp_path_factory.mktemp("cache")
    manifest = prepare(SPEC, blobs, "r")
    folder = data_folder(blobs, "r", manifest, Path(cache))
    of = plan(SPEC, manifest)
    return of, TorchInner(of, manifest, folder), TorchInner(of, manifest, folder)


def test_two_copies_do_the_same_and_the_loss_falls(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    of, one, two = made
    state = initial_state(of.shape, of.vocab, of.seed)
    assert one.size == two.size == state.size
    results = []
    for inner in (one, two):
        inner.load(state)
        before = inner.evaluate()["val_loss"]
        result = inner.run(0, [IdRange(0, 80), IdRange(100, 150)], (0.0, 0.2), never)
        results.append(result)
        assert result.steps == math.ceil(130 / 4)
        assert result.tokens == 130 * 32
        assert not result.stopped
        assert before == pytest.approx(math.log(of.vocab), abs=1.0)
        assert inner.evaluate()["val_loss"] < before - 0.5
    assert np.array_equal(results[0].params, results[1].params)
    assert results[0].loss == results[1].loss
    assert not np.array_equal(results[0].params, state)


def test_chat_trains_on_answers_only(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    of, inner, _ = made
    inner.load(initial_state(of.shape, of.vocab, of.seed))
    first = of.stages[1].first_id
    result = inner.run(1, [IdRange(first, first + 8)], (0.0, 0.1), never)
    assert result.tokens == 8 * 64
    assert 0 < result.loss < 2 * math.log(of.vocab)


def test_a_round_is_stopped_between_steps(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    of, inner, _ = made
    inner.load(initial_state(of.shape, of.vocab, of.seed))
    calls = iter([False, False, True])
    result = inner.run(0, [IdRange(0, 40)], (0.0, 0.1), lambda _: next(calls))
    assert result.stopped


def test_the_held_out_score_says_how_many_of_how_many(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    of, inner, _ = made
    inner.load(initial_state(of.shape, of.vocab, of.seed))
    said = inner.heldout()
    assert said["of"] == 200
    assert said["correct"] == sum(kind["correct"] for kind in said["kinds"].values())
    assert all(not sample["correct"] for sample in said["samples"]), "it has learnt nothing yet"


def test_the_score_is_what_greedy_decoding_gives(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    of, inner, _ = made
    inner.load(initial_state(of.shape, of.vocab, of.seed))
    questions = inner._questions[:4]
    end = inner._tokenizer.token_to_id("<|end|>")
    model, flat = inner._model, inner._flat.detach()
    # Expect exactly what the model says: then, and only then, all of them are right.
    from caudal.train.heldout import Question, score

    echoed = [
        Question(q.kind, q.question, "", q.prompt, (*model.generate(flat, q.prompt, end, 6),))
        for q in questions
    ]
    said = score(model, flat, [q for q in echoed if q.reply], inner._tokenizer)
    assert said["correct"] == said["of"] > 0


def test_the_rate_rises_and_falls(made: tuple[RunPlan, TorchInner, TorchInner]) -> None:
    stage = made[0].stages[0]
    rates = [learning_rate(stage, at / 100) for at in range(101)]
    top = rates.index(max(rates))
    assert rates[0] == 0
    assert max(rates) == pytest.approx(stage.learning_rate)
    assert top == round(100 * stage.warmup_fraction)
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[-1] == pytest.approx(stage.final_learning_rate)
    assert fresh_factor(0) == 0.25 and fresh_factor(3) == fresh_factor(1000) == 1


def test_bits_per_byte_are_of_the_text_itself(
    made: tuple[RunPlan, TorchInner, TorchInner], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("north and south are sites of one fleet\n" * 400)
    spec = TrainSpec(
        "letters", str(text), SPEC.stages[:1], tokenizer=TokenizerSpec("characters"), model=SPEC.model
    )
    blobs = open_blobs("memory://")
    manifest = prepare(spec, blobs, "r")
    letters = TorchInner(
        plan(spec, manifest), manifest, data_folder(blobs, "r", manifest, tmp_path / "cache")
    )
    values = letters.evaluate()  # a token is a byte
    assert values["val_bits_per_byte"] == pytest.approx(values["val_loss"] / math.log(2))
    world = made[1].evaluate()  # a token is several
    assert 1.2 < world["val_loss"] / math.log(2) / world["val_bits_per_byte"] < 8.0


def test_steps_that_are_cut_short_are_found_again_by_a_replay(
    made: tuple[RunPlan, TorchInner, TorchInner],
) -> None:
    of, one, two = made
    state = initial_state(of.shape, of.vocab, of.seed)
    for inner in (one, two):
        inner.forget()
        inner.load(state)
    ids, batch = IdRange(200, 226), of.stages[0].batch
    result = one.run(0, [ids], (0.3, 0.5), lambda step: step == 3, 1.4)
    assert result.stopped and (result.steps, result.tokens) == (3, 3 * batch * 32)
    whole = two.run(0, [IdRange(200, 200 + 3 * batch)], (0.3, 0.5), never, 1.4)
    assert not np.array_equal(result.params, whole.params), "its schedule is that of all seven steps"

    encoder, zeros = Encoder(), np.zeros(of.parameters, np.float32)
    said = [
        encoder.encode((result.params - state)[a:b], zeros[a:b], zeros[a:b].copy()) for a, b in of.fragments
    ]
    part = Contribution(
        site="a", worker="a", ids=((200, 200 + 3 * batch),), tokens=result.tokens, steps=3, loss=result.loss,
        seconds=1.0, weight=1.0, joined=True, progress=(0.3, 0.5), rate=1.4, planned=7,
    )  # fmt: skip
    again = _Replay(of, state.copy(), zeros.copy(), lambda: two)
    entry = Entry(
        "r", 1, 1, "", 0, 7, 1.0, 0.0, (part,), result.tokens, 3, 1.0, "", 0, "", 0.0, 8, of.fragments
    )
    assert again._site(part, entry) == said
