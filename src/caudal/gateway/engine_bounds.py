"""Bounds on what a request may ask of an engine: every one of them is there because an engine was seen to end,
to hang or to take gigabytes without it (xllamacpp 2026.10, 2026-11). Knows nothing of replicas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from msgspec import Meta, Struct

from caudal.gateway.openai_errors import ApiError

Unit = Annotated[float, Meta(ge=0, le=1)]
Window = Annotated[int, Meta(ge=-1, le=65_536)]
Small = Annotated[float, Meta(ge=-1000, le=1000)]
Whole = Annotated[int, Meta(ge=-1, le=1_000_000_000)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]

MAX_GRAMMAR_BYTES = 32 * 1024
MAX_GRAMMAR_GROUPS = 1000
"""llama.cpp's grammar parser calls itself for every parenthesis: 50,000 of them end its process (SIGSEGV), and
with it everybody's answers."""

MAX_GRAMMAR_REPEATS = 2000
"""`{n}` is written out n times, and each nested one multiplies."""

MAX_SCHEMA_DEPTH = 100
"""Levels of JSON in a schema. It is turned into a grammar by functions that call themselves: 3,000 levels of
`anyOf` end llama.cpp's process."""

MAX_SCHEMA_NODES = 20_000
MAX_SCHEMA_INTEGER = 2**53
"""What every reader of JSON keeps exactly. `{"const": -9223372036854775807}` ends llama.cpp's process."""

MAX_PATTERN_CHARS = 1000
MAX_PATTERN_GROUPS = 50

MAX_PROPERTIES = 500
"""Of one object in a schema: the time for those that may be left out grows with their square, 0.8 s for 500 and
more than 12 s for 2,000."""

CONSTRAINTS = frozenset({"grammar", "json_schema", "response_format", "tools"})

REPEAT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
BRACKET = re.compile(r"[\[\]{}]")
COUNTS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))
MAX_COUNT = 2000


class EngineParameters(Struct):
    """Parameters of engines that have bounds here, with any others left alone."""

    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_BYTES)] | None = None
    top_k: Whole | None = None
    min_p: Unit | None = None
    typical_p: Unit | None = None
    top_n_sigma: Small | None = None
    xtc_probability: Unit | None = None
    xtc_threshold: Unit | None = None
    dynatemp_range: Small | None = None
    dynatemp_exponent: Small | None = None
    repeat_penalty: Small | None = None
    repetition_penalty: Small | None = None
    length_penalty: Small | None = None
    repeat_last_n: Window | None = None
    penalty_last_n: Window | None = None
    dry_multiplier: Small | None = None
    dry_base: Small | None = None
    dry_allowed_length: Window | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[list[Name], Meta(max_length=32)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Small | None = None
    mirostat_eta: Small | None = None
    samplers: Annotated[list[Name], Meta(max_length=16)] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    min_keep: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    n_predict: Whole | None = None
    t_max_predict_ms: Whole | None = None
    reasoning_budget_tokens: Whole | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    post_sampling_probs: bool | None = None
    enable_thinking: bool | None = None
    parse_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_format: Name | None = None

    def check(self, names: Iterable[str]) -> None:
        """What types cannot say; `names` are those of all parameters. Raises ApiError, 400."""
        if self.top_k == 1 and not CONSTRAINTS.isdisjoint(names):
            # Where no token of the vocabulary fits the grammar, a choice out of one aborts llama.cpp.
            raise _refused(
                "top_k", "1 does not go with a grammar, schema or tools; 'temperature': 0 means the same"
            )
        if self.grammar is None:
            return
        if self.grammar.count("(") > MAX_GRAMMAR_GROUPS:
            raise _refused("grammar", f"a grammar has at most {MAX_GRAMMAR_GROUPS} parentheses")
        if _repeats(self.grammar) > MAX_GRAMMAR_REPEATS:
            raise _refused("grammar", f"a grammar repeats at most {MAX_GRAMMAR_REPEATS} times")


def check_arguments(text: str, param: str) -> None:
    """The arguments of a tool call, which are JSON in a string and decoded by templates: 50,000 levels end
    llama.cpp's process. Raises ApiError, 400."""
    if text.count("[") + text.count("{") <= MAX_SCHEMA_DEPTH:
        return
    depth = deepest = 0
    for found in BRACKET.finditer(text):
        depth += 1 if found[0] in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_SCHEMA_DEPTH:
        raise _refused(param, f"the arguments of a call have at most {MAX_SCHEMA_DEPTH} levels")


def check_schemas(value: Any, param: str) -> None:
    """A JSON schema, or what has some within. Raises ApiError, 400."""
    level: list[Any] = [value]
    nodes = 0
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                _check_node(node, param)
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            elif isinstance(node, int) and abs(node) > MAX_SCHEMA_INTEGER:
                raise _refused(param, "an integer in a schema is between -2**53 and 2**53")
        nodes += len(below)
        if nodes > MAX_SCHEMA_NODES:
            raise _refused(param, f"a schema has at most {MAX_SCHEMA_NODES} values")
        if not below:
            return
        level = below
    raise _refused(param, f"a schema has at most {MAX_SCHEMA_DEPTH} levels")


def _check_node(node: dict[str, Any], param: str) -> None:
    for names in COUNTS:
        least, most = (node.get(name) for name in names)
        for name, count in zip(names, (least, most), strict=True):
            if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
                raise _refused(param, f"'{name}' in a schema is between 0 and {MAX_COUNT}")
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            raise _refused(param, f"'{names[0]}' in a schema is at most '{names[1]}'")
    properties = node.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise _refused(param, f"an object in a schema has at most {MAX_PROPERTIES} properties")
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        if len(pattern) > MAX_PATTERN_CHARS or pattern.count("(") > MAX_PATTERN_GROUPS:
            limits = f"{MAX_PATTERN_CHARS} characters and {MAX_PATTERN_GROUPS} parentheses"
            raise _refused(param, f"a 'pattern' in a schema has at most {limits}")
        if _repeats(pattern) > MAX_GRAMMAR_REPEATS:
            raise _refused(param, f"a 'pattern' in a schema repeats at most {MAX_GRAMMAR_REPEATS} times")


def _repeats(text: str) -> int:
    """The product of all bounds, as if each were within the one before: more than it can be. Bounds the wrong
    way round, `{2,1}`, count as too many: llama.cpp never comes back from them."""
    product = 1
    for least, comma, most in REPEAT.findall(text):
        low, high = _bound(least), _bound(most)
        if comma and most and high < low:
            return MAX_GRAMMAR_REPEATS + 1
        product *= max(1, low, high)
        if product > MAX_GRAMMAR_REPEATS:
            break
    return product


def _bound(digits: str) -> int:
    return int(digits) if digits and len(digits) < 10 else (MAX_GRAMMAR_REPEATS + 1) * bool(digits)


def _refused(param: str, what: str) -> ApiError:
    return ApiError(400, "invalid_value", f"Invalid value for '{param}': {what} here.", param=param)
