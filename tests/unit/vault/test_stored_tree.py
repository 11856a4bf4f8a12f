"""Stored trees: finding what is in them, and trees of writers that mean harm."""

from __future__ import annotations

import random
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.model.errors import DamageError
from safehold.model.files import Entry, Form, path_key
from safehold.vault.content import read_parts, write_parts
from safehold.vault.names import ZERO_ID
from safehold.vault.node import Node, decode_node, encode_node
from safehold.vault.sealing import chunk_id
from safehold.vault.tree import Group, LeafRef, StoredTree
from safehold.vault.tree_builder import Boundaries, InnerBuilder, encode_leaf

KEY = bytes(32)
FILE = stat.S_IFREG | 0o644


class Nodes(dict[bytes, bytes]):
    """A store of metadata chunks."""

    def put(self, node: Node) -> bytes:
        data = encode_node(node)
        identity = chunk_id(KEY, data)
        self[identity] = data
        return identity

    def load(self, identity: bytes) -> bytes:
        try:
            return self[identity]
        except KeyError:
            raise DamageError("gone", on=identity.hex()) from None


def entry(name: bytes, **more: object) -> Entry:
    fields = {"name": name, "mode": FILE, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "ctime": 0, "ino": 1} | more
    return Entry(**fields)  # type: ignore[arg-type]


def build(nodes: Nodes, pages: list[list[Group]]) -> StoredTree:
    inner = InnerBuilder(Boundaries(KEY), nodes.put)
    for groups in pages:
        identity = nodes.put(encode_leaf(groups, b"", b""))
        count = sum(len(group.entries) for group in groups)
        inner.add(LeafRef(identity, groups[0].parent, groups[0].entries[0].name, count))
    root, levels, _ = inner.finish()
    return StoredTree(root, levels, "tree", nodes.load)


def model(seed: int, directories: int) -> list[tuple[bytes, list[bytes]]]:
    """Directories with names in them, in order."""
    rng = random.Random(seed)
    paths = {b""}
    while len(paths) < directories:
        above = rng.choice(sorted(paths))
        name = rng.choice([b"a", b"a-", b"a b", b"b", b"\xff", b"z"]) + bytes([rng.randrange(97, 123)])
        paths.add(above + b"/" + name if above else name)
    return [
        (path, sorted({bytes([rng.randrange(33, 46), n]) for n in range(65, 65 + rng.randrange(1, 9))}))
        for path in sorted(paths, key=path_key)
    ]


@pytest.mark.parametrize("count", [0, 1, 5, 600])
def test_what_is_found(count: int) -> None:
    nodes = Nodes()
    found = model(count, count) if count else []
    pages = [[Group(path, [entry(n) for n in names])] for path, names in found]
    tree = build(nodes, pages)
    if count == 600:
        assert tree.levels == 3
    everything = [(path, name) for path, names in found for name in names]
    assert [(e.parent, e.entry.name) for e in tree.entries()] == everything
    for path, names in found[::7]:
        assert [e.entry.name for e in tree.listing(path)] == names
        below = [pair for pair in everything if not path or pair[0] == path or pair[0].startswith(path + b"/")]
        assert [(e.parent, e.entry.name) for e in tree.below(path)] == below
        at = tree.find(path + b"/" + names[0] if path else names[0])
        assert at is not None
        assert at.entry.name == names[0]
    assert tree.find(b"not/there") is None


@pytest.mark.parametrize("count", [1, 63, 1024, 1025, 3000])
def test_parts(count: int) -> None:
    nodes = Nodes()
    parts = [(ZERO_ID if n % 7 == 3 else bytes([n % 251]) * 32, n + 1) for n in range(count)]
    root = write_parts(parts, nodes.put)
    size = sum(length for _, length in parts)
    assert list(read_parts(root, size, nodes.load)) == parts
    with pytest.raises(DamageError):
        list(read_parts(root, size + 1, nodes.load))


@pytest.mark.parametrize(
    "bad",
    [
        entry(b".."),
        entry(b"."),
        entry(b"a/b"),
        entry(b"a\0b"),
        entry(b"x" * 256),
        entry(b"f", size=5),
        entry(b"f", size=5, form=Form.PIECE, content=(0, 0)),
        entry(b"f", size=5, form=Form.PARTS, content=(-1, 4)),
        entry(b"f", size=5, form=Form.PARTS, content=(-1, 10, -1, -5)),
        entry(b"f", size=5, form=Form.PARTS, content=(-1,)),
        entry(b"f", size=5, form=Form.NODE, content=(0,)),
        entry(b"f", size=5, form=9, content=(0,)),
        entry(b"f", mode=stat.S_IFLNK, size=5, form=Form.PARTS, content=(-1, 5)),
        entry(b"f", mode=stat.S_IFLNK, target=b"a\0b"),
    ],
    ids=repr,
)
def test_a_file_that_cannot_be(bad: Entry) -> None:
    nodes = Nodes()
    tree = build(nodes, [[Group(b"ok", [bad])]])
    with pytest.raises(DamageError):
        list(tree.entries())


@pytest.mark.parametrize("parent", [b"..", b"a/../b", b"/etc", b"a//b", b"a/", b"a\0b", b"./x"])
def test_a_directory_that_cannot_be(parent: bytes) -> None:
    nodes = Nodes()
    with pytest.raises(DamageError):
        list(build(nodes, [[Group(parent, [entry(b"f")])]]).entries())


def test_order_is_demanded() -> None:
    for pages in (
        [[Group(b"", [entry(b"b"), entry(b"a")])]],
        [[Group(b"", [entry(b"a"), entry(b"a")])]],
        [[Group(b"b", [entry(b"a")]), Group(b"a", [entry(b"a")])]],
        [[Group(b"", [entry(b"a"), entry(b"c")])], [Group(b"", [entry(b"b")])]],
        [[Group(b"", [entry(b"a")])], [Group(b"", [entry(b"a")])]],
    ):
        with pytest.raises(DamageError):
            list(build(Nodes(), pages).entries())


def test_a_tree_of_one_page_many_times_is_no_work() -> None:
    """A few nodes that describe 1000⁸ files."""
    nodes = Nodes()
    ref = nodes.put(encode_leaf([Group(b"", [entry(b"a")])], b"", b""))
    for _ in range(8):
        children = [[b"", bytes([1 + n // 250, 1 + n % 250]), 1] for n in range(1000)]
        ref = nodes.put(Node("tree.inner", nodes=ref * 1000, body=msgspec.msgpack.encode(children)))
    reads = []

    def load(identity: bytes) -> bytes:
        reads.append(identity)
        return nodes.load(identity)

    with pytest.raises(DamageError):
        list(StoredTree(ref, 9, "tree", load).entries())
    assert len(reads) < 100


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_damage_and_nothing_else(data: st.DataObject) -> None:
    nodes = Nodes()
    tree = build(nodes, [[Group(path, [entry(n) for n in names])] for path, names in model(9, 40)])
    victim = data.draw(st.sampled_from(sorted(nodes)))
    raw = bytearray(nodes[victim])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    nodes[victim] = bytes(raw)
    try:
        for found in tree.entries():
            assert b"/" not in found.entry.name
            assert b".." not in found.path.split(b"/")
    except DamageError:
        return


def test_nodes_are_walked_by_their_references_alone() -> None:
    nodes = Nodes()
    node = decode_node(encode_node(encode_leaf([], b"c" * 32, b"n" * 32)), "x")
    assert (node.chunks, node.nodes) == (b"c" * 32, b"n" * 32)
    assert nodes == {}
