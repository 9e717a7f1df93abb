"""A real llama.cpp with a tiny random model, as a process of its own: what ends it must not end the tests.

The model knows chats, tools and (by mean pooling) embeddings; what it says is noise, but its shapes are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from caudal.ports import EngineLaunch
from caudal.serve.llama_cpp import LlamaCppEngine
from caudal.train.gguf_file import CONTROL, NORMAL, USER_DEFINED, Layout, Words, _add_layout, _add_words

CONTEXT = 1024
SLOTS = 2
ENTRIES = 400
LAYOUT = Layout(CONTEXT, width=32, layers=2, ffn_width=64, heads=4, kv_heads=2, head_width=8)
SPECIAL = ["<|im_end|>", "<|im_start|>"]
CALL = "<tool_call>\n"
END = 0  # the number of the first of them
TEMPLATE = """{%- if tools %}<|im_start|>system
# Tools
You may call one or more functions. Function signatures are within <tools></tools> XML tags:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call, return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content if message.content else '' }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
Floats = np.ndarray[Any, np.dtype[np.float32]]
TEXT = [f"the {x} of the year {y} says {z}, and it is good" for x in "abc" for y in range(40) for z in "xyz"]


def write_model(path: Path, *, pooling: bool = True, eager: bool = False) -> Path:
    """The model's file. An eager one calls a tool where it must, once, and else says nothing."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    special = [*SPECIAL, CALL] if eager else SPECIAL
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=ENTRIES, special_tokens=special, initial_alphabet=alphabet),
    )
    tokens = [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    kinds = [CONTROL if t in SPECIAL else USER_DEFINED if t == CALL else NORMAL for t in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    _add_layout(writer, LAYOUT)
    _add_words(writer, Words(tokens, kinds, merges, "gpt-2", TEMPLATE, eos=END, pad=END))
    if pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    unwanted = [i for i, token in enumerate(tokens) if set(token) & set(", ĠĊĉ")]
    wanted = tokens.index(CALL) if eager else None
    for name, weight in _weights(len(tokens), wanted, unwanted).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(entries: int, wanted: int | None, unwanted: list[int]) -> dict[str, Floats]:
    """Noise; where a token is wanted, the first number of every state says so, and no layer changes it. Blanks
    and commas are not: where a grammar leaves the choice, the answer is short."""
    weights: dict[str, Floats] = {}
    for name, shape in _shapes(entries).items():
        noise = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32) * 0.2
        weights[name] = np.ones(shape, np.float32) if len(shape) == 1 else noise
    weights["output.weight"] = weights["token_embd.weight"].copy()
    if wanted is not None:
        weights["token_embd.weight"][:, 0] = 2.0
        weights["output.weight"][:, 0] = 0.0
        weights["output.weight"][unwanted, 0] = -20.0
        weights["output.weight"][wanted, 0] = 20.0
        weights["output.weight"][END, 0] = 40.0
        for name, weight in weights.items():
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                weight[0] = 0.0
    return weights


def _shapes(entries: int) -> dict[str, tuple[int, ...]]:
    width, ffn = LAYOUT.width, LAYOUT.ffn_width
    small = LAYOUT.kv_heads * LAYOUT.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (entries, width),
        "output_norm.weight": (width,),
    }
    for layer in range(LAYOUT.layers):
        rows = {"attn_q": width, "attn_k": small, "attn_v": small, "attn_output": width}
        shapes |= {f"blk.{layer}.{name}.weight": (n, width) for name, n in rows.items()}
        shapes |= {f"blk.{layer}.{name}.weight": (ffn, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (width, ffn)
        shapes |= {f"blk.{layer}.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
    return shapes


class RealReplica:
    """The process and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None


@contextmanager
def real_replica(path: Path, model: str = "m") -> Iterator[RealReplica]:
    """Started, and ended afterwards."""
    source = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{source}:{source / 'src'}"}
    command = [sys.executable, "-m", "tests.support.real_replica", str(path), model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=source)
    assert process.stdout is not None
    try:
        url = next((line.split()[1] for line in process.stdout if line.startswith("url ")), "")
        assert url, "the engine did not start"
        yield RealReplica(process, url)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    engine = LlamaCppEngine()
    engine.start(EngineLaunch(sys.argv[2], Path(sys.argv[1]), "127.0.0.1", 0, CONTEXT, SLOTS, 1))
    print("url", engine.url, flush=True)
    signal.pause()
