"""The fields of a YAML file: where each stands, and what YAML itself lets pass."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

__all__ = ["Fault", "line_of", "refuse_duplicates", "refuse_other_names", "refuse_unusable"]


class Fault(Exception):
    """What is wrong with a field, whose `path` leads there by names."""

    def __init__(self, path: tuple[str, ...], what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.path, self.what, self.remedy = path, what, remedy


def refuse_duplicates(root: yaml.Node | None) -> None:
    """Of two settings of one name YAML takes the last without a word."""
    for path, node in _nodes(root):
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                raise Fault((*path, name), f"is there twice, in lines {seen[name]} and {line}", "keep one of them")
            seen[name] = line


def refuse_other_names(root: yaml.Node | None) -> None:
    """What YAML takes for a number, a date or a yes is no name."""
    for path, node in _nodes(root):
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise Fault((*path, str(key.value)), "is no text, and so no name", "put it in quotes")


def refuse_unusable(root: yaml.Node | None) -> None:
    """No path, name or command of the system holds such characters."""
    for path, node in _nodes(root):
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
            raise Fault(path, "holds a character that nothing on this system can")


def _nodes(root: yaml.Node | None) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """Every node once, names among them, with the names that lead there."""
    waiting: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(root, ())]
    # An alias is the node itself, and may lie within itself.
    met: set[int] = set()
    while waiting:
        node, path = waiting.pop()
        if node is None or id(node) in met:
            continue
        met.add(id(node))
        yield path, node
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                waiting += [(key, path), (value, (*path, str(key.value)))]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(one, path) for one in node.value]


def line_of(node: yaml.Node | None, path: tuple[str, ...]) -> int:
    """The line of a field, or of the nearest thing around it."""
    line = 1
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            break
        pair = next(((k, v) for k, v in node.value if str(k.value) == name), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line
