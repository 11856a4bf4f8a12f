"""Pages of stored trees of files, and lists of a file's parts, that cannot be read: the rest is restored, and what is missing is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from safehold.adapters.files.destination import open_directory
from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.model.files import Form, path_key
from safehold.recovery import hurt, units
from safehold.recovery.selection import Selection
from safehold.recovery.tree import FileLosses, file_data, stream_data, write_tree
from safehold.vault import tree_builder
from safehold.vault.content import LostParts, parts_or_lost, read_parts, write_parts
from safehold.vault.fetch import ChunkReader, Found, Lost
from safehold.vault.node import decode_node, split_ids
from safehold.vault.records import Member
from safehold.vault.sealing import chunk_id
from safehold.vault.tree import EntryAt, Group, StoredTree
from tests.unit.vault.test_stored_tree import KEY, Nodes, build, entry

DIRECTORIES = [b"", *sorted((b"d%02d" % n for n in range(40)), key=path_key), b"d39/below"]
NAMES = [b"a", b"b", b"c"]
ALL = {path + b"/" + name if path else name for path in DIRECTORIES for name in NAMES}


class Chunks(ChunkReader):
    """Reads from a store of chunks."""

    remote = False
    dedup_key = KEY

    def __init__(self, nodes: Nodes) -> None:
        object.__setattr__(self, "nodes", nodes)

    def one(self, identity: bytes) -> bytes:
        return self.nodes.load(identity)  # type: ignore[attr-defined, no-any-return]

    def many(self, identities: Sequence[bytes]) -> Iterator[Found | Lost]:
        for position, identity in enumerate(identities):
            data = self.nodes.get(identity)  # type: ignore[attr-defined]
            yield Lost(position, identity, "gone") if data is None else Found(position, data)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def tree(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> StoredTree:
    """A page for each directory, 16 of them below an inner page, those below the root."""
    monkeypatch.setattr(tree_builder, "_INNER_CHILDREN", 1)
    pages = [
        [Group(path, [entry(name, ino=n * 10 + i) for i, name in enumerate(NAMES)])]
        for n, path in enumerate(DIRECTORIES)
    ]
    tree = build(nodes, pages)
    assert tree.levels == 3
    return tree


def restore(tree: StoredTree, nodes: Nodes, place: Path, losses: FileLosses, base: bytes = b"") -> set[bytes]:
    with open_directory(str(place), existing=False) as target:
        write_tree(tree, Chunks(nodes), Selection(base), target, losses, Context(), compare=False)
    return {str(path.relative_to(place)).encode() for path in place.rglob("*") if path.is_file()}


def leaves_below(tree: StoredTree, inner: int) -> list[bytes]:
    """The leaf pages of the `inner`th page below the root."""
    root = decode_node(tree.load(tree.root), "root")
    return list(split_ids(decode_node(tree.load(list(split_ids(root.nodes))[inner]), "inner").nodes))


def test_leaves(tree: StoredTree, nodes: Nodes, tmp_path: Path) -> None:
    leaves = list(tree.leaves())
    for n in (0, 7, 8, 41):
        del nodes[leaves[n].identity]
    with pytest.raises(DamageError) as refused:
        restore(tree, nodes, tmp_path / "refused", FileLosses(False))
    assert refused.value.on == "3 entries from /a to /d00/a"
    losses = FileLosses(True)
    lost = {name if not path else path + b"/" + name for path in (b"", b"d06", b"d07", b"d39/below") for name in NAMES}
    assert restore(tree, nodes, tmp_path / "saved", losses) == ALL - lost
    assert [text.partition(": ")[0] for text in losses.found] == [
        "3 entries from /a to /d00/a",
        "3 entries from /d06/a to /d07/a",
        "3 entries from /d07/a to /d08/a",
        "3 entries from /d39/below/a to the end",
    ]


def test_an_inner_page(tree: StoredTree, nodes: Nodes, tmp_path: Path) -> None:
    root = decode_node(tree.load(tree.root), "root")
    _, *gone = split_ids(root.nodes)
    kept = len(leaves_below(tree, 0))
    for identity in gone:
        del nodes[identity]
    losses = FileLosses(True)
    lost = {path + b"/" + name for path in DIRECTORIES[kept:] for name in NAMES}
    assert restore(tree, nodes, tmp_path / "saved", losses) == ALL - lost
    assert [text.partition(": ")[0] for text in losses.found] == [
        "48 entries from /d15/a to /d31/a",
        "30 entries from /d31/a to the end",
    ]


def test_the_root(tree: StoredTree, nodes: Nodes, tmp_path: Path) -> None:
    del nodes[tree.root]
    losses = FileLosses(True)
    assert restore(tree, nodes, tmp_path / "saved", losses) == set()
    assert losses.found[0].startswith("entries from / to the end: ")


def test_a_part_of_the_tree_hears_only_of_its_own_gaps(tree: StoredTree, nodes: Nodes, tmp_path: Path) -> None:
    leaves = list(tree.leaves())
    # The page of d10, and others before and behind everything below d39.
    for n in (3, 11, 20):
        del nodes[leaves[n].identity]
    losses = FileLosses(True)
    assert restore(tree, nodes, tmp_path / "39", losses, b"d39") == {*NAMES, *(b"below/" + name for name in NAMES)}
    assert losses.found == []
    assert restore(tree, nodes, tmp_path / "10", losses, b"d10") == set()
    assert [text.partition(": ")[0] for text in losses.found] == ["3 entries from /d10/a to /d11/a"]


def test_a_base_whose_own_page_is_lost(tree: StoredTree, nodes: Nodes, tmp_path: Path) -> None:
    leaves = list(tree.leaves())
    del nodes[leaves[0].identity]
    losses = FileLosses(True)
    assert restore(tree, nodes, tmp_path / "39", losses, b"d39") == {*NAMES, *(b"below/" + name for name in NAMES)}
    assert [text.partition(": ")[0] for text in losses.found] == ["1 entries from /d39 to /d39"]


def test_listing_stops_at_a_gap_and_names_it(tree: StoredTree, nodes: Nodes) -> None:
    leaves = list(tree.leaves())
    del nodes[leaves[5].identity]
    seen = []
    with pytest.raises(DamageError, match="3 entries from /d04/a to /d05/a cannot be read"):
        seen += tree.entries()
    assert tree.find(b"d20/a") is not None
    assert len(list(tree.listing(b"d20"))) == 3


# -- lists of parts ------------------------------------------------------------------------------------------------------

LONG = [(chunk_id(KEY, bytes([n % 200]) * (n % 5 + 1)), n % 5 + 1) for n in range(3000)]
SIZE = sum(length for _, length in LONG)


@pytest.fixture
def parts(nodes: Nodes) -> bytes:
    """A file of three lists below one; the middle one is gone."""
    for n in range(3000):
        data = bytes([n % 200]) * (n % 5 + 1)
        nodes[chunk_id(KEY, data)] = data
    root = write_parts(LONG, nodes.put)
    del nodes[list(split_ids(decode_node(nodes[root], "root").nodes))[1]]
    return root


def test_a_list_of_parts_is_gone(nodes: Nodes, parts: bytes) -> None:
    found = list(parts_or_lost(parts, SIZE, nodes.load))
    (gap,) = (part for part in found if isinstance(part, LostParts))
    assert found[:1024] == LONG[:1024]
    assert found[1025:] == LONG[2048:]
    assert gap.length == sum(length for _, length in LONG[1024:2048])
    with pytest.raises(DamageError):
        list(read_parts(parts, SIZE, nodes.load))


def test_content_around_it_is_restored(nodes: Nodes, parts: bytes) -> None:
    start = sum(length for _, length in LONG[:1024])
    end = start + sum(length for _, length in LONG[1024:2048])
    whole = b"".join(bytes([n % 200]) * (n % 5 + 1) for n in range(3000))
    at = EntryAt(b"", entry(b"f", size=SIZE, form=Form.NODE, content=(0,)), b"", parts)
    member = Member("stream", "s", parts, 1, SIZE, 0, 0, "crash", "crash", (0.0, 0.0))
    chunks = Chunks(nodes)
    for read in (lambda lost: file_data(at, chunks, lost), lambda lost: stream_data(member, chunks, lost)):
        told: list[str] = []
        out = bytearray(SIZE)
        for offset, data in read(told.append):
            out[offset : offset + len(data)] = data
        assert [text.partition(":")[0] for text in told] == [f"bytes {start}-{end - 1}"]
        assert out[:start] == whole[:start]
        assert out[end:] == whole[end:]
        assert not out[start:end].strip(b"\0")


# -- verification --------------------------------------------------------------------------------------------------------


def test_units_and_what_is_hurt(tree: StoredTree, nodes: Nodes, parts: bytes) -> None:
    leaves = list(tree.leaves())
    del nodes[leaves[7].identity]
    some = list(units._tree_units(tree))
    assert len(some) == len(DIRECTORIES)
    assert [n for n, unit in enumerate(some) if unit.lost] == [7]
    found = hurt.Hurt()
    hurt._tree(tree, {}, found)
    assert [text.partition(" cannot be read")[0] for text in found.told()] == ["3 entries from /d06/a to /d07/a"]
    stream = Member("stream", "s", parts, 1, SIZE, 0, 0, "crash", "crash", (0.0, 0.0))
    some = list(units._stream_units(stream, nodes.load))
    assert sum(unit.logical for unit in some) == SIZE
    assert len([unit for unit in some if unit.lost]) == 1
    found = hurt.Hurt()
    hurt._stream(stream, nodes.load, {LONG[0][0]: "rotten"}, found)
    assert len(list(found.told())) == 2
