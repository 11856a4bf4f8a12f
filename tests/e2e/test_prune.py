"""Pruning with the installed program."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.files import snapshot


def stored(vault: Path) -> int:
    """Bytes in packs; what a killed put left under a hidden name is none of them."""
    files = [p for place in ("packs", "meta") for p in (vault / place).rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files if not p.name.startswith("."))


def fill(disk: Path, seed: int, size: int = 24_000_000) -> bytes:
    part = random.Random(seed).randbytes(min(size, 50_000_000))
    data = b"".join(bytes([n]) + part[1:] for n in range(size // len(part)))
    disk.write_bytes(data)
    return data


def test_space_comes_back(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    fill(disk, 1)
    program.run("backup", disk)
    kept = fill(disk, 2)
    program.run("backup", disk)
    before = stored(vault)
    assert program.json("vault", "prune")["deleted"] == 0
    program.run("point", "expire", "--keep-last", "1", "--yes")
    dry = program.json("vault", "prune", "--dry-run")
    assert 23_000_000 < dry["condemned"] < 26_000_000
    assert stored(vault) == before
    done = program.json("vault", "prune")
    assert done["deleted"] == dry["condemned"]
    assert done["waiting"] == []
    assert stored(vault) == before - done["deleted"]
    assert not any(p.is_file() for p in (vault / "sessions").rglob("*"))
    program.run("verify", "--data")
    program.run("verify", "--stored")
    program.run("restore", "disk@latest", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == kept
    # What was pruned is stored again when it comes back.
    first = fill(disk, 1)
    program.run("backup", disk)
    program.run("restore", "disk@latest", "--to", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first


def test_a_backup_at_work_is_waited_for(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    fill(disk, 1)
    program.run("backup", disk)
    fill(disk, 2)
    program.run("backup", disk)
    program.run("point", "expire", "--keep-last", "1", "--yes")
    program.home.mkdir(exist_ok=True)
    read_end, write_end = os.pipe()
    command = [str(Path(sys.executable).parent / "safehold"), "backup", "-", "--name", "slow"]
    running = subprocess.Popen(command, stdin=read_end, env=program._environment({}), stdout=subprocess.DEVNULL)
    os.close(read_end)
    try:
        os.write(write_end, b"begin")
        deadline = time.monotonic() + 30
        while len([p for p in (vault / "sessions").rglob("*") if p.is_file()]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waiting = program.json("vault", "prune")
        assert [s["pid"] for s in waiting["waiting"]] == [running.pid]
        assert waiting["deleted"] == 0
        assert waiting["condemned"] > 0
        # Others back up meanwhile.
        fill(disk, 3)
        program.run("backup", disk)
        os.write(write_end, b" end")
    finally:
        os.close(write_end)
    assert running.wait(60) == 0
    done = program.json("vault", "prune")
    assert done["deleted"] > 20_000_000
    assert program.run("cat", "slow@latest").stdout == "begin end"
    program.run("verify", "--data")


def test_a_killed_backup_is_ended_and_its_garbage_goes(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    fill(disk, 1)
    program.run("backup", disk)
    before = stored(vault)
    fill(disk, 2, 300_000_000)
    running = program.start("backup", disk, "--name", "other")
    deadline = time.monotonic() + 30
    while stored(vault) < before + 40_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    done = program.json("vault", "prune")
    assert len(done["fenced"]) == 1
    assert done["deleted"] > 30_000_000
    assert stored(vault) == before
    program.run("verify", "--data")


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_prune_killed_anywhere_is_finished_by_the_next(
    program: Program, vault: Path, tmp_path: Path, at: int
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "stays").write_bytes(random.Random(1).randbytes(200_000))
    (top / "goes").write_bytes(random.Random(2).randbytes(3_000_000))
    program.run("backup", top, "--name", "top")
    (top / "goes").unlink()
    program.run("backup", top, "--name", "top")
    program.run("point", "expire", "--keep-last", "1", "--yes")
    died = program.crash(at, "before", tmp_path / "report", "vault", "prune")
    assert died.returncode in (-9, 0)
    program.run("verify", "--data")
    program.run("vault", "prune")
    assert stored(vault) < 2_000_000
    program.run("verify", "--data")
    program.run("restore", f"top@latest:{top}", "--to", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(top)


def test_a_damaged_vault_is_not_pruned(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    fill(disk, 1)
    program.run("backup", disk)
    fill(disk, 2)
    program.run("backup", disk)
    victim = max((p for p in (vault / "packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
    held = victim.read_bytes()
    victim.unlink()
    first = program.json("points")["points"][0]["id"]
    program.run("point", "expire", f"disk@{first}", "--yes")
    before = stored(vault)
    said = program.run("vault", "prune", code=4).stderr
    assert "is gone that points need" in said
    assert stored(vault) == before
    victim.write_bytes(held)
    assert program.json("vault", "prune")["deleted"] > 20_000_000
