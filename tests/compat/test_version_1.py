"""Vaults that version 1 of the format was written into stay readable and writable, also by a reader that knows docs/format.md alone."""

from __future__ import annotations

import ast
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from safehold.testing.program import Program
from safehold.vault.names import Kind
from tests.compat.contents import DATABASE, FIRST, GROUP, SECOND, STREAM, tree
from tests.compat.make_wide_fixture import RECIPIENT
from tests.compat.reader import Reader

HERE = Path(__file__).parent


def unpacked(name: str, into: Path) -> Path:
    with tarfile.open(HERE / name) as archive:
        # Debian's Python 3.11.2 does not know filters yet; later ones warn without.
        archive.extractall(into, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return into


@pytest.fixture
def past(tmp_path: Path) -> Path:
    return unpacked("vault-v1.tar.xz", tmp_path)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return unpacked("vault-v1-wide.tar.xz", tmp_path)


def program_for(place: Path, passphrase: str) -> Program:
    return Program(place / "home", {"SAFEHOLD_VAULT": str(place / "vault"), "SAFEHOLD_PASSPHRASE": passphrase})


@pytest.mark.parametrize("credential", ["passphrase", "kit"])
def test_everything_restores(past: Path, credential: str) -> None:
    program = program_for(past, "compat")
    options = ["--kit", past / "kit.txt"] if credential == "kit" else []
    points = program.json("points", *options)["points"]
    # Unpacking made new files, so the store's times say nothing of the order here.
    expected = {("disk", "0"): FIRST, ("disk", "1"): SECOND, ("web", None): SECOND}
    assert {(p["members"][0]["name"], p["tags"].get("number")) for p in points} == set(expected)
    for n, point in enumerate(points):
        content = expected[point["members"][0]["name"], point["tags"].get("number")]
        program.run("restore", f"{point['members'][0]['name']}@{point['id']}", "--to", past / f"{n}.img", *options)
        assert (past / f"{n}.img").read_bytes() == content
    assert program.json("verify", "--stored")["ok"]
    assert program.json("verify", "--data", "--expect", past / "points.json", *options)["ok"]


def test_it_can_be_written_to(past: Path) -> None:
    program = program_for(past, "compat")
    (past / "disk.img").write_bytes(SECOND)
    done = program.json("backup", past / "disk.img", "--adopt")["points"][0]
    assert done["new"] == 0, "blocks of the past are found"
    program.run("backup", past / "disk.img", "--name", "web", "--writer", past / "writer.json")
    assert len(program.json("points")["points"]) == 5
    assert program.json("verify", "--data")["ok"]


def test_the_wide_vault_has_everything_that_is_written(wide: Path) -> None:
    vault = wide / "vault"
    kinds = {p.relative_to(vault).parts[0] for p in vault.rglob("*") if p.is_file()}
    assert kinds == {kind.prefix for kind in Kind} - {Kind.LOG.prefix}
    assert any(p.stat().st_size == 0 for p in (vault / "points").rglob("*") if p.is_file()), "a fence"
    assert any(p.name.endswith(".000001") for p in (vault / "sessions").rglob("*")), "a heartbeat"
    reader = Reader(vault, "second words")
    chain = reader.chain()
    assert {record["owner"]["generation"] for record in chain} == {0, 1}
    assert chain[-1]["base"]
    assert chain[-1]["dead"]


@pytest.mark.parametrize("credential", ["passphrase", "recipient"])
def test_everything_in_the_wide_vault_restores(wide: Path, credential: str) -> None:
    program = program_for(wide, "second words" if credential == "passphrase" else "")
    key = X25519PrivateKey.from_private_bytes(RECIPIENT)
    (wide / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    options = ["--identity", wide / "key.pem"] if credential == "recipient" else []
    points = program.json("points", *options)["points"]
    assert sorted(m["name"] for p in points for m in p["members"]) == [
        "database",
        "database",
        "dump",
        "files",
        "left",
        "right",
    ]
    restored = []
    for point in points:
        for member in point["members"]:
            name = member["name"]
            if member["kind"] == "stream":
                assert program.run("cat", f"{name}@{point['id']}", *options).stdout.encode() == STREAM
                assert point["tags"] == {"kind": "nightly", "checked": "yes"}
                continue
            target = wide / f"{name}-{point['id'].replace('/', '-')}"
            program.run("restore", f"{name}@{point['id']}", "--to", target, *options)
            if member["kind"] == "tree":
                tree(wide / "made again")
                assert seen(target / member["location"].strip("/")) == seen(wide / "made again")
            else:
                restored.append(target.read_bytes())
    assert sorted(restored) == sorted([*DATABASE[1:], *GROUP.values()])
    assert program.json("verify", "--stored")["ok"]
    assert program.json("verify", "--data", "--expect", wide / "points.json", *options)["ok"]


def test_the_wide_vault_can_be_written_to_and_pruned(wide: Path) -> None:
    program = program_for(wide, "second words")
    (wide / "database.img").write_bytes(DATABASE[2])
    assert program.json("backup", wide / "database.img", "--adopt")["points"][0]["new"] == 0
    assert "held" in program.run("point", "expire", "dump", "--keep-last", "1", "--dry-run").stdout
    program.run("vault", "prune")
    assert len(program.json("points")["points"]) == 6
    assert program.json("verify", "--data")["ok"]


def seen(top: Path) -> dict[str, object]:
    """What a tree holds, without what a restore cannot bring back."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        links = info.st_nlink if path.is_file() else 0
        found[str(path.relative_to(top))] = (info.st_mode, info.st_mtime_ns, links, attributes, content)
    return found


def by_reader(reader: Reader) -> dict[str, object]:
    """The same of the tree in a vault."""
    point = next(p for p in reader.points() if p.body["members"][0]["kind"] == "tree")
    member = point.body["members"][0]
    top = member["location"].strip("/").encode() + b"/"
    found: dict[str, object] = {}
    for path, file in reader.tree(point, member).items():
        if not path.startswith(top):
            assert top.startswith(path + b"/"), "directories above"
            continue
        mode, entry = file.entry["mode"], file.entry
        content: object = file.content if stat.S_ISREG(mode) else entry["target"].decode() or None
        attributes = {name.decode(): value for name, value in entry["xattrs"].items()}
        found[path.removeprefix(top).decode()] = (
            mode,
            entry["mtime"],
            entry["links"] if stat.S_ISREG(mode) else 0,
            attributes,
            content,
        )
    return found


def test_the_documented_format_suffices(past: Path) -> None:
    """A reader that was written from the document alone restores every disk bit for bit."""
    reader = Reader(past / "vault", "compat")
    disks = {(p.body["members"][0]["name"], p.body.get("tags", {}).get("number")): p for p in reader.points()}
    expected = {("disk", "0"): FIRST, ("disk", "1"): SECOND, ("web", None): SECOND}
    assert disks.keys() == expected.keys()
    for key, point in disks.items():
        assert reader.volume(point, point.body["members"][0]) == expected[key]
    assert reader.check_index() > 0


@pytest.mark.parametrize(
    "opened",
    [
        lambda vault: Reader(vault, "second words"),
        lambda vault: Reader(vault, private=X25519PrivateKey.from_private_bytes(RECIPIENT)),
    ],
    ids=["passphrase", "recipient"],
)
def test_the_documented_format_suffices_for_everything(wide: Path, opened: Callable[[Path], Reader]) -> None:
    reader = opened(wide / "vault")
    points = reader.points()
    assert len(points) == 5
    members = [(point, member) for point in points for member in point.body["members"]]
    disks = [reader.volume(point, member) for point, member in members if member["kind"] == "volume"]
    assert sorted(disks) == sorted([*DATABASE[1:], *GROUP.values()])
    tree(wide / "made again")
    assert by_reader(reader) == seen(wide / "made again")
    dump = next(point for point, member in members if member["kind"] == "stream")
    assert reader.stream(dump, dump.body["members"][0]) == STREAM
    notes = {note["kind"]: note.get("data", {}) for note in reader.notes(dump)}
    assert notes["tag"] == {"checked": "yes"}
    assert notes["hold"] == {"reason": "evidence"}
    assert reader.check_index() > 0
    assert len(reader.chain()) == 4


def test_the_other_reader_knows_nothing_of_ours() -> None:
    source = ast.parse((HERE / "reader.py").read_text())
    imported = {n.name for node in ast.walk(source) if isinstance(node, ast.Import) for n in node.names}
    imported |= {node.module or "" for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("safehold", "tests")) or not name for name in imported)
