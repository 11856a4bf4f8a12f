"""The NBD server judged by the clients that people use: qemu, libnbd's tools, fio."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.blocks.server import NbdServer
from safehold.testing.file_export import FileExport, FixedDirectory

SIZE = 64 << 20
SHELL = ("/usr/bin/python3", "-c")
"""Debian's Python, which has the bindings of libnbd."""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not done.returncode, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data in the second MiB and at the end, holes elsewhere."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in (1 << 20, SIZE - (1 << 20)):
            file.seek(at)
            file.write(random.Random(at).randbytes(1 << 20))
    return path


@pytest.fixture
def address(image: Path, tmp_path: Path) -> Iterator[str]:
    disk, fixed = FileExport(str(image)), FileExport(str(image), read_only=True)
    directory = FixedDirectory({"disk": disk, "fixed": fixed})
    with NbdServer(str(tmp_path / "s"), directory) as server:
        yield f"nbd+unix:///NAME?socket={server.path}"
    disk.close()
    fixed.close()
    assert directory.held == {"disk": 0, "fixed": 0}


@pytest.fixture
def uri(address: str) -> str:
    return address.replace("NAME", "disk")


def test_qemu_img(uri: str, image: Path, tmp_path: Path) -> None:
    assert json.loads(run("qemu-img", "info", "--output=json", uri))["virtual-size"] == SIZE
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    assert [(e["start"], e["length"]) for e in mapped if e["data"]] == [(1 << 20, 1 << 20), (SIZE - (1 << 20), 1 << 20)]
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "copy.img")
    run("cmp", tmp_path / "copy.img", image)
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(5).randbytes(SIZE))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, uri)
    run("cmp", other, image)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, other)
    with other.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"damage")
    assert subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", uri, other]).returncode == 1


def test_qemu_io(uri: str, image: Path, tmp_path: Path) -> None:
    model = bytearray(image.read_bytes())
    model[8 << 20 : 12 << 20] = b"\7" * (4 << 20)
    model[12345:13122] = b"\10" * 777
    model[9 << 20 : 10 << 20] = bytes(1 << 20)
    model[10 << 20 : 11 << 20] = bytes(1 << 20)
    model[11 << 20 : (11 << 20) + 65536] = bytes(65536)
    commands = [
        "write -P 7 8M 4M",
        "write -f -P 8 12345 777",
        "discard 9M 1M",
        "write -z 10M 1M",
        "write -z -u -f 11M 64k",
    ]
    commands += ["flush", "read -P 7 8M 1M", "read -P 0 9M 2M"]
    printed = run("qemu-io", "-f", "raw", "-d", "unmap", *(part for c in commands for part in ("-c", c)), uri)
    assert "failed" not in printed
    assert image.read_bytes() == model
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == model


def test_nbdinfo(uri: str, address: str) -> None:
    described = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
    assert described["export-size"] == SIZE
    for able in ("multi_conn", "cache", "df", "fast_zero", "flush", "fua", "trim", "zero"):
        assert described[f"can_{able}"], able
    assert not described["is_read_only"]
    fixed = json.loads(run("nbdinfo", "--json", address.replace("NAME", "fixed")))["exports"][0]
    assert fixed["is_read_only"]
    assert not fixed["can_trim"]
    listed = json.loads(run("nbdinfo", "--list", "--json", address.replace("NAME", "")))["exports"]
    assert [e["export-name"] for e in listed] == ["disk", "fixed"]
    mapped = json.loads(run("nbdinfo", "--map", "--json", uri))
    assert [(e["offset"], e["length"]) for e in mapped if e["type"] == 0] == [(1 << 20, 1 << 20), (63 << 20, 1 << 20)]


def test_nbdcopy(uri: str, image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.img"
    run("nbdcopy", "--connections=4", "--requests=32", uri, copy)
    run("cmp", copy, image)
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(6).randbytes(SIZE // 2) + bytes(SIZE // 2))
    run("nbdcopy", "--connections=4", "--flush", other, uri)
    run("cmp", other, image)


LIBNBD = """
import nbd
h = nbd.NBD()
h.set_request_structured_replies({structured})
if {structured}: h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri({uri!r})
assert h.get_structured_replies_negotiated() == {structured}
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) == {structured}
h.pwrite(b'x' * 100000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(100000, 12345) == b'x' * 100000
assert len(h.pread(32 << 20, 0)) == 32 << 20
h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 24576)
h.cache(65536, 0)
h.flush()
assert h.pread(4096, 16384) == h.pread(4096, 24576) == bytes(4096)
h.set_strict_mode(0)
for call in (lambda: h.pread(2, {size} - 1), lambda: h.trim(2, {size} - 1)):
    try:
        call()
    except nbd.Error as e:
        assert e.errno == 'EINVAL', e
    else:
        raise AssertionError
if {structured}:
    chunks, runs = [], []
    h.pread_structured(4 << 20, 0, lambda data, at, kind, error: chunks.append((at, len(data), kind)))
    assert nbd.READ_HOLE in [kind for _, _, kind in chunks], chunks
    assert sum(n for _, n, kind in chunks if kind == nbd.READ_DATA) < 4 << 20
    h.pread_structured(65536, 0, lambda *a: None, nbd.CMD_FLAG_DF)
    h.block_status(4 << 20, 0, lambda name, at, entries, error: runs.extend(entries), nbd.CMD_FLAG_REQ_ONE)
    assert len(runs) == 2, runs
    h.block_status({size}, 0, lambda name, at, entries, error: runs.extend(entries))
    assert sum(runs[2::2]) == {size}, runs
h.shutdown()
"""


@pytest.mark.parametrize("structured", [True, False])
def test_libnbd(uri: str, structured: bool) -> None:
    run(*SHELL, LIBNBD.format(structured=structured, uri=uri, size=SIZE))


def test_libnbd_against_a_read_only_disk(address: str) -> None:
    code = f"import nbd; h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri({address.replace('NAME', 'fixed')!r}); h.pwrite(b'x', 0)"
    done = subprocess.run([*SHELL, code], capture_output=True, text=True)
    assert done.returncode
    assert "Operation not permitted" in done.stderr


def test_fio_verifies_what_it_wrote(uri: str) -> None:
    verified = ["--bssplit=512/10:4k/50:64k/30:1m/10", "--bsrange=512-1m", "--blockalign=512", "--verify=crc32c"]
    verified += [
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--verify_backlog=256",
        "--iodepth=16",
        f"--size={SIZE}",
        "--fsync=64",
    ]
    printed = run("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--randseed=7", *verified)
    assert "err= 0" in printed
