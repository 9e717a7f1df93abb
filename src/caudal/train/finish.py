"""The end of a run: the held-out score is kept, the model exported and published, the result written last.

Every step can be taken again, so a crash anywhere in here is made good by starting again: the export of the
same state has the same bytes, and publishing the same bytes is publishing once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from caudal.domain.errors import AlreadyExists, NotFound
from caudal.ports import Blobs
from caudal.store.models import ModelStore
from caudal.train.audit import result_path
from caudal.train.base.coordinator import export_base
from caudal.train.base.layout import base_of
from caudal.train.checkpoint import Restored
from caudal.train.config import CoordinatorConfig
from caudal.train.export import GGUF, export
from caudal.train.interface import DataManifest, Flat
from caudal.train.ledger import read_from
from caudal.train.model_card import Facts
from caudal.train.outer import state_sha256
from caudal.train.protocol.effects import Trained

Publish = Callable[[CoordinatorConfig, DataManifest, Blobs, Flat, Facts], int]
"""Makes the model served; returns its version."""


def _score_path(prefix: str) -> str:
    return f"{prefix}/heldout.json"


def known_score(blobs: Blobs, prefix: str) -> Trained | None:
    """What the sites answered in the end, if an earlier coordinator got so far."""
    try:
        found = msgspec.json.decode(blobs.get(_score_path(prefix)))
    except NotFound:
        return None
    return Trained(found["values"], found["heldout"])


def known_result(blobs: Blobs, prefix: str) -> dict[str, Any] | None:
    """The result of a run that is finished."""
    try:
        result: dict[str, Any] = msgspec.json.decode(blobs.get(result_path(prefix)))
    except NotFound:
        return None
    return result


def keep_score(blobs: Blobs, prefix: str, trained: Trained) -> None:
    """Write down what the sites answered."""
    blobs.put(
        _score_path(prefix),
        msgspec.json.encode({"values": dict(trained.values), "heldout": dict(trained.heldout)}),
    )


def publish_model(
    config: CoordinatorConfig, manifest: DataManifest, blobs: Blobs, state: Flat, facts: Facts
) -> int:
    """Export the state and publish it under the run's model id."""
    folder = Path(config.cache_dir) / "exports" / f"{config.run}-g{config.generation}-{config.gang}"
    shutil.rmtree(folder, ignore_errors=True)
    base = base_of(manifest.details)
    gguf, context, licence = GGUF, config.spec.model.context, str(manifest.details.get("licence") or "")
    if base is None:
        export(state, config.spec, manifest, blobs, config.prefix, folder, facts)
    else:
        gguf = GGUF if export_base(config, base, manifest, blobs, state, folder, facts) else ""
        context, licence = base.positions, base.licence
    record = ModelStore(blobs, Path(config.cache_dir) / "models").publish(
        config.spec.model_id,
        folder,
        source=f"run:{config.run}",
        run=config.run,
        context=context,
        licence=licence,
        gguf=gguf,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return record.version


def finish(
    config: CoordinatorConfig,
    manifest: DataManifest,
    blobs: Blobs,
    run: Restored,
    trained: Trained,
    publish: Publish,
) -> dict[str, Any]:
    """Publish a trained run; returns its result, which then is in `result.json`."""
    links = read_from(blobs, config.prefix, None)
    assert len(links) == run.round, "the state is not the one that the ledger ends with"
    sites = tuple(sorted({part.site for link in links for part in link.entry.sites}))
    facts = Facts(
        tokens=run.totals.tokens,
        rounds=run.round,
        sites=sites,
        loss=links[-1].entry.loss,
        val_loss=trained.values.get("val_loss"),
        heldout=trained.heldout,
    )
    version = publish(config, manifest, blobs, run.state, facts)
    result = {
        "run": config.run,
        "generation": config.generation,
        "round": run.round,
        "state_sha256": state_sha256(run.state),
        "model": config.spec.model_id,
        "version": version,
        "tokens": run.totals.tokens,
        "steps": run.totals.steps,
        "sites": sites,
        "loss": facts.loss,
        "val_loss": facts.val_loss,
        "heldout": dict(trained.heldout),
        "started_at": links[0].entry.at,
        "at": time.time(),
    }
    try:
        blobs.put(result_path(config.prefix), msgspec.json.encode(result), if_absent=True)
    except AlreadyExists:  # another coordinator published the same state
        pass
    return result
