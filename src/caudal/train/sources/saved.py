"""Folders that Hugging Face's `datasets` saved (`save_to_disk`): which of their files are the table, in which order."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import msgspec

from caudal.domain.errors import DataError
from caudal.train.sources.places import Found, read_small

_STATE, _DICT, _TRAIN = "state.json", "dataset_dict.json", "train"


def arrange(found: tuple[Found, ...]) -> tuple[Found, ...]:
    """Of each saved folder the files of its table, in their order; all else as it is. Of a `DatasetDict` the split
    `train` counts. Raises DataError where it has none, where a file is missing, or where the rows were chosen
    without being written anew."""
    by_name = {one.name: one for one in found}
    gone: set[str] = set()
    for name, one in by_name.items():
        if PurePosixPath(name).name == _DICT:
            gone |= _other_splits(_inside(name), one, by_name)
    tables: dict[str, list[Found]] = {}
    for name, one in by_name.items():
        if PurePosixPath(name).name == _STATE and name not in gone:
            tables[_inside(name)] = _table(_inside(name), one, by_name)
    kept: list[Found] = []
    for name, one in by_name.items():
        folder = next((f for f in tables if name.startswith(f)), None)
        if folder is not None:
            kept.extend(tables[folder])
            tables[folder] = []
        elif name not in gone and PurePosixPath(name).name != _DICT:
            kept.append(one)
    return tuple(kept)


def _inside(name: str) -> str:
    """What the names of a file's folder begin with."""
    return name[: len(name) - len(PurePosixPath(name).name)]


def _other_splits(folder: str, listing: Found, by_name: dict[str, Found]) -> set[str]:
    """The names of all files of a DatasetDict but those of its training split."""
    splits = _read(listing).get("splits", [])
    if f"{folder}{_TRAIN}/{_STATE}" not in by_name:
        raise DataError(
            "the saved datasets have no split `train`",
            where=listing.where.removesuffix(f"/{_DICT}"),
            why="they have " + (", ".join(f"`{str(split)[:40]}`" for split in splits[:20]) or "none"),
            remedy="name the folder of one split, or call it `train` and save again",
        )
    return {n for n in by_name if n.startswith(folder) and not n.startswith(f"{folder}{_TRAIN}/")}


def _table(folder: str, state: Found, by_name: dict[str, Found]) -> list[Found]:
    described = _read(state)
    if described.get("_indices_data_files") or described.get("_indices_files"):
        raise DataError(
            "the saved dataset is a choice of rows beside a table",
            where=state.where,
            remedy="dataset.flatten_indices().save_to_disk(...)",
        )
    try:
        names = [folder + str(one["filename"]) for one in described["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(
            "the folder's state.json is not one of `datasets`",
            where=state.where,
            why="it has no `_data_files`",
            remedy="save the dataset again with save_to_disk, or take state.json out",
        ) from None
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(
            "a file of the saved dataset is missing",
            where=state.where,
            why=f"it names {missing[0].removeprefix(folder)!r}",
            remedy="copy the whole folder again",
        )
    return [by_name[name] for name in names]


def _read(found: Found) -> dict[str, Any]:
    try:
        read: dict[str, Any] = msgspec.json.decode(read_small(found), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DataError("the file is not JSON", where=found.where, why=str(error)) from None
    return read
