"""Well-known architectures by name: what fills in the columns that a table of measurements leaves out.

From the models' public config.json files and papers as remembered in November 2026, checked against the parameter
counts that their makers state (a test compares them); the text of the file itself was not seen here. Knows no
sizes in between: `estimate.shapes` makes a shape from a size.
"""

from __future__ import annotations

import re
from typing import Any

from caudal.domain.transformer import Transformer

CONFIG = "config.json of the model's public repository, from memory 2026-11"
PAPER = "the model's paper, from memory 2026-11"


def _dense(
    name: str, layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any
) -> Transformer:
    more.setdefault("source", CONFIG)
    return Transformer(name, layers, hidden, heads, kv, ffn, vocab, **more)


def _gpt(name: str, layers: int, hidden: int, heads: int, vocab: int = 51200, **more: Any) -> Transformer:
    more.setdefault("source", PAPER)
    more.setdefault("tied", True)
    ffn = more.pop("ffn", 4 * hidden)
    return Transformer(name, layers, hidden, heads, more.pop("kv", heads), ffn, vocab, gated=False, **more)


def _mla(name: str, layers: int, hidden: int, heads: int, vocab: int, **more: Any) -> Transformer:
    all_of: dict[str, Any] = {
        "q_lora": 1536, "kv_lora": 512, "rope_dim": 64, "head_dim": 192, "v_head_dim": 128, "source": CONFIG,
    } | more  # fmt: skip
    return Transformer(name, layers, hidden, heads, heads, all_of.pop("ffn"), vocab, **all_of)


def _moe(
    name: str, layers: int, hidden: int, heads: int, kv: int, vocab: int, experts: int, top_k: int, width: int,
    **more: Any,
) -> Transformer:  # fmt: skip
    more.setdefault("source", CONFIG)
    ffn = more.pop("ffn", 0)
    return Transformer(
        name, layers, hidden, heads, kv, ffn, vocab,
        experts=experts, top_k=top_k, expert_ffn=width, **more,
    )  # fmt: skip


KNOWN: tuple[tuple[str, Transformer], ...] = (
    (r"llama4?17b16e|llama4scout.*", _moe("Llama 4 Scout", 48, 5120, 40, 8, 202048, 16, 1, 8192,
                                          shared_ffn=8192, window=8192, window_share=0.75)),
    (r"llama4?17b128e|llama4maverick.*", _moe("Llama 4 Maverick", 48, 5120, 40, 8, 202048, 128, 1, 8192,
                                              shared_ffn=8192, ffn=16384, dense_layers=24,
                                              window=8192, window_share=0.75)),
    (r"llama3\.?[123]?405b.*", _dense("Llama 3.1 405B", 126, 16384, 128, 8, 53248, 128256)),
    (r"llama3\.?[0123]?70b.*", _dense("Llama 3 70B", 80, 8192, 64, 8, 28672, 128256)),
    (r"llama3\.?[01]?8b.*", _dense("Llama 3 8B", 32, 4096, 32, 8, 14336, 128256)),
    (r"llama3\.?2?3b.*", _dense("Llama 3.2 3B", 28, 3072, 24, 8, 8192, 128256, tied=True)),
    (r"llama3\.?2?1b.*", _dense("Llama 3.2 1B", 16, 2048, 32, 8, 8192, 128256, tied=True)),
    (r"(code)?llama2?70b.*", _dense("Llama 2 70B", 80, 8192, 64, 8, 28672, 32000)),
    (r"(code)?llama2?34b.*", _dense("Llama 2 34B", 48, 8192, 64, 8, 22016, 32000)),
    (r"(code)?llama[12]?13b.*", _dense("Llama 2 13B", 40, 5120, 40, 40, 13824, 32000)),
    (r"(code)?llama[12]?7b.*", _dense("Llama 2 7B", 32, 4096, 32, 32, 11008, 32000)),
    (r"llama1?65b.*", _dense("LLaMA 65B", 80, 8192, 64, 64, 22016, 32000)),
    (r"llama1?(30|33)b.*", _dense("LLaMA 33B", 60, 6656, 52, 52, 17920, 32000)),
    (r"tinyllama.*", _dense("TinyLlama 1.1B", 22, 2048, 32, 4, 5632, 32000)),
    (r"mixtral8x22b.*", _moe("Mixtral 8x22B", 56, 6144, 48, 8, 32768, 8, 2, 16384)),
    (r"mixtral(8x7b)?.*", _moe("Mixtral 8x7B", 32, 4096, 32, 8, 32000, 8, 2, 14336)),
    (r"mistrallarge.*|mistral123b.*", _dense("Mistral Large 2", 88, 12288, 96, 8, 28672, 32768)),
    (r"mistral(nemo)?12b.*|mistralnemo.*", _dense("Mistral NeMo 12B", 40, 5120, 32, 8, 14336, 131072,
                                                   head_dim=128)),
    (r"mistral(7b)?.*", _dense("Mistral 7B", 32, 4096, 32, 8, 14336, 32000)),
    (r"deepseekv2lite.*", _mla("DeepSeek-V2-Lite", 27, 2048, 16, 102400, q_lora=0, ffn=10944, experts=64,
                               top_k=6, expert_ffn=1408, shared_ffn=2816, dense_layers=1)),
    (r"deepseekv2.*", _mla("DeepSeek-V2", 60, 5120, 128, 102400, ffn=12288, experts=160, top_k=6,
                           expert_ffn=1536, shared_ffn=3072, dense_layers=1, router_groups=3)),
    (r"deepseek(v3|r1|671b).*", _mla("DeepSeek-V3", 61, 7168, 128, 129280, ffn=18432, experts=256, top_k=8,
                                     expert_ffn=2048, shared_ffn=2048, dense_layers=3, router_groups=4)),
    (r"deepseek67b.*", _dense("DeepSeek 67B", 95, 8192, 64, 8, 22016, 102400)),
    (r"deepseek(llm)?7b.*", _dense("DeepSeek 7B", 30, 4096, 32, 32, 11008, 102400)),
    (r"deepseekmoe(16b)?.*", _moe("DeepSeekMoE 16B", 28, 2048, 16, 16, 102400, 64, 6, 1408, shared_ffn=2816,
                                  ffn=10944, dense_layers=1)),
    (r"kimik2.*", _mla("Kimi K2", 61, 7168, 64, 163840, ffn=18432, experts=384, top_k=8, expert_ffn=2048,
                       shared_ffn=2048, dense_layers=1)),
    (r"moonlight.*", _mla("Moonlight 16B", 27, 2048, 16, 163840, q_lora=0, ffn=11264, experts=64, top_k=6,
                          expert_ffn=1408, shared_ffn=2816, dense_layers=1)),
    (r"glm4\.?5air.*", _moe("GLM-4.5-Air", 46, 4096, 96, 8, 151552, 128, 8, 1408, head_dim=128,
                            shared_ffn=1408, ffn=10944, dense_layers=1)),
    (r"glm4\.?[56].*", _moe("GLM-4.5", 92, 5120, 96, 8, 151552, 160, 8, 1536, head_dim=128, shared_ffn=1536,
                            ffn=12288, dense_layers=3)),
    (r"qwen3(moe)?235ba22b.*|qwen3moe235b.*|qwen3235b.*", _moe("Qwen3-235B-A22B", 94, 4096, 64, 4, 151936, 128,
                                                             8, 1536, head_dim=128)),
    (r"qwen3(moe)?30ba3b.*|qwen3moe30b.*|qwen330b.*", _moe("Qwen3-30B-A3B", 48, 2048, 32, 4, 151936, 128, 8,
                                                         768, head_dim=128)),
    (r"qwen332b.*", _dense("Qwen3-32B", 64, 5120, 64, 8, 25600, 151936, head_dim=128)),
    (r"qwen314b.*", _dense("Qwen3-14B", 40, 5120, 40, 8, 17408, 151936)),
    (r"qwen38b.*", _dense("Qwen3-8B", 36, 4096, 32, 8, 12288, 151936)),
    (r"qwen34b.*", _dense("Qwen3-4B", 36, 2560, 32, 8, 9728, 151936, head_dim=128, tied=True)),
    (r"qwen31\.?7b.*", _dense("Qwen3-1.7B", 28, 2048, 16, 8, 6144, 151936, tied=True)),
    (r"qwen30\.?6b.*", _dense("Qwen3-0.6B", 28, 1024, 16, 8, 3072, 151936, head_dim=128, tied=True)),
    (r"qwen2(\.5)?72b.*", _dense("Qwen2.5-72B", 80, 8192, 64, 8, 29568, 152064)),
    (r"qwen2(\.5)?57ba14b.*", _moe("Qwen2-57B-A14B", 28, 3584, 28, 4, 151936, 64, 8, 2560, shared_ffn=20480)),
    (r"qwen2(\.5)?32b.*", _dense("Qwen2.5-32B", 64, 5120, 40, 8, 27648, 152064)),
    (r"qwen2(\.5)?14b.*", _dense("Qwen2.5-14B", 48, 5120, 40, 8, 13824, 152064)),
    (r"qwen2(\.5)?7b.*", _dense("Qwen2.5-7B", 28, 3584, 28, 4, 18944, 152064)),
    (r"qwen2(\.5)?1\.?5b.*", _dense("Qwen2.5-1.5B", 28, 1536, 12, 2, 8960, 151936, tied=True)),
    (r"qwen(1\.5)?72b.*", _dense("Qwen-72B", 80, 8192, 64, 64, 24576, 152064)),
    (r"qwen3(coder)?480ba35b.*", _moe("Qwen3-Coder-480B-A35B", 62, 6144, 96, 8, 151936, 160, 8, 2560, head_dim=128)),
    (r"minimaxm2.*", _moe("MiniMax-M2", 62, 3072, 48, 8, 200064, 256, 8, 1536, head_dim=128)),
    (r"gptoss120b.*", _moe("gpt-oss-120b", 36, 2880, 64, 8, 201088, 128, 4, 2880, head_dim=64,
                           sinks=True, window=128, window_share=0.5)),
    (r"gptoss20b.*", _moe("gpt-oss-20b", 24, 2880, 64, 8, 201088, 32, 4, 2880, head_dim=64,
                          window=128, window_share=0.5)),
    (r"grok1?.*", _moe("Grok-1", 64, 6144, 48, 8, 131072, 8, 2, 32768, tied=True)),
    (r"dbrx.*", _moe("DBRX", 40, 6144, 48, 8, 100352, 16, 4, 10752)),
    (r"nemotron4?340b.*", _gpt("Nemotron-4 340B", 96, 18432, 96, 256000, kv=8, tied=False)),
    (r"nemotron4?15b.*", _gpt("Nemotron-4 15B", 32, 6144, 48, 256000, kv=8, tied=False)),
    (r"nemotron3?22b.*", _gpt("Nemotron 22B", 40, 6144, 48, 256000, tied=False)),
    (r"nemotron3?8b.*", _gpt("Nemotron-3 8B", 32, 4096, 32, 256000, tied=False)),
    (r"gpt35b.*", _gpt("GPT-3 5B", 24, 4096, 32)),
    (r"gpt3?20b.*", _gpt("GPT-3 20B", 44, 6144, 48)),
    (r"gpt3?(175b|174\.?6b)?", _gpt("GPT-3 175B", 96, 12288, 96)),
    (r"gpt3?6\.?7b.*", _gpt("GPT-3 6.7B", 32, 4096, 32)),
    (r"gpt3?2\.?7b.*", _gpt("GPT-3 2.7B", 32, 2560, 32)),
    (r"gpt3?1\.?3b.*", _gpt("GPT-3 1.3B", 24, 2048, 16)),
    (r"gpt(3)?13b.*", _gpt("GPT-3 13B", 40, 5120, 40)),
    (r"(mt)?nlg530b.*|(megatron)?turingnlg.*|gpt530b.*", _gpt("MT-NLG 530B", 105, 20480, 128)),
    (r"gpt22b.*", _gpt("GPT 22B", 48, 6144, 64)),
    (r"gpt1t.*|gpt1008b.*|gpt1000b.*", _gpt("GPT 1T", 128, 25600, 160)),
    (r"gptneox(20b)?.*", _gpt("GPT-NeoX 20B", 44, 6144, 64, 50432, tied=False)),
    (r"gptj(6b)?.*", _gpt("GPT-J 6B", 28, 4096, 16, 50400, tied=False)),
    (r"gpt2(xl|1\.?5b).*", _gpt("GPT-2 XL", 48, 1600, 25, 50257)),
    (r"bloom(176b)?", _gpt("BLOOM 176B", 70, 14336, 112, 250880)),
    (r"opt175b.*", _gpt("OPT 175B", 96, 12288, 96, 50272)),
    (r"opt66b.*", _gpt("OPT 66B", 64, 9216, 72, 50272)),
    (r"opt30b.*", _gpt("OPT 30B", 48, 7168, 56, 50272)),
    (r"opt13b.*", _gpt("OPT 13B", 40, 5120, 40, 50272)),
    (r"opt6\.?7b.*", _gpt("OPT 6.7B", 32, 4096, 32, 50272)),
    (r"falcon180b.*", _gpt("Falcon 180B", 80, 14848, 232, 65024, kv=8)),
    (r"falcon40b.*", _gpt("Falcon 40B", 60, 8192, 128, 65024, kv=8)),
    (r"falcon7b.*", _gpt("Falcon 7B", 32, 4544, 71, 65024, kv=1)),
    (r"palm540b.*", _dense("PaLM 540B", 118, 18432, 48, 1, 73728, 256000, head_dim=256, tied=True, source=PAPER)),
    (r"palm62b.*", _dense("PaLM 62B", 64, 8192, 32, 1, 32768, 256000, head_dim=256, tied=True, source=PAPER)),
    (r"palm8b.*", _dense("PaLM 8B", 32, 4096, 16, 1, 16384, 256000, head_dim=256, tied=True, source=PAPER)),
    (r"gopher.*", _gpt("Gopher 280B", 80, 16384, 128, 32000)),
    (r"chinchilla.*", _gpt("Chinchilla 70B", 80, 8192, 64, 32000)),
    (r"glm130b.*", _dense("GLM-130B", 70, 12288, 96, 96, 32768, 150528, tied=True, source=PAPER)),
    (r"mpt70b.*", _gpt("MPT 70B", 80, 8192, 64, 50368)),
    (r"mpt30b.*", _gpt("MPT 30B", 48, 7168, 64, 50432)),
    (r"mpt13b.*", _gpt("MPT 13B", 40, 5120, 40, 50368)),
    (r"mpt7b.*", _gpt("MPT 7B", 32, 4096, 32, 50432)),
    (r"mpt3b.*", _gpt("MPT 3B", 32, 2560, 20, 50368)),
    (r"mpt1b.*", _gpt("MPT 1B", 24, 2048, 16, 50368)),
    (r"gemma2b.*", _dense("Gemma 2B", 18, 2048, 8, 1, 16384, 256000, head_dim=256, tied=True)),
    (r"gemma7b.*", _dense("Gemma 7B", 28, 3072, 16, 16, 24576, 256000, head_dim=256, tied=True)),
    (r"gemma29b.*", _dense("Gemma 2 9B", 42, 3584, 16, 8, 14336, 256000, head_dim=256, tied=True,
                           window=4096, window_share=0.5)),
    (r"gemma227b.*", _dense("Gemma 2 27B", 46, 4608, 32, 16, 36864, 256000, head_dim=128, tied=True,
                            window=4096, window_share=0.5)),
    (r"gemma327b.*", _dense("Gemma 3 27B", 62, 5376, 32, 16, 21504, 262208, head_dim=128, tied=True,
                            window=1024, window_share=5 / 6)),
    (r"gemma312b.*", _dense("Gemma 3 12B", 48, 3840, 16, 8, 15360, 262208, head_dim=256, tied=True,
                            window=1024, window_share=5 / 6)),
    (r"yi34b.*", _dense("Yi 34B", 60, 7168, 56, 8, 20480, 64000)),
    (r"phi4(14b)?", _dense("Phi-4 14B", 40, 5120, 40, 10, 17920, 100352)),
    (r"starcoder215b.*", _gpt("StarCoder2 15B", 40, 6144, 48, 49152, kv=4)),
    (r"olmo213b.*", _dense("OLMo 2 13B", 40, 5120, 40, 40, 13824, 100352)),
    (r"olmo232b.*", _dense("OLMo 2 32B", 64, 5120, 40, 8, 27648, 100352)),
    (r"olmo2?7b.*", _dense("OLMo 2 7B", 32, 4096, 32, 32, 11008, 100352)),
)  # fmt: skip


def architecture(name: str) -> Transformer | None:
    """The architecture that goes by that name, in any usual spelling; None where none is known."""
    plain = re.sub(r"[^a-z0-9.]", "", name.lower().split("(")[0].rsplit("/", 1)[-1])
    plain = re.sub(r"^(meta|nvidia|hf|google|mistralai|deepseekai|openai)+", "", plain).removesuffix(".")
    plain = re.sub(r"(?<=\D)\.|\.0(?=\d*b)", "", plain)
    for pattern, known in KNOWN:
        if re.fullmatch(pattern, plain):
            return known
    return None


def names() -> list[str]:
    """All names that are known, for messages."""
    return [known.name for _, known in KNOWN]
