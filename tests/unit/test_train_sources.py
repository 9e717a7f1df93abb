"""Specifies train/sources: what each format gives, from files, folders, patterns and URLs, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.errors import DataError
from caudal.store.blobs import open_store_at
from caudal.train.sources import text as text_source
from caudal.train.sources.base import Dialogue, Message, Record, Text
from caudal.train.sources.corpus import open_corpus
from caudal.train.sources.fields import record_of
from caudal.train.sources.text import pieces
from tests.support.object_stores import Server, s3

__all__ = ["s3"]

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
TALKED = Dialogue((Message("user", "Hi"), Message("assistant", "Hello!")))
TEXTS = [{"text": f"Text number {n}."} for n in range(700)]
READ = [Text(row["text"]) for row in TEXTS]


def lines(rows: list[Any]) -> bytes:
    """The rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def records(path: Path | str) -> list[Record]:
    """All that the data holds."""
    return list(open_corpus(str(path)).records())


def in_order(found: list[Record]) -> list[Record]:
    """By the number in the text: the order of files is by chance."""
    return sorted(found, key=lambda record: int(str(record).split()[2].split(".")[0]))


def refused(path: Path | str, what: str, *said: str) -> DataError:
    """The data is refused with these words, a place and a remedy."""
    with pytest.raises(DataError, match=what) as caught:
        records(path)
    for words in said:
        assert words in str(caught.value)
    assert caught.value.where and caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "a"}, Text("a")),
        ({"messages": TALK}, TALKED),
        ({"messages": TALK, "text": "rendered", "prompt": "Hi"}, TALKED),
        ({"messages": None, "text": "a"}, Text("a")),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}, TALKED),
        ({"conversations": TALK}, TALKED),
        ({"conversation": TALK}, TALKED),
        ({"prompt": "Hi", "completion": "Hello!"}, TALKED),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, TALKED),
        ({"instruction": "Hi", "input": "", "output": "Hello!"}, TALKED),
        ({"instruction": "Hi", "output": "Hello!", "text": "Below is an instruction"}, TALKED),
        (
            {"instruction": "Add", "input": "1 and 2", "output": "3"},
            Dialogue((Message("user", "Add\n\n1 and 2"), Message("assistant", "3"))),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, TALK[1]]},
            TALKED,
        ),
    ],
)
def test_all_ways_to_write_a_record(row: Any, record: Record) -> None:
    assert record_of(row, "x") == record


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"body": "a", "title": "b"}, "it has `body`, `title`"),
        ({}, "it has no fields"),
        ({"text": 3}, "it is a number, not text"),
        ({"messages": "Hi"}, "it is a text, not a list of turns"),
        ({"messages": []}, "not a list of turns"),
        ({"messages": [{"role": "user", "content": None}]}, "is nothing, not text"),
        ({"messages": ["Hi"]}, "neither `role` and `content`"),
        ({"conversations": [{"from": "alien", "value": "Hi"}]}, "'alien'"),
        (["a"], "this is a list, not a record"),
        (3, "this is a number, not a record"),
    ],
)
def test_what_is_no_record_is_refused(row: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        record_of(row, "data.jsonl:7")
    assert said in str(caught.value) and caught.value.where == "data.jsonl:7" and caught.value.remedy


def write_jsonl(folder: Path) -> Path:
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(TEXTS) + b"\n  \n")
    return folder / "a.jsonl"


def write_packed(folder: Path) -> Path:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS)))
    return folder / "a.jsonl.gz"


def write_parquet(folder: Path) -> Path:
    table = pa.Table.from_pylist([{**row, "number": 1} for row in TEXTS])
    pq.write_table(table, folder / "a.parquet", row_group_size=90)
    return folder / "a.parquet"


def write_saved(folder: Path) -> Path:
    Dataset.from_list(TEXTS).save_to_disk(folder / "saved", num_shards=3)
    return folder / "saved"


def write_dict(folder: Path) -> Path:
    both = {"train": Dataset.from_list(TEXTS), "test": Dataset.from_list(TEXTS[:3])}
    DatasetDict(both).save_to_disk(folder / "saved")
    return folder / "saved"


def write_arrow_file(folder: Path) -> Path:
    table = pa.Table.from_pylist(TEXTS)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return folder / "a.arrow"


WRITERS = (write_jsonl, write_packed, write_parquet, write_saved, write_dict, write_arrow_file)


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_records(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    assert in_order(records(path)) == READ
    assert open_corpus(str(path)).kind() == "text"
    assert in_order(records(path.resolve().as_uri())) == READ


def test_dialogues_in_columns(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": TALK}] * 3), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == [TALKED] * 3
    assert open_corpus(str(tmp_path / "a.parquet")).kind() == "dialogues"


@pytest.mark.cluster
def test_objects_of_a_store(tmp_path: Path, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    store = open_store_at("s3://fleet")
    for number, write in enumerate(WRITERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder)
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            store.put_file(f"corpora/{number}/{file.relative_to(folder)}", file)
        assert in_order(records(f"s3://fleet/corpora/{number}/{path.name}")) == READ
        assert in_order(records(f"s3://fleet/corpora/{number}/")) == READ
        assert in_order(records(f"s3://fleet/corpora/[{number}]/{path.name}")) == READ
    for odd in ("a b,ñ.jsonl", "x%20y#1.jsonl", "c:d=e.jsonl"):
        obstore.put(store._store, f"odd/{odd}", lines(TEXTS))
        assert records(f"s3://fleet/odd/{odd}") == READ
    assert len(records("s3://fleet/odd")) == len(records("s3://fleet/odd/?*.jsonl")) == 3 * len(READ)
    assert records("s3://fleet/odd/?:*") == READ
    refused("s3://fleet/corpora/two", "no such object")
    refused("s3://fleet/corpora/*/*.txt", "no object matches")


def test_a_folder_is_all_its_files_in_an_order_that_stays(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / "deep" / f"{number}").mkdir(parents=True)
        (tmp_path / "deep" / f"{number}" / "a.jsonl").write_bytes(
            lines(TEXTS[number * 100 : number * 100 + 100])
        )
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden").write_bytes(b"\0")
    found = records(tmp_path)
    assert in_order(found) == READ and found == records(tmp_path)
    assert found != READ, "not in the alphabet's order"
    assert in_order(records(tmp_path / "deep" / "[0-2]" / "*.jsonl")) == READ[:300]
    assert len(records(tmp_path / "**" / "*.jsonl")) == 700
    assert len(records(tmp_path / "deep" / "?")) == 700


def test_each_text_of_a_folder_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n" * 40_000)
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "empty.txt").write_text(" \n")
    found = records(tmp_path)
    assert all(isinstance(record, Text) for record in found)
    assert sum(isinstance(record, Text) and record.ends for record in found) == 2
    assert "".join(r.text for r in found if isinstance(r, Text) and r.text != "two") == "one\n" * 40_000


@given(st.text("ab\n", max_size=400), st.lists(st.integers(0, 60), max_size=20))
def test_pieces_do_not_depend_on_how_the_text_came(text: str, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "PIECE_CHARACTERS", 20)
        patch.setattr(text_source, "LONGEST_PIECE", 50)
        at, chunks = 0, []
        for cut in cuts:
            chunks.append(text[at : at + cut])
            at += cut
        found = list(pieces([*chunks, text[at:]]))
        assert found == list(pieces([text]))
        assert "".join(found) == text and all(0 < len(piece) <= 50 for piece in found)


@pytest.mark.parametrize("bad", [b"ab\0c", b"caf\xe9 con leche", b"cut \xc3"])
def test_text_is_checked_wherever_it_is_bad(
    tmp_path: Path, bad: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_source, "CHUNK_BYTES", 7)
    before = "año\n".encode() * 20
    (tmp_path / "a.txt").write_bytes(before + bad)
    place = len(before) + next(n for n, byte in enumerate(bad) if byte == 0 or byte > 127)
    refused(tmp_path / "a.txt", "binary" if b"\0" in bad else "not UTF-8", f"byte {place} is")


BAD: list[tuple[str, bytes, str, str]] = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "not JSON", "a.jsonl:2"),
    ("a.jsonl", b'{"text": "caf\xe9"}\n', "not JSON", "a.jsonl:1"),
    ("a.jsonl", b'{"text": "a"}\n\n[{"text": "b"}]\n', "a list, not a record", "a.jsonl:3"),
    ("a.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}\n', "none of the fields", "`body`, `id`"),
    ("a.jsonl", b"\x7fELF\0\0\0", "not JSON", "a.jsonl:1"),
    ("a.jsonl", b"", "empty", "a.jsonl"),
    ("a.jsonl", b"\n \n", "empty", "a.jsonl"),
    ("a.txt", b"", "empty", "a.txt"),
    ("a.jsonl.gz", lines(TEXTS), "cannot be unpacked", "a.jsonl.gz"),
    ("a.jsonl.gz", gzip.compress(lines(TEXTS))[:300], "cannot be unpacked", "a.jsonl.gz"),
    ("a.parquet", b"PAR1 no more", "not Parquet", "a.parquet"),
    ("a.arrow", b"no table at all", "not Arrow", "a.arrow"),
    ("a.jsonl", lines([{"text": "a"}, {"messages": TALK}]), "mixes texts and dialogues", "record 2"),
]


@pytest.mark.parametrize(("name", "content", "what", "said"), BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, what: str, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, what, said)


def test_tables_without_a_known_column_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"body": "a", "label": 1}]), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "none of the columns", "`body`, `label`", "`messages`")
    pq.write_table(pa.Table.from_pylist([{"text": "a"}, {"text": None}]), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "none of the fields", "row 2")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(lines(TEXTS))
    (tmp_path / "void").mkdir()
    refused(tmp_path / "data.json", "no such file", "did you mean", "data.jsonl")
    refused(tmp_path / "other", "no such file", "builtin:tinyworld")
    refused(tmp_path / "void", "folder is empty")
    refused(tmp_path / "*.txt", "no file matches")
    refused("ftp://host/data.txt", "no known kind", "s3://")
    refused("file://here/data.txt", "no known kind", "'here'")


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_bytes(lines(TEXTS))
    refused(tmp_path, "mixes formats", "a.txt is text", "b.jsonl is jsonl", "pattern")


def test_saved_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    DatasetDict({"test": Dataset.from_list(TEXTS)}).save_to_disk(tmp_path / "test-only")
    refused(tmp_path / "test-only", "no split `train`", "`test`")
    Dataset.from_list(TEXTS).save_to_disk(tmp_path / "part", num_shards=2)
    next((tmp_path / "part").glob("data-00001*")).unlink()
    refused(tmp_path / "part", "missing", "data-00001")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "state.json").write_text("{}")
    refused(tmp_path / "odd", "not one of `datasets`")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    refused(tmp_path / "a.txt", "cannot be read")


def test_a_line_without_end_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caudal.train.sources.jsonl.LONGEST_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a"}, {"text": "b" * 100}]))
    refused(tmp_path / "a.jsonl", "longer than", "a.jsonl:2")


def test_objects_are_read_in_pieces() -> None:
    store = open_store_at("memory://")
    store.put("a/b.txt", bytes(range(256)) * 100)
    with store.open("a/b.txt") as file:
        assert (
            file.read(3) == b"\0\1\2" and file.seek(-6, io.SEEK_END) and file.read() == bytes(range(250, 256))
        )
    assert store.sizes("a") == store.sizes("") == store.sizes("a/b.txt") == {"a/b.txt": 25_600}
    assert store.sizes("b") == {}


def test_reading_begins_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS) + b"{broken")
    stream: Iterator[Record] = open_corpus(str(tmp_path / "a.jsonl")).records()
    assert [next(stream) for _ in TEXTS] == READ


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "caudal[huggingface]" in refused(path, "without pyarrow").remedy


@pytest.mark.parametrize("write", [write_jsonl, write_packed, write_parquet, write_saved])
def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [{"text": "words " * 500 + str(n)} for n in range(7_000)]
    monkeypatch.setattr(sys.modules[__name__], "TEXTS", long)
    path = write(tmp_path)
    if write is write_parquet:
        pq.write_table(
            pa.Table.from_pylist(long), path, row_group_size=500, compression="none", use_dictionary=False
        )
    arrow = pa.default_memory_pool()
    before = arrow.bytes_allocated()
    tracemalloc.start()
    total = most = 0
    for record in open_corpus(str(path)).records():
        assert isinstance(record, Text)
        total += len(record.text)
        most = max(most, arrow.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 20 << 20 and peak + most < 8 << 20
