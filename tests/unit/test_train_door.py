"""Who may join a run: a refusal says which part differs, and how it is at both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

import caudal
from caudal.domain.workload import StageSpec
from caudal.train import frames, messages
from caudal.train.interface import DataManifest, RunPlan, StageData, plan
from caudal.train.messages import MAX_PARTS, MAX_WORD, BadMessage
from caudal.train.protocol.door import NAMED, parts, refusal
from tests.support.train_world import SPEC, hello

FILES = {"tokenizer.json": "a" * 64, "validation.tokens.bin": "b" * 64}


def planned(tokenizer: str = "a" * 64, samples: int = 50, **changed: object) -> RunPlan:
    """The tiny run on data with files, with some of its spec changed."""
    spec = replace(SPEC, **changed)  # type: ignore[arg-type]
    stages = tuple(
        StageData(s.name, s.kind, samples, s.sample_tokens, {f"stage-{i}.bin": f"{samples:064x}"})
        for i, s in enumerate(spec.stages)
    )
    return plan(spec, DataManifest(16, stages, {**FILES, "tokenizer.json": tokenizer}))


OURS = planned()


def told(theirs: RunPlan, **more: object) -> str:
    found = refusal(hello(theirs, "north", **more), OURS, 1)
    assert found is not None and found.reason == "mismatch" and found.retry_after_s < 0
    return found.text


def test_the_same_plan_is_let_in() -> None:
    assert refusal(hello(planned(), "north"), OURS, 1) is None


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            planned(model=replace(SPEC.model, layers=2)),
            "the model.layers at north is 2, at the coordinator 1",
        ),
        (
            planned(tokenizer="c" * 64),
            f"the tokenizer.json at north is {'c' * 64}, at the coordinator {'a' * 64}",
        ),
        (planned(samples=60), "the stage-0.bin at north is 0000"),
        (planned(seed=7), "the seed at north is 7, at the coordinator 1"),
        (planned(outer=replace(SPEC.outer, bits=8)), "the outer.bits at north is 8, at the coordinator 2"),
        (
            planned(stages=(replace(SPEC.stages[0], learning_rate=0.5), SPEC.stages[1])),
            "the stages.first.learning_rate at north is 0.5, at the coordinator 0.003",
        ),
        (
            replace(OURS, made_of={**OURS.made_of, "dtype": "bfloat16"}),
            "the dtype at north is bfloat16, at the coordinator float32",
        ),
        (replace(OURS, model="d" * 64), "the model.sha256 at north is dddd"),
    ],
)
def test_what_differs_is_named_with_both_sides(theirs: RunPlan, said: str) -> None:
    assert told(theirs).startswith(said)


def test_another_program_is_named_before_what_it_would_train() -> None:
    assert told(planned(seed=7), version="0.0.1") == (
        f"the version at north is 0.0.1, at the coordinator {caudal.__version__}"
    )
    assert told(OURS, protocol=1).startswith("the protocol at north is 1, ")
    assert told(OURS, generation=2).startswith("the generation at north is 2, ")


def test_of_many_differences_some_are_named_and_the_rest_counted() -> None:
    text = told(planned(stages=(StageSpec("other", tokens=80, sample_tokens=4, batch=9),)))
    assert text.count(" at north is ") == NAMED and text.endswith(" more")
    assert "unknown" in told(replace(OURS, made_of={}))


def test_a_site_that_says_no_parts_is_refused_by_the_hash() -> None:
    assert told(planned(seed=7), parts={}).startswith("the plan at north is ")
    assert told(planned(seed=7), parts=parts(OURS)).startswith("the plan at north is "), "they must have lied"


def test_parts_are_few_and_short_whatever_the_plan() -> None:
    files = {f"part-{i}-{'x' * 200}": "y" * 500 for i in range(2 * MAX_PARTS)}
    said = parts(replace(OURS, made_of=files))
    assert len(said) <= MAX_PARTS and all(len(w) <= MAX_WORD for pair in said.items() for w in pair)
    other = parts(replace(OURS, made_of={**files, f"part-9-{'x' * 200}": "z" * 500}))
    assert said != other
    frames.pack(hello(replace(OURS, made_of=files), "north"))


@pytest.mark.parametrize(
    "wrong", [{f"p{i}": "" for i in range(MAX_PARTS + 1)}, {"x" * (MAX_WORD + 1): ""}, {"x": "y" * 81}]
)
def test_parts_beyond_their_limits_are_no_message(wrong: dict[str, str]) -> None:
    with pytest.raises(BadMessage):
        messages.decode(messages.encode(hello(OURS, "north", parts=wrong)))


def test_what_would_not_print_is_not_said() -> None:
    lied = {**parts(OURS), "seed": "1\n\x1b[2J"}
    assert "the seed at north is 1??[2J" in told(planned(seed=7), parts=lied)
