"""Rolling verification and status, with the installed program."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from safehold.testing.program import Program


def packs(vault: Path) -> list[Path]:
    return sorted(p for p in (vault / "packs").rglob("*") if p.is_file())


def test_a_vault_is_verified_piece_by_piece(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    for seed in range(3):
        disk.write_bytes(random.Random(seed).randbytes(20_000_000))
        program.run("backup", disk)
    before = program.json("points")["points"]
    assert [p["verified_data"] for p in before] == [0, 0, 0]
    reads, proved = [], []
    for _ in range(8):
        done = program.json("verify", "--older-than", "30d", "--read-budget", "17MB")
        reads.append(done["read"])
        proved += done["proved"]
        if not done["waiting"]:
            break
    assert max(reads) < 18_000_000
    assert sum(reads) == sum(p.stat().st_size for p in packs(vault))
    assert sorted(proved) == sorted(p["id"] for p in before)
    assert all(p["verified_data"] > 0 for p in program.json("points")["points"])
    assert "verified" in program.run("points").stdout
    # All is fresh: nothing is read again.
    assert program.json("verify", "--older-than", "30d")["read"] == 0
    again = program.json("verify", "--older-than", "0s", "--read-budget", "1B")
    assert 0 < again["read"] < 18_000_000


def test_rot_is_found_by_a_later_run(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(random.Random(1).randbytes(40_000_000))
    program.run("backup", disk)
    victim = packs(vault)[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = []
    for _ in range(6):
        done = program.json("verify", "--older-than", "1d", "--read-budget", "1MB", code=None)
        found += done["findings"]
        assert done["proved"] == []
        if found:
            break
    assert victim.name in found[0]["on"]
    first = program.run("status").stdout.splitlines()[0]
    assert first.startswith("PROBLEM  damaged data was found")
    assert victim.name in first
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert program.json("verify", "--older-than", "1d")["proved"] != []
    assert program.json("status")["problems"] == []
    victim.unlink()
    assert "is gone" in program.run("verify", "--older-than", "0s", code=4).stdout


def test_status_says_what_is_overdue_first(program: Program, vault: Path, tmp_path: Path) -> None:
    assert "no points yet" in program.run("status").stdout
    assert "there are no points at all" in program.run("status", "--max-age", "26h", code=8).stderr
    program.json("status", "--max-age", "26h", code=8)
    for name in ("a", "b"):
        (tmp_path / f"{name}.img").write_bytes(b"x" * 5000)
        program.run("backup", tmp_path / f"{name}.img")
    program.run("status", "--max-age", "26h")
    time.sleep(8)
    (tmp_path / "b.img").write_bytes(b"y" * 5000)
    program.run("backup", tmp_path / "b.img")
    # What is overdue now stays so, and the other has eight seconds until it is.
    limit = f"{int(program.json('status')['resources']['a']['age'])}s"
    done = program.run("status", "--max-age", limit, code=8)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["OVERDUE", "a"], ["ok", "b"]]
    assert "1 of 2 resources" in done.stderr
    assert program.json("status", "--max-age", limit, code=8)["resources"]["a"]["state"] == "OVERDUE"
    program.run("status", "b", "--max-age", "1d")
    assert "no points of this resource" in program.run("status", "nothing", code=8).stderr
    assert "is no span" in program.run("status", "--max-age", "soon", code=2).stderr
    assert os.environ.get("SAFEHOLD_VAULT") is None


def test_a_backup_repairs_what_was_noted_as_damaged(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(random.Random(5).randbytes(20_000_000))
    first = program.json("backup", disk)["points"][0]["point"]
    for victim in packs(vault):
        data = bytearray(victim.read_bytes())
        for at in range(1000, len(data) - 1000, 100_000):
            data[at] ^= 1
        victim.write_bytes(data)
    program.run("restore", f"disk@{first}", "--to", tmp_path / "no", code=4)
    assert program.json("backup", disk)["points"][0]["new"] == 0
    program.run("verify", "--older-than", "0s", code=4)
    assert program.json("backup", disk)["points"][0]["new"] >= 19_000_000
    program.run("restore", f"disk@{first}", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()
    program.run("vault", "prune")
    program.run("verify", "--data")
    assert program.json("backup", disk)["points"][0]["new"] == 0
