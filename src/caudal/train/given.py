"""A run whose model and data are a script's own: its plan and first state are put into the store by whoever comes
first, and compared by all others."""

from __future__ import annotations

import time

import msgspec
import numpy as np

from caudal.domain.errors import AlreadyExists, NotFound, UsageError
from caudal.domain.workload import TrainSpec
from caudal.ports import Blobs
from caudal.train import checkpoint
from caudal.train.config import CoordinatorConfig
from caudal.train.interface import DataManifest, Flat, RunPlan
from caudal.train.model_card import Facts
from caudal.train.outer import state_sha256


def _path(prefix: str) -> str:
    return f"{prefix}/given.json"


def given_plan(blobs: Blobs, prefix: str) -> RunPlan:
    """The plan that the run began with. Raises NotFound."""
    return msgspec.json.decode(blobs.get(_path(prefix)), type=RunPlan)


def give(blobs: Blobs, prefix: str, plan: RunPlan, state: Flat) -> None:
    """Begin a run, or find that it was begun just so. The first state first: a plan stands for both. Raises
    UsageError where another script began it with another model, data or settings."""
    try:
        there = given_plan(blobs, prefix)
    except NotFound:
        manifest = checkpoint.Manifest(
            plan.run, 0, "", state_sha256(state), "", checkpoint.Totals(), time.time()
        )
        checkpoint.write(blobs, prefix, state, np.zeros_like(state), manifest)
        try:
            blobs.put(_path(prefix), msgspec.json.encode(plan), if_absent=True)
            return
        except AlreadyExists:
            there = given_plan(blobs, prefix)
    ours, theirs = msgspec.to_builtins(plan), msgspec.to_builtins(there)
    differs = [name for name in ours if ours[name] != theirs[name]]
    if differs:
        raise UsageError(
            f"run {plan.run} was begun with another {' and '.join(differs)}",
            where=_path(prefix),
            why="; ".join(f"{name}: {theirs[name]} there, {ours[name]} here" for name in differs)[:1000],
            remedy="give all sites the same model, data and settings, or take another run name",
        )


def nothing_to_prepare(spec: TrainSpec, blobs: Blobs, prefix: str) -> DataManifest:
    """The script brings its data."""
    return DataManifest(0, ())


def nothing_to_publish(
    config: CoordinatorConfig, manifest: DataManifest, blobs: Blobs, state: Flat, facts: Facts
) -> int:
    """The script keeps its model."""
    return 0
