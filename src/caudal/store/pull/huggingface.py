"""`hf:ORG/NAME`, `hf:ORG/NAME@REVISION`, `hf:ORG/NAME:FILE.gguf`: a model of the Hugging Face hub.

Needs the package huggingface_hub (extra `serve`) and its own settings for tokens and mirrors. Fetches
safetensors, GGUF, JSON and the model card; never pickles, never code.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from caudal.domain.errors import ModelInvalid, PullFailed, UsageError
from caudal.store.model_files import PICKLE_SUFFIXES
from caudal.store.pull.base import (
    Fetched,
    check_sha256,
    explained,
    refuse_sha256,
    require_space,
    without_secrets,
)

_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?(?::([\w./ -]+\.gguf))?")
_CARD = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")


def fetch(source: str, folder: Path, sha256: str = "") -> Fetched:
    """Download the model's files at one commit; `sha256` is that of a single GGUF file. Raises as
    `pull.fetch`."""
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source:
        raise UsageError(f"{source!r} is not of the form hf:ORG/NAME or hf:ORG/NAME:FILE.gguf")
    try:
        import huggingface_hub  # noqa: PLC0415  (optional: the extra `serve`)
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, XetDownloadError  # noqa: PLC0415
        from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415
    except ImportError as error:
        raise PullFailed(
            "the package huggingface_hub is not installed", where=source, remedy="pip install 'caudal[serve]'"
        ) from error
    disable_progress_bars()  # they would be drawn over our own view
    # Which HTTP library is underneath depends on the version (requests, httpx, httpx2): the hub's own error
    # derives from that library's.
    network_error = HfHubHTTPError.__bases__[0]
    with explained(source):
        try:
            info = huggingface_hub.HfApi().model_info(match[1], revision=match[2], files_metadata=True)
            sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
            wanted, gguf = choose(list(sizes), match[3] or "", source)
            if not gguf:
                refuse_sha256(sha256, source)
            require_space(folder, sum(sizes[name] for name in wanted))
            huggingface_hub.snapshot_download(
                match[1],
                revision=info.sha,
                allow_patterns=[glob.escape(name) for name in wanted],
                local_dir=folder,
            )
        except (network_error, HFValidationError, XetDownloadError) as error:
            raise PullFailed(
                "the hub did not give the model",
                where=source,
                why=without_secrets(str(error)) or type(error).__name__,
                remedy="check the network and the name; a gated model needs HF_TOKEN",
            ) from error
    if gguf:
        check_sha256(folder / gguf, sha256, source)
    return Fetched(gguf=gguf)


def choose(names: list[str], file: str, source: str) -> tuple[list[str], str]:
    """The files to fetch, and the GGUF file among them (or empty). Raises ModelInvalid, PullFailed."""
    top = [n for n in names if "/" not in n]
    card = [n for n in top if n in _CARD]
    ggufs = [n for n in names if n.endswith(".gguf")]
    if file:
        if file not in ggufs:
            raise PullFailed(
                f"the repository has no file {file!r}",
                where=source,
                why=", ".join(ggufs[:10]) or "no GGUF file",
            )
        return [*card, file], file
    weights = [n for n in top if n.endswith(".safetensors") and not n.startswith("consolidated")]
    if weights and "config.json" in top:
        return [*card, *weights, *(n for n in top if n.endswith(".json"))], ""
    if len(ggufs) == 1:
        return [*card, ggufs[0]], ggufs[0]
    if ggufs:
        raise PullFailed(
            "the repository has several GGUF files",
            where=source,
            why=", ".join(ggufs[:10]),
            remedy=f"name one: {source}:{ggufs[0]}",
        )
    pickles = [n for n in names if PurePosixPath(n).suffix.lower() in PICKLE_SUFFIXES]
    raise ModelInvalid(
        "the repository has no weights that can be used",
        where=source,
        why=f"only a pickle ({pickles[0]}), which can run any code"
        if pickles
        else "no safetensors and no GGUF",
        remedy="name a repository with safetensors or GGUF files",
    )
