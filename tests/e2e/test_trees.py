"""Trees of files, with the installed program; rsync, getfattr, getfacl, getcap and cmp judge."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.files import attributes, deep, everything, rsync_differences, tar_listing

pytestmark = pytest.mark.usefixtures("vault")


def settle() -> None:
    """Wait until files made before are old enough to be believed unchanged."""
    time.sleep(1.1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "www"
    (top / "img").mkdir(parents=True)
    (top / "cache").mkdir()
    for n in range(300):
        (top / f"img/{n}.txt").write_text(f"page {n}\n" * (n % 50))
    (top / "index.html").write_text("<html>")
    (top / "scratch.tmp").write_text("x")
    (top / "big.bin").write_bytes(random.Random(7).randbytes(3_000_000))
    (top / "cache/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (top / "cache/entry").write_text("x")
    return top


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices and owners")
def test_everything_a_file_system_holds(program: Program, tmp_path: Path) -> None:
    top = tmp_path / "top"
    everything(top)
    program.run("backup", top, "--name", "all")
    program.run("restore", f"all@latest:{top}", "--to", tmp_path / "out")
    assert rsync_differences(top, tmp_path / "out") == ""
    assert attributes(tmp_path / "out") == attributes(top)
    blocks = [(tmp_path / place / "sparse").stat().st_blocks for place in ("top", "out")]
    assert blocks[1] <= blocks[0] + 16
    program.run("verify", "--data")
    # Everything is changed in some way; a delta puts it right.
    out = tmp_path / "out"
    (out / "small").write_bytes(b"y" * 3000)
    (out / "fifo").unlink()
    (out / "dangling").unlink()
    (out / "dangling").symlink_to("elsewhere")
    os.chown(out / "large", 0, 0)
    os.setxattr(out / "etc", "user.more", b"x")
    os.unlink(out / "hard link")
    done = program.json("restore", f"all@latest:{top}", "--to", out, "--delta")
    # The file of 3,000 bytes, and the first name of a linked one.
    assert done["written"] == 3000 + len("root:x:0:0\n")
    assert rsync_differences(top, out) == ""
    assert attributes(out) == attributes(top)


def test_paths_longer_than_any_call_takes(program: Program, tmp_path: Path) -> None:
    deep(tmp_path / "deep")
    program.run("backup", tmp_path / "deep", "--name", "deep")
    program.run("restore", f"deep@latest:{tmp_path}/deep", "--to", tmp_path / "out")
    packed = tar_listing(tmp_path / "deep")
    assert b"at the bottom" in packed
    assert tar_listing(tmp_path / "out") == packed
    # What cleans up after tests cannot.
    subprocess.run(["rm", "-rf", tmp_path / "deep", tmp_path / "out"], check=True)


def test_unchanged_files_are_not_opened(program: Program, source: Path, tmp_path: Path) -> None:
    settle()
    first = program.run("backup", source, "--name", "www")
    assert "nothing is remembered" in first.stderr
    second = program.json("backup", source, "--name", "www")["points"][0]
    assert second["read"] == 0
    # Directories above the tree may have changed, which costs a page.
    assert second["new"] < 100_000
    with (source / "img/7.txt").open("a") as file:
        file.write("more")
    os.rename(source / "img/8.txt", source / "img/8b.txt")
    (source / "img/9.txt").unlink()
    settle()
    third = program.json("backup", source, "--name", "www")["points"][0]
    assert 0 < third["read"] < 1000
    for n, path in enumerate(("out1", "out2")):
        program.run("restore", f"www@latest:{source}", "--to", tmp_path / path, *(["--delta"] if n else []))
        assert rsync_differences(source, tmp_path / path) == ""
    # A machine that lost its cache reads everything, and stores next to nothing.
    subprocess.run(["rm", "-rf", program.home / "cache"], check=True)
    cold = program.run("backup", source, "--name", "www", "--json")
    assert "every file is read" in cold.stderr
    program.run("verify", "--data")


def test_what_is_left_out(program: Program, source: Path, tmp_path: Path) -> None:
    program.run(
        *(
            "backup",
            source,
            "--name",
            "www",
            "--exclude",
            "*.tmp",
            "--exclude",
            f"{source}/img/1*.txt",
            "--exclude-caches",
        )
    )
    program.run("restore", f"www@latest:{source}", "--to", tmp_path / "out")
    wanted = {p.relative_to(source) for p in source.rglob("*")}
    wanted -= {
        Path("scratch.tmp"),
        Path("cache/entry"),
        *(Path(f"img/{n}.txt") for n in range(300) if str(n)[0] == "1"),
    }
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == wanted
    assert "not a pattern" in program.run("backup", source, "--exclude", "[z-a]", code=2).stderr


def test_looking_around(program: Program, source: Path, tmp_path: Path) -> None:
    program.run("backup", source, tmp_path / "kit.txt", "--name", "www")
    assert "big.bin" in program.run("ls", f"www@latest:{source}").stdout
    assert len(program.json("ls", f"www@latest:{source}/img")["entries"]) == 300
    found = program.json("find", "www@latest", "1?.txt")["entries"]
    assert {Path(e["path"]).name for e in found} == {f"1{n}.txt" for n in range(10)}
    raw = program.run("find", "www@latest", "big*", "-0").stdout
    assert raw == f"{source}/big.bin\0"
    assert program.run("cat", f"www@latest:{source}/img/33.txt").stdout == (source / "img/33.txt").read_text()
    assert program.run("cat", f"www@latest:{tmp_path}/kit.txt").stdout == (tmp_path / "kit.txt").read_text()
    assert "no such file" in program.run("cat", "www@latest:/nowhere", code=2).stderr
    assert "no such file" in program.run("ls", "www@latest:/nowhere", code=2).stderr


def test_parts_of_a_tree(program: Program, source: Path, tmp_path: Path) -> None:
    program.run("backup", source, "--name", "www")
    program.run("restore", f"www@latest:{source}", "--to", tmp_path / "some", "--include", "img/1*.txt")
    names = {p.name for p in (tmp_path / "some").rglob("*") if p.is_file()}
    assert names == {f"{n}.txt" for n in range(300) if str(n)[0] == "1"}
    program.run("restore", f"www@latest:{source}/big.bin", "--to", tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == (source / "big.bin").read_bytes()
    assert (
        "target exists"
        in program.run("restore", f"www@latest:{source}/big.bin", "--to", tmp_path / "one", code=1).stderr
    )
    assert "not empty" in program.run("restore", "www@latest", "--to", source, code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_what_a_delta_would_write(program: Program, tmp_path: Path) -> None:
    """A dry run lists just what the run behind it writes, and changes nothing."""
    top, out = tmp_path / "top", tmp_path / "out"
    everything(top)
    (top / "img/deep").mkdir(parents=True)
    for name in ("img/same", "img/changed", "img/gone", "img/deep/kind", "img/mode", "img/noted", "other"):
        (top / name).write_text(name)
    (top / "img/link").symlink_to("somewhere")
    program.run("backup", top, "--name", "www")
    selector = f"www@latest:{top}"
    new = program.json("restore", selector, "--to", out, "--dry-run")
    assert new["changes"] == []
    assert not out.exists()
    told = program.json("restore", selector, "--to", out, "--delta", "--dry-run")
    assert told["new"] == new["new"] == len(told["changes"]) > 8
    assert not out.exists()
    program.run("restore", selector, "--to", out)
    assert program.json("restore", selector, "--to", out, "--delta", "--dry-run")["changes"] == []
    (out / "img/changed").write_text("img/CHANGED")
    (out / "img/gone").unlink()
    (out / "img/deep/kind").unlink()
    (out / "img/deep/kind").mkdir()
    (out / "img/mode").chmod(0o600)
    os.setxattr(out / "img/noted", "user.note", b"x")
    (out / "img/link").unlink()
    (out / "img/link").symlink_to("elsewhere")
    (out / "other").unlink()
    before = tar_listing(out)
    told = program.json("restore", selector, "--to", out, "--include", "img/*", "--delta", "--dry-run")
    assert {
        one["path"]: one["difference"] for one in told["changes"] if one["path"] not in ("img", "img/deep", ".")
    } == {
        "img/changed": "content",
        "img/gone": "new",
        "img/deep/kind": "content",
        "img/mode": "attributes",
        "img/noted": "attributes",
        "img/link": "content",
    }
    assert told["size"] == sum(len(name) for name in ("img/changed", "img/gone", "img/deep/kind"))
    assert tar_listing(out) == before
    text = program.run("restore", selector, "--to", out, "--include", "img/*", "--delta", "--dry-run").stdout
    assert "content     img/changed" in text
    (out / "img/deep/kind").rmdir()
    done = program.json("restore", selector, "--to", out, "--include", "img/*", "--delta")
    assert done["written"] == told["size"]
    assert program.json("restore", selector, "--to", out, "--include", "img/*", "--delta", "--dry-run")["changes"] == []


def test_what_a_single_file_would_be_written_to(program: Program, tmp_path: Path) -> None:
    top, target = tmp_path / "top", tmp_path / "file"
    top.mkdir()
    (top / "file").write_text("content")
    program.run("backup", top, "--name", "www")
    selector = f"www@latest:{top}/file"
    assert program.json("restore", selector, "--to", target, "--dry-run")["size"] == 7
    assert not target.exists()
    target.write_text("another")
    assert "target exists" in program.run("restore", selector, "--to", target, "--dry-run", code=1).stderr
    for how in ("--overwrite", "--delta"):
        assert program.json("restore", selector, "--to", target, how, "--dry-run")["new"] == 1
        assert target.read_text() == "another"
    program.run("restore", selector, "--to", target, "--delta")
    assert target.read_text() == "content"


def test_a_single_file_goes_into_a_directory(program: Program, source: Path, tmp_path: Path) -> None:
    """As with cp; what lies there is written over only if that is said, and a directory never."""
    program.run("backup", source, "--name", "www")
    selector, into = f"www@latest:{source}/index.html", tmp_path / "into"
    into.mkdir()
    (into / "other").write_text("stays")
    would = program.run("restore", selector, "--to", into, "--dry-run").stdout
    assert str(into / "index.html") in would
    assert f"{into}/index.html: 1 file, " in program.run("restore", selector, "--to", f"{into}/").stdout
    assert (into / "index.html").read_text() == "<html>"
    (into / "index.html").write_text("another")
    for more in ((), ("--dry-run",)):
        said = program.run("restore", selector, "--to", into, *more, code=1).stderr
        assert f"target exists: {into}/index.html" in said
        assert "--overwrite" in said
    program.run("restore", selector, "--to", into, "--overwrite")
    assert (into / "index.html").read_text() == "<html>"
    assert (into / "other").read_text() == "stays"
    (into / "index.html").unlink()
    (into / "index.html").mkdir()
    for more in ((), ("--overwrite",), ("--delta",), ("--overwrite", "--dry-run")):
        said = program.run("restore", selector, "--to", into, *more, code=1).stderr
        assert "a file does not take its place" in said
        assert "--overwrite" not in said
    assert list((into / "index.html").iterdir()) == []
    program.run("restore", selector, "--to", f"{tmp_path}/made/")
    assert (tmp_path / "made/index.html").read_text() == "<html>"


def test_only_what_arrived_is_counted(program: Program, tmp_path: Path) -> None:
    """A directory in the way of a file stays while something lies in it; so do the files that were to be written."""
    top, out = tmp_path / "top", tmp_path / "out"
    top.mkdir()
    for name, size in (("arrives", 5), ("small", 7), ("large", 3_000_000)):
        (top / name).write_bytes(b"x" * size)
    (top / "link").symlink_to("arrives")
    program.run("backup", top, "--name", "top")
    for name in ("small", "large", "link"):
        (out / name / "something").mkdir(parents=True)
    selector = f"top@latest:{top}"
    done = program.json("restore", selector, "--to", out, "--overwrite", code=3)
    assert (done["entries"], done["written"]) == (1, 5)
    assert sorted(done["problems"]) == [
        f"{name}: not restored (Directory not empty)" for name in ("large", "link", "small")
    ]
    told = program.run("restore", selector, "--to", out, "--overwrite", code=3)
    assert "1 file, 0 right already, 5 B written" in told.stdout
    assert "3 files not restored" in told.stderr
    assert "as root" not in told.stderr
    assert "only root" not in told.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_is_told_in_a_few_lines_what_only_root_can_restore(program: Program, tmp_path: Path) -> None:
    """Also where processes of their own write the files, as they do once there are many."""
    top, out, count = tmp_path / "top", tmp_path / "out", 2500
    (top / "many").mkdir(parents=True)
    for n in range(count):
        (top / f"many/{n}").write_text(f"{n}")
    program.run("backup", top, "--name", "top")

    def as_user(*arguments: object, code: int) -> subprocess.CompletedProcess[str]:
        # Somebody who may look and write everywhere, so that nothing but owners is forbidden.
        who = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        rights = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        done = subprocess.run(
            [*who, *rights, Path(sys.executable).parent / "safehold", *map(str, arguments)],
            env=program._environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    told = as_user("restore", f"top@latest:{top}", "--to", out, code=3)
    assert f"{count + 1:,} files, " in told.stdout
    # The files, the directory that they lie in, and the one restored into.
    assert f"{count + 2:,} files: owner not set (Operation not permitted): " in told.stderr
    assert f"{count - 1:,} more" in told.stderr
    assert "only root can set those" in told.stderr
    assert len(told.stderr.splitlines()) < 8
    done = json.loads(as_user("restore", f"top@latest:{top}", "--to", out, "--delta", "--json", code=3).stdout)
    assert len(done["problems"]) == count + 2
    assert "many/7: owner not set: 0:0 (Operation not permitted)" in done["problems"]
    one = as_user("restore", f"top@latest:{top}/many/7", "--to", tmp_path / "one", code=3)
    assert "one: owner not set: 0:0 (Operation not permitted)" in one.stderr


def test_near_names_of_resources(program: Program, source: Path, tmp_path: Path) -> None:
    """Directories go by their whole path, images without the end of their names; users ask for what they call them."""
    named = str(source).strip("/").replace("/", "-")
    (tmp_path / "disk.img").write_bytes(b"x" * 5000)
    program.run("backup", source, tmp_path / "disk.img")
    for asked, name in (
        ("www", named),
        (source, named),
        (f"{named}x", named),
        ("disk.img", "disk"),
        (tmp_path / "disk.img", "disk"),
    ):
        for command in (
            ("restore", f"{asked}@latest", "--to", tmp_path / "out"),
            ("ls", asked),
            ("find", asked, "*"),
            ("points", asked),
            ("status", asked),
        ):
            said = program.run(*command, code=2).stderr
            assert "no points of this resource" in said
            where = "status" if command[0] == "status" else "points"
            assert f"did you mean {name}? Else see what there is: safehold {where}" in said
    said = program.run("cat", "nothing-like-it", code=2).stderr
    assert "did you mean" not in said
    assert "see what there is: safehold points" in said


def test_standard_input(program: Program, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(20_000_000) + bytes(10_000_000) + b"end"
    dump = tmp_path / "dump"
    dump.write_bytes(data)

    def piped(text: bytes, code: int, *arguments: str) -> str:
        environment = program._environment({})
        command = [str(Path(sys.executable).parent / "safehold"), "backup", "-", *arguments]
        done = subprocess.run(command, input=text, env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr.decode()

    piped(data, 0, "--name", "dump")
    again = program.json("points", "dump")["points"][0]
    assert again["members"][0]["size"] == len(data)
    program.run("restore", "dump@latest", "--to", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    # An insertion moves everything behind it, and costs two chunks.
    piped(data[:5_000_000] + b"inserted" + data[5_000_000:], 0, "--name", "dump")
    assert program.json("points", "dump")["points"][1]["new"] < 9_000_000
    assert "was empty" in piped(b"", 1, "--name", "dump")
    assert "no name" in piped(b"x", 2)
    program.run("verify", "--data")


def test_the_vault_does_not_go_into_itself(program: Program, vault: Path, tmp_path: Path, source: Path) -> None:
    program.run("backup", tmp_path, "--name", "all")
    listed = {e["path"] for e in program.json("ls", f"all@latest:{tmp_path}")["entries"]}
    assert f"{source}" in listed
    assert f"{vault}" not in listed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mount_that_lost_its_file_system(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        (place / "file").write_text("precious")
        program.run("backup", place, "--name", "data")
    finally:
        subprocess.run(["umount", place], check=True)
    said = program.run("backup", place, "--name", "data", code=1).stderr
    assert "no file system is mounted where one should be" in said
    assert str(place) in said
    program.run("backup", place, "--name", "data", "--adopt")
    program.run("backup", place, "--name", "data")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_consistency_of_files(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        (place / "file").write_text("x")
        assert "can change while it is read" in program.run("backup", place, "--require", "crash", code=7).stderr
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        done = program.json("backup", place, "--require", "filesystem")["points"][0]
        assert done["consistency"] == "filesystem"
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_read_only_here_is_not_still_everywhere(program: Program, tmp_path: Path) -> None:
    """An overlay, like a share, changes by what lies below it, whoever mounted it read-only."""
    below, more, place = (tmp_path / name for name in ("below", "more", "data"))
    for one in (below, more, place):
        one.mkdir()
    (below / "file").write_text("x")
    options = f"ro,lowerdir={below}:{more}"
    subprocess.run(["mount", "-t", "overlay", "none", place, "-o", options], check=True)
    try:
        assert "can change while it is read" in program.run("backup", place, "--require", "filesystem", code=7).stderr
        assert program.json("backup", place)["points"][0]["consistency"] == "none"
    finally:
        subprocess.run(["umount", place], check=True)


def test_one_file_system(program: Program, tmp_path: Path, source: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    inner = source / "mounted"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        (inner / "file").write_text("x")
        program.run("backup", source, "--name", "one", "--one-file-system")
        program.run("backup", source, "--name", "both")
    finally:
        subprocess.run(["umount", inner], check=True)
    assert program.json("ls", f"one@latest:{inner}")["entries"] == []
    assert len(program.json("ls", f"both@latest:{inner}")["entries"]) == 1


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_is_found_and_named(program: Program, vault: Path, source: Path, tmp_path: Path, how: str) -> None:
    program.run("backup", source, "--name", "www")
    pack = max((vault / "packs").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(pack.read_bytes())
    pack.unlink()
    if how != "gone":
        for at in range(2000, len(data) - 3000, 5000):
            data[at] ^= 1
        pack.write_bytes(data if how == "flip" else data[:3000])
    said = program.run("verify", *(["--data"] if how == "flip" else []), code=4).stdout
    assert re.search(r"\d files? cannot be read", said)
    assert f"{source}/img/" in said or f"{source}/big.bin" in said
    failed = program.run("restore", f"www@latest:{source}", "--to", tmp_path / "out", code=4).stderr
    assert "cannot be read whole" in failed
    saved = program.run("restore", f"www@latest:{source}", "--to", tmp_path / "salvaged", "--salvage", code=3)
    assert "could not be read whole" in saved.stderr
    for path in (tmp_path / "salvaged").rglob("*"):
        if path.is_file():
            relative = str(path.relative_to(tmp_path / "salvaged"))
            assert path.read_bytes() == (source / relative).read_bytes() or relative in saved.stderr


def test_salvage_without_metadata(program: Program, vault: Path, source: Path, tmp_path: Path) -> None:
    program.run("backup", source, "--name", "www")
    for pack in (vault / "meta").rglob("*"):
        if pack.is_file():
            pack.unlink()
    everything = "entries from / to the end"
    assert everything in program.run("verify", code=4).stdout
    for selector in ("www@latest", f"www@latest:{source}"):
        place = tmp_path / selector[-1]
        assert everything in program.run("restore", selector, "--to", place, code=4).stderr
        saved = program.run("restore", selector, "--to", place, "--salvage", code=3)
        assert everything in saved.stderr
        assert "could not be read whole" in saved.stderr


def test_how_two_points_differ(program: Program, source: Path) -> None:
    first = program.json("backup", source, "--name", "www")["points"][0]["point"]
    assert program.json("diff", f"www@{first}:{source}", "www@latest")["changes"] == []
    (source / "new").write_text("x")
    (source / "img/3.txt").unlink()
    (source / "img/4.txt").write_text("other")
    (source / "index.html").chmod(0o600)
    (source / "big.bin").write_bytes(b"replaced")
    program.run("backup", source, "--name", "www")
    told = program.json("diff", f"www@{first}:{source}", f"www@latest:{source}")["changes"]
    base = len(str(source)) + 1
    assert {(c["path"][base:], c["how"]) for c in told} == {
        ("", "attributes"),
        ("new", "added"),
        ("img", "attributes"),
        ("img/3.txt", "removed"),
        ("img/4.txt", "changed"),
        ("index.html", "attributes"),
        ("big.bin", "changed"),
    }
    shown = program.run("diff", f"www@{first}:{source}/img", f"www@latest:{source}/img").stdout
    assert shown.splitlines()[1:] == [
        f"- {source}/img/3.txt",
        f"M {source}/img/4.txt",
        "1 removed, 1 changed, 1 attributes",
    ]


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Files enough for processes of their own to write them, two names of one in different directories among them."""
    top = tmp_path / "crowd"
    for n in range(12_000):
        place = top / f"{n // 1000}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n}").write_text(f"file {n}\n" * 200)
    os.link(top / "0/0", top / "11/again")
    (top / "5/5001").chmod(0o4751)
    os.setxattr(top / "5/5002", "user.note", b"x")
    return top


def test_many_small_files(program: Program, crowd: Path, tmp_path: Path) -> None:
    program.run("backup", crowd, "--name", "crowd")
    out = tmp_path / "out"
    program.run("restore", f"crowd@latest:{crowd}", "--to", out)
    assert rsync_differences(crowd, out) == ""
    # In the way of a delta: another file, a directory, and a link to outside where a directory belongs.
    for n in range(0, 12_000, 3):
        (out / f"{n // 1000}/{n}").write_text("other")
    (out / "7/7000").unlink()
    (out / "7/7000").mkdir()
    subprocess.run(["rm", "-r", out / "9"], check=True)
    (tmp_path / "outside").mkdir()
    (out / "9").symlink_to(tmp_path / "outside")
    program.run("restore", f"crowd@latest:{crowd}", "--to", out, "--delta")
    assert rsync_differences(crowd, out) == ""
    assert list((tmp_path / "outside").iterdir()) == []


def writers_of(restore: int) -> list[int]:
    """The processes that write files for a restore."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == restore and b"adapters.files.writer" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_restore_leaves_no_process(program: Program, crowd: Path, tmp_path: Path, number: int) -> None:
    program.run("backup", crowd, "--name", "crowd")
    started = program.start("restore", f"crowd@latest:{crowd}", "--to", tmp_path / "out")
    while not (writers := writers_of(started.pid)):
        assert started.poll() is None
    # Held, so that the restore is not done before it is stopped.
    for writer in writers:
        os.kill(writer, signal.SIGSTOP)
    started.send_signal(number)
    time.sleep(0.1)
    for writer in writers:
        os.kill(writer, signal.SIGCONT)
    _, said = started.communicate(timeout=30)
    assert started.returncode != 0
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{writer}").exists() for writer in writers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_whose_parts_lie_in_another_order_in_the_vault(program: Program, vault: Path, tmp_path: Path) -> None:
    """Parts are read in the order in which packs hold them; the first file put them there in its own."""
    parts = [random.Random(n).randbytes(5_000_001) for n in range(4)]
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "first").write_bytes(b"".join(parts))
    program.run("backup", tree, "--name", "parts")
    (tree / "reversed").write_bytes(b"".join(reversed(parts)))
    random.Random(1).shuffle(parts)
    (tree / "mixed").write_bytes(b"".join(parts))
    program.run("backup", tree, "--name", "parts")
    assert int(program.json("point", "show", "parts@latest")["stored"]) < len(parts[0]) * 5, "parts are shared"
    program.run("restore", f"parts@latest:{tree}", "--to", tmp_path / "out")
    for name in ("first", "reversed", "mixed"):
        subprocess.run(["cmp", tree / name, tmp_path / "out" / name], check=True)
