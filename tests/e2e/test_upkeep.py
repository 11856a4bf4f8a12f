"""Rolling verification and status, with the installed program."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from safehold.cli.main import run
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
    first = program.run("status", code=4).stdout.splitlines()[0]
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
    assert "no points of this resource" in program.run("status", "nothing", "--max-age", "1d", code=8).stderr
    assert "no points of this resource" in program.run("status", "nothing", code=2).stderr
    assert "is no span" in program.run("status", "--max-age", "soon", code=2).stderr
    assert os.environ.get("SAFEHOLD_VAULT") is None


@pytest.mark.parametrize(
    ("how", "kind", "verify"),
    [
        ("lost", "packs", ["--structure"]),
        ("lost", "meta", ["--data"]),
        ("lost", "packs", ["--older-than", "30d"]),
        ("flipped", "packs", ["--data"]),
        # What was read a moment ago is not read again within thirty days.
        ("flipped", "meta", ["--older-than", "0s"]),
    ],
    ids=str,
)
def test_what_is_lost_is_stored_again(
    program: Program, vault: Path, tmp_path: Path, how: str, kind: str, verify: list[str]
) -> None:
    """Nobody relies on what a verification did not find whole; where the source still has it, the next backup makes old points whole."""
    disk, tree = tmp_path / "disk.img", tmp_path / "tree"
    disk.write_bytes(random.Random(5).randbytes(5_000_000))
    tree.mkdir()
    for n in range(300):
        (tree / f"file{n}").write_bytes(random.Random(n).randbytes(2000))
    key = tmp_path / "writer.key"
    program.run("key", "writer", key, "--resource", "copy")
    writer = Program(
        tmp_path / "writer-home", {"SAFEHOLD_VAULT": str(vault), "SAFEHOLD_WRITER": str(key)}, passphrase=False
    )
    first = {
        name: program.json("backup", place, "--name", name)["points"][0]["point"]
        for name, place in (("disk", disk), ("tree", tree))
    }
    writer.run("backup", disk, "--name", "copy")
    program.run("verify", "--data")
    for victim in [path for path in (vault / kind).rglob("*") if path.is_file()]:
        if how == "lost":
            victim.unlink()
            continue
        data = bytearray(victim.read_bytes())
        for at in range(400, len(data) - 100, 100):
            data[at] ^= 1
        victim.write_bytes(data)
    told = program.run("verify", *verify, code=4).stdout
    if how == "lost":
        assert "disk" in told
        assert "tree" in told
    again = [
        program.json("backup", place, "--name", name)["points"][0] for name, place in (("disk", disk), ("tree", tree))
    ]
    again.append(writer.json("backup", disk, "--name", "copy")["points"][0])
    if kind == "packs":
        assert all(one["new"] > 500_000 for one in again)
    if kind == "meta":
        # Pages of a tree tell where each file lies, and those that are stored again lie elsewhere: the old ones do not come back.
        program.run("restore", f"tree@{first['tree']}", "--to", tmp_path / "no", code=4)
        program.run("point", "expire", f"tree@{first['tree']}", "--even-last", "--yes")
        del first["tree"]
    for name, source in (("disk", disk), ("tree", tree)):
        for when in {first.get(name, "latest"), "latest"}:
            out = tmp_path / f"{name}-{when}"
            selector = f"{name}@{when}" + (f":{tree}" if name == "tree" else "")
            program.run("restore", selector, "--to", out)
            subprocess.run(["diff", "-r", source, out], check=True)
    program.run("restore", "copy@latest", "--to", tmp_path / "copy")
    subprocess.run(["cmp", disk, tmp_path / "copy"], check=True)
    program.run("vault", "prune")
    program.run("verify", "--data")
    program.run("verify", "--older-than", "0s")
    program.run("verify", "--stored")
    assert program.json("backup", disk)["points"][0]["new"] == 0


@pytest.mark.parametrize("kind", ["packs", "meta"])
def test_a_pack_that_is_gone_is_relied_on_by_nobody(program: Program, vault: Path, tmp_path: Path, kind: str) -> None:
    """No verification says so before: each backup, the owner's and a writer's, sees for itself what is there."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(random.Random(5).randbytes(5_000_000))
    key = tmp_path / "writer.key"
    program.run("key", "writer", key, "--resource", "copy")
    writer = Program(
        tmp_path / "writer-home", {"SAFEHOLD_VAULT": str(vault), "SAFEHOLD_WRITER": str(key)}, passphrase=False
    )
    backups = ((program, "disk"), (writer, "copy"))
    first = {name: who.json("backup", disk, "--name", name)["points"][0]["point"] for who, name in backups}
    for victim in [path for path in (vault / kind).rglob("*") if path.is_file()]:
        victim.unlink()
    for who, name in backups:
        done = who.run("backup", disk, "--name", name, "--json")
        assert json.loads(done.stdout)["points"][0]["stored"] > (5_000_000 if kind == "packs" else 500)
        assert f"such as {kind}/" in done.stderr
    for name, point in first.items():
        for when in (point, "latest"):
            program.run("restore", f"{name}@{when}", "--to", tmp_path / f"{name}-{when}")
            subprocess.run(["cmp", disk, tmp_path / f"{name}-{when}"], check=True)
    program.run("verify", "--data")
    # The index speaks of the lost packs until a prune writes it anew.
    program.run("verify", "--stored", code=4)
    program.run("vault", "prune")
    program.run("verify", "--stored")
    for who, name in backups:
        done = who.run("backup", disk, "--name", name, "--json")
        assert json.loads(done.stdout)["points"][0]["new"] == 0
        assert done.stderr == ""


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


@pytest.mark.parametrize("which", range(3))
def test_a_bad_pack_is_healed_and_goes(program: Program, vault: Path, tmp_path: Path, which: int) -> None:
    """The runbook's way: verify, back up, prune; whichever of the packs it is, and whatever its name. What was stored again stays."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(24 << 20))
    program.run("backup", disk)
    with disk.open("r+b") as changed:
        changed.write(os.urandom(1 << 20))
    program.run("backup", disk)
    bad = sorted((p for p in vault.glob("packs/hot/*/*")), key=lambda p: p.name)[which]
    with bad.open("r+b") as pack:
        pack.seek(bad.stat().st_size // 2)
        pack.write(b"rot")
    program.run("verify", "--data", code=4)
    assert "verify found on" in program.run("status", code=4).stdout
    assert program.json("backup", disk)["points"][0]["stored"] > 0
    program.run("vault", "prune")
    program.run("vault", "prune")
    assert not bad.exists()
    program.run("verify", "--data")
    program.run("verify", "--stored")
    assert program.json("status")["problems"] == []
    assert program.json("backup", disk)["points"][0]["new"] == 0
    for point in program.json("points")["points"]:
        program.run("restore", f"disk@{point['id']}", "--to", tmp_path / point["id"])
    assert (tmp_path / point["id"]).read_bytes() == disk.read_bytes()


def test_what_is_missing_is_known_until_a_verify_finds_nothing(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(1 << 20))
    program.run("backup", disk)
    pack = next(vault.glob("packs/hot/*/*"))
    kept = pack.read_bytes()
    pack.unlink()
    program.run("verify", code=4)
    assert pack.name in program.run("status", code=4).stdout
    pack.write_bytes(kept)
    program.run("verify")
    assert program.json("status")["problems"] == []


def test_a_vault_that_is_not_mounted_is_not_made_anew(program: Program, passphrase_vault: Path, tmp_path: Path) -> None:
    passphrase_vault.rename(tmp_path / "elsewhere")
    assert "is it mounted" in program.run("points", code=2).stderr
    assert "see whether its disk is mounted" in program.run("vault", "init", passphrase_vault, code=2).stderr
    program.run("vault", "init", passphrase_vault, "--another", "--kit-file", tmp_path / "kit2.txt")


def test_status_by_the_configuration_alone(program: Program, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "one.yaml").write_text(
        f"version: 1\nvaults:\n  main: {{place: {vault}, passphrase_file: {tmp_path}/pass}}\n"
        f"resources:\n  www: {{paths: [{tmp_path}], plan: daily}}\nplans:\n  daily: {{every: 1d}}\n"
    )
    two = (tmp_path / "one.yaml").read_text().replace("  main:", f"  other: {{place: {tmp_path}/o, kit: /k}}\n  main:")
    (tmp_path / "two.yaml").write_text(two.replace("plan: daily", "vault: main, plan: daily"))
    assert f"not looked at: vault {tmp_path}/o" in program.run("status", "--config", tmp_path / "two.yaml").stdout
    (program.home / "config/default-vault").unlink()
    program.passphrase = False
    assert "missing" in program.run("status", "--config", tmp_path / "one.yaml").stdout
    assert "which vault?" in program.run("status", "--config", tmp_path / "two.yaml", code=2).stderr


def test_known_damage_is_where_one_looks(program: Program, vault: Path, tmp_path: Path) -> None:
    """In every table, for the points that it hurts and no others, until a verification finds nothing."""
    points = {}
    for name in ("bad", "good"):
        (tmp_path / f"{name}.img").write_bytes(os.urandom(1 << 20))
        points[name] = [program.json("backup", tmp_path / f"{name}.img")["points"][0]["point"]]
        if name == "bad":
            (victim,) = vault.glob("packs/hot/*/*")
    program.run("verify", "--data")
    (tmp_path / "bad.img").write_bytes(os.urandom(1 << 20))
    points["bad"].append(program.json("backup", tmp_path / "bad.img")["points"][0]["point"])
    good = victim.read_bytes()
    victim.write_bytes(good[:5000] + b"rot" + good[5003:])
    program.run("verify", "--data", code=4)
    hurt = points["bad"][0]
    listed = {one["id"]: one for one in program.json("points")["points"]}
    assert [one for one in listed if listed[one]["damaged"]] == [hurt]
    assert "cannot be read" in listed[hurt]["damage"][0]["what"]
    rows = {line.split()[0]: line for line in program.run("points").stdout.splitlines()}
    assert "damaged" in rows[hurt[:8]]
    assert "verified" not in rows[hurt[:8]]
    assert "damaged" not in rows[points["good"][0][:8]]
    shown = program.run("point", "show", f"bad@{hurt}").stdout
    assert "state        damaged\n" in shown
    assert "damage       found by verify on 20" in shown
    assert "damaged    bad: bytes " in shown
    assert program.json("point", "show", f"bad@{hurt}")["damaged"] == listed[hurt]["damaged"]
    status = program.json("status", code=4)["resources"]
    assert {name: one["state"] for name, one in status.items()} == {"bad": "damaged", "good": "ok"}
    assert status["bad"]["damaged"] == [hurt]
    lines = program.run("status", code=4).stdout.splitlines()
    assert any(line.startswith("damaged  bad ") for line in lines)
    assert any(f"(bad@{hurt[:8]})" in line and "verify again: safehold verify" in line for line in lines)
    # Of a pack nobody can say whom it hurts; of what a verification found it is known.
    victim.write_bytes(good)
    program.run("verify", f"bad@{hurt}")
    assert program.json("status", code=4)["resources"]["bad"]["state"] == "damaged", "its data was not looked at"
    program.run("verify", f"bad@{hurt}", "--data")
    assert program.json("status", "bad")["resources"]["bad"]["state"] == "ok"
    program.run("verify", "--older-than", "0s")
    program.run("status")
    victim.unlink()
    program.run("verify", code=4)
    assert program.json("status", "good")["problems"] == []
    assert program.json("status", "bad", code=4)["resources"]["bad"]["state"] == "damaged"
    victim.write_bytes(good)
    assert program.json("status", "bad", code=4)["resources"]["bad"]["state"] == "damaged"
    program.run("verify")
    assert program.json("status")["resources"]["bad"]["state"] == "ok"
    assert program.json("points")["points"][0]["damage"] == []


def test_what_is_proved_of_which_point(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"1" * 5000)
    first = program.json("backup", disk)["points"][0]["point"]

    def said() -> tuple[str, dict[str, object]]:
        heading, row = program.run("status").stdout.splitlines()[1:3]
        return row[heading.index("VERIFIED") :], program.json("status")["resources"]["disk"]

    assert said()[0] == "never"
    assert said()[1]["verified_point"] is None
    program.run("verify", "--data")
    assert said()[0].startswith("newest, ")
    assert said()[1]["newest_verified"] is True
    disk.write_bytes(b"2" * 5000)
    program.run("backup", disk)
    text, document = said()
    assert text.startswith(f"{first[:8]}, ")
    assert text.endswith(" s ago")
    assert (document["verified_point"], document["newest_verified"]) == (first, False)


def test_a_partial_newest_point_is_a_problem(
    program: Program, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/sick").write_bytes(b"x")
    program.run("backup", tmp_path / "tree/sick", "--name", "whole")
    program.run("status")
    readv = os.readv

    def failing(fd: int, buffers: Sequence[memoryview]) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/sick"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(fd, buffers)

    with monkeypatch.context() as patch:
        for name, value in {"SAFEHOLD_HOME": str(program.home), **program.environment}.items():
            patch.setenv(name, value)
        patch.setattr(os, "readv", failing)
        assert run(["backup", str(tmp_path / "tree"), "--name", "www"]) == 3
    made = program.json("points", "www")["points"][0]["id"]
    for resource in ([], ["www"]):
        (problem,) = program.json("status", *resource, code=3)["problems"]
        assert problem["what"].startswith("the newest point of www is partial: 1 problem, first: ")
        assert problem["remedy"] == f"safehold point show www@{made[:8]}"
    first = program.run("status", code=3).stdout.splitlines()[0]
    assert first == f"PROBLEM  {problem['what']} → {problem['remedy']}"
    program.run("status", "whole")
    assert "partial" in program.run("points", "www").stdout


def test_points_of_a_pattern(program: Program, vault: Path, tmp_path: Path) -> None:
    for name in ("web1", "web2", "db"):
        (tmp_path / f"{name}.img").write_bytes(b"x" * 5000)
        program.run("backup", tmp_path / f"{name}.img")
    names = [[m["name"] for m in p["members"]] for p in program.json("points", "web*")["points"]]
    assert names == [["web1"], ["web2"]]
    assert len(program.json("points", "web[2-9]")["points"]) == 1
    for given in ("wep1", "nothing*", "nothing"):
        said = program.run("points", given, code=2).stderr
        assert f"no points of this resource: {given}" in said
        assert ("did you mean web1" in said) == (given == "wep1")
        assert program.json("points", given, code=2)["error"]["code"] == 2
    assert "did you mean web1" in program.run("status", "wep1", code=2).stderr


def test_in_one_file_the_error_comes_last(program: Program, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 5000)
    program.run("backup", tmp_path / "disk.img")
    log = tmp_path / "log"
    command = [str(Path(sys.executable).parent / "safehold"), "status", "--max-age", "0.1s"]
    environment = {**os.environ, "SAFEHOLD_HOME": str(program.home), **program.environment}
    with log.open("w") as out:
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["vault", "STATE", "OVERDUE", "safehold:", "→"]
