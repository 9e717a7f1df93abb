"""Specifies what `caudal train --data` derives from the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from caudal.cli.train import derived, run_name, verb
from caudal.domain.errors import DataError


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/home/me/My Talks.jsonl.gz", "my-talks"),
        ("/home/me/talks/*.jsonl", "talks"),
        ("/home/me/talks/", "talks"),
        ("s3://bucket/corpora/wiki.parquet", "wiki"),
        ("s3://bucket", "bucket"),
        ("/***", "run"),
        ("/" + "a" * 90, "a" * 60),
    ],
)
def test_a_run_is_called_after_its_data(data: str, name: str) -> None:
    assert run_name(data) == name


def test_dialogues_are_read_and_chatted(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "completion": "Hello"}) + "\n")
    spec, found = derived(str(file))
    assert [stage.kind for stage in spec.stages] == ["text", "chat"]
    assert (spec.name, spec.data, spec.publish) == ("talks", str(file), "")
    assert (spec.tokenizer.kind, found) == ("bpe", "dialogues")


def test_texts_are_read(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("words")
    spec, found = derived(str(tmp_path))
    assert [stage.kind for stage in spec.stages] == ["text"]
    assert (spec.tokenizer.kind, found) == ("bpe", "texts")


def test_one_text_is_shakespeares_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    spec, found = derived(str(tmp_path / "a.txt"))
    assert (spec.tokenizer.kind, spec.stages[0].tokens, found) == ("characters", 1_536_000, "one text")
    assert derived(str(tmp_path))[1] == "one text", "a folder of one text is that text"
    assert derived("builtin:tinyworld")[0].name == "starter"


def test_data_of_no_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": 1}\n')
    with pytest.raises(DataError, match="none of the fields that are known"):
        derived(str(tmp_path / "a.jsonl"))
    refused = CliRunner().invoke(verb, ["--data", str(tmp_path / "none.jsonl")], obj=str(tmp_path / "home"))
    assert isinstance(refused.exception, DataError) and "cannot read" in str(refused.exception)
    assert not (tmp_path / "home").exists()
