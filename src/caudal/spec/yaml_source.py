"""YAML text → located values, within limits. Builds no objects, follows no tags, knows no spec."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from caudal.domain.errors import SpecError
from caudal.spec.located import MAX_DEPTH, MAX_NODES, Located, Problems, Scalar

MAX_TEXT_BYTES = 256 * 1024

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})")
_TRUE = frozenset({"true", "yes", "on"})


def read_documents(text: str, where: str, problems: Problems) -> list[Located]:
    """Each document of the text; empty ones are left out. Wrong YAML is raised at once (after it nothing
    can be trusted), duplicate keys and foreign tags are added to `problems`."""
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise SpecError(f"larger than {MAX_TEXT_BYTES // 1024} KiB", where=where, remedy="split the file")
    try:
        _check_size(text, where)
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"not valid YAML: {said}", where=f"{where}:{line}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"not valid YAML: {str(error).splitlines()[0]}", where=f"{where}:1") from error
    walk = _Walk(where, problems)
    documents = [walk.located(node, 0) for node in nodes]
    return [d for d in documents if d.value is not None]


def _check_size(text: str, where: str) -> None:
    """Count before composing: the composer recurses, the parser does not."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if count > MAX_NODES:
            raise SpecError("too many values", where=f"{where}:{line}", remedy="split the file")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise SpecError("nested too deeply", where=f"{where}:{line}")


@dataclass(slots=True)
class _Walk:
    """Turns composed nodes into located values; counts them, since an alias may repeat a whole tree."""

    where: str
    problems: Problems
    seen: int = 0

    def located(self, node: yaml.Node, depth: int) -> Located:
        """The node and all below it. Raises SpecError where there is too much of it."""
        place = self.place(node)
        self.seen += 1
        if self.seen > MAX_NODES or depth > MAX_DEPTH:
            raise SpecError("its aliases unfold into too many values", where=place)
        if isinstance(node, yaml.MappingNode):
            return Located(self.mapping(node, depth), place)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.located(item, depth + 1) for item in node.value], place)
        assert isinstance(node, yaml.ScalarNode)
        if not node.tag.startswith(_TAG) or node.tag.startswith(_TAG + "python"):
            self.problems.add(place, f"the tag {node.tag!r} is not allowed; write the plain value")
        return Located(_scalar(node), place)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Located]:
        """The keys and values; what is merged in with `<<` gives way to what is written out."""
        merged: dict[str, Located] = {}
        own: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged = self.merge(value_node, depth) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(self.place(key_node), "a key has to be plain text")
                continue
            key = key_node.value
            if key in own:
                self.problems.add(self.place(key_node), f"the key {key!r} is there twice")
            value = self.located(value_node, depth + 1)
            # A table starts on the line below its key; people look for the key.
            own[key] = Located(value.value, self.place(key_node))
        return merged | own

    def merge(self, node: yaml.Node, depth: int) -> dict[str, Located]:
        """The tables that `<<` names; the first of them wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Located] = {}
        for source in sources:
            value = self.located(source, depth + 1).value
            if isinstance(value, dict):
                result = value | result
            else:
                self.problems.add(self.place(source), "`<<` merges tables of keys only")
        return result

    def place(self, node: yaml.Node) -> str:
        """`file:line` of where the node starts."""
        return f"{self.where}:{node.start_mark.line + 1}"


def _scalar(node: yaml.ScalarNode) -> Scalar:
    """The plain value. YAML 1.1 reads `1:30` as 90, `010` as 8 and a date as an object: here they stay
    text, so that a wrong type is said and not turned into another number."""
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    if kind == "int" and _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if kind == "float" and ":" not in text:
        try:
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
        except ValueError:
            return text
    return text
