"""A GGUF file as the Hugging Face folder that it was made from: weights dequantised once, tokenizer and template.

transformers reads the weights; of the tokenizer it forgets how a text is cut before the bytes are merged, so that is
put back from `words`.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from caudal.domain.errors import ModelInvalid, UsageError
from caudal.store.gguf_header import GgufInfo, read_gguf
from caudal.train.base.words import PRE_TOKENIZERS

BYTE_LEVEL = "gpt2"
"""llama.cpp's name for byte-level BPE, whichever way the text is cut before."""


def dequantise(folder: Path, name: str) -> None:
    """Write the model in the file `name` of the folder beside it, in half precision, and remove the file. Raises
    UsageError where transformers does not read its architecture or its tokenizer is none that is known."""
    file = folder / name
    info = read_gguf(file)
    _check_tokenizer(info, file)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        except (ValueError, KeyError) as error:
            raise UsageError(
                "transformers does not read this GGUF file",
                where=name,
                why=f"architecture {info.architecture}: {' '.join(str(error).split())[:300]}",
                remedy="name the Hugging Face folder that it was made from",
            ) from error
        except (OSError, RuntimeError) as error:
            raise ModelInvalid("the GGUF file does not load", where=name, why=str(error)[:300]) from error
        _plain(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if info.tokenizer == BYTE_LEVEL:
        path = folder / "tokenizer.json"
        words = json.loads(path.read_bytes())
        words["pre_tokenizer"] = PRE_TOKENIZERS[info.pre_tokenizer or "gpt-2"]
        # transformers adds tokens of its own (`<|endoftext|>`), for which the model has no row
        known = words["model"]["vocab"]
        words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] in known]
        path.write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    file.unlink()


def _plain(model: Any) -> Any:
    """The same model without the memory of having been quantised, which forbids to cast and to save it."""
    vars(model.config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _check_tokenizer(info: GgufInfo, file: Path) -> None:
    if info.tokenizer == BYTE_LEVEL and (info.pre_tokenizer or "gpt-2") not in PRE_TOKENIZERS:
        raise UsageError(
            "the GGUF's tokenizer is not one that is known here",
            where=file.name,
            why=f"it cuts texts in the manner {info.pre_tokenizer!r}; known are {', '.join(PRE_TOKENIZERS)}",
            remedy="name the Hugging Face folder that it was made from: its tokenizer.json says all",
        )
