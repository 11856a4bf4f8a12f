"""The tables of docs/format.md say of every stored record what the program says: each field, its type and its default."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path

import msgspec
import pytest

from safehold.model.files import Entry
from safehold.model.quiet import Quieted
from safehold.model.topology import FileSystem, Topology
from safehold.vault import records
from safehold.vault.node import Node

FORMAT = Path(__file__).parents[3] / "docs/format.md"
STORED = [*(getattr(records, name) for name in records.__all__), Node, Entry, Topology, FileSystem, Quieted]
_HEADING = re.compile(r"`(\w+)`: [^\n]+\n\n\| field \| type \| default \| meaning \|\n\|[-|]+\n((?:\|[^\n]+\n)+)")
Row = tuple[str, str, str]


def tables(text: str) -> dict[str, list[Row]]:
    """Of each record: name, type and default of its fields, in order."""
    found = {}
    for name, body in _HEADING.findall(text):
        assert name not in found, f"two tables of {name}"
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
        found[name] = [(row[0].strip("`"), row[1], row[2]) for row in rows]
    return found


def type_text(of: typing.Any) -> str:
    plain = {bytes: "bin", str: "str", int: "int", float: "float", bool: "bool", typing.Any: "any", type(None): "nil"}
    if of in plain:
        return plain[of]
    origin, inner = typing.get_origin(of), typing.get_args(of)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"[{type_text(inner[0])} …]"
    if origin is tuple:
        return f"[{', '.join(map(type_text, inner))}]"
    if origin is dict:
        return f"{{{type_text(inner[0])}: {type_text(inner[1])}}}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_text, inner))
    return str(of.__name__)


def default_text(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "–"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    # As MessagePack has it, and so as another program meets it; a nested record's own defaults are in its own table.
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    return '""' if plain in (b"", "") else msgspec.json.encode(plain).decode().replace("null", "nil")


def said(record: type[msgspec.Struct]) -> list[Row]:
    hints = typing.get_type_hints(record)
    return [(f.encode_name, type_text(hints[f.name]), default_text(f)) for f in msgspec.structs.fields(record)]


@pytest.mark.parametrize("record", STORED, ids=lambda record: record.__name__)
def test_the_table_is_the_record(record: type[msgspec.Struct]) -> None:
    assert tables(FORMAT.read_text()).get(record.__name__) == said(record)


def test_no_table_is_of_anything_else() -> None:
    assert sorted(tables(FORMAT.read_text())) == sorted(record.__name__ for record in STORED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `sector` | int | 512 |", "| `sector` | int | 4096 |"),
        ("| `sector` | int | 512 |", "| `sector` | float | 512 |"),
        ("| `sector` | int |", "| `sectors` | int |"),
        ("| `awaited` | [str …] or nil | nil |", "| `awaited` | [str …] | [] |"),
        ("| `seed` | bin | – | 32 bytes |\n", ""),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_seen(old: str, new: str) -> None:
    text = FORMAT.read_text()
    assert text.count(old) == 1
    changed = tables(text.replace(old, new))
    assert any(changed.get(record.__name__) != said(record) for record in STORED)
