"""Keys, kits, writers and recovery, with the installed program."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.disks import make_disk, same


@pytest.fixture
def vault(passphrase_vault: Path) -> Path:
    return passphrase_vault


def test_recovery_rehearsal(program: Program, vault: Path, tmp_path: Path) -> None:
    """A bare directory, the vault's address and the printed kit, nothing else."""
    one, two = make_disk(tmp_path / "one.img", "ab.c"), make_disk(tmp_path / "two.img", "t0x")
    program.run("backup", one, two)
    page = (tmp_path / "kit.txt").read_text()
    assert stat.S_IMODE((tmp_path / "kit.txt").stat().st_mode) == 0o600
    shutil.rmtree(program.home)
    for lost in ((), ("keys",), ("keys", "vault.json", "index", "sessions", "writers")):
        for name in lost:
            path = vault / name
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        bare = tmp_path / f"bare-{len(lost)}"
        bare.mkdir()
        (bare / "page.txt").write_text("> copied from paper\n" + page)
        rescue = Program(bare / "home", {"SAFEHOLD_PASSPHRASE": "", "SAFEHOLD_VAULT": str(vault)})
        points = rescue.json("points", "--kit", bare / "page.txt")["points"]
        assert len(points) == 2
        for disk in (one, two):
            rescue.run("restore", f"{disk.stem}@latest", "--to", bare / disk.name, "--kit", bare / "page.txt")
            same(disk, bare / disk.name)
        secret = page[page.index("SHK1-") :].split("To restore")[0]
        typed = Program(bare / "typed", {"SAFEHOLD_PASSPHRASE": secret, "SAFEHOLD_VAULT": str(vault)})
        assert len(typed.json("points")["points"]) == 2


def test_a_lost_gc_chain_is_warned_of(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "ab")
    program.run("backup", disk)
    shutil.rmtree(vault / "gc")
    assert "this machine has seen one" in program.run("points", code=4).stderr
    fresh = Program(tmp_path / "fresh", {"SAFEHOLD_VAULT": str(vault)})
    for arguments in (["points"], ["restore", "disk@latest", "--to", tmp_path / "back.img"]):
        assert "warning: the gc chain is missing" in fresh.run(*arguments).stderr
    same(disk, tmp_path / "back.img")


def test_a_lost_document_is_put_back(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "ab")
    program.run("backup", disk)
    program.run("key", "writer", tmp_path / "writer.key", "--resource", "mine")
    writer = Program(tmp_path / "other", {"SAFEHOLD_VAULT": str(vault)}, passphrase=False)
    mine = ("backup", disk, "--name", "mine", "--writer", tmp_path / "writer.key")
    document = vault / "vault.json"
    before = document.read_bytes()
    document.unlink()
    assert "safehold vault prune" in writer.run(*mine, code=4).stderr
    # Nobody vouches for what would go with a kit, and reading writes nothing.
    program.run("backup", disk, "--kit", tmp_path / "kit.txt")
    program.run("restore", "disk@latest", "--to", tmp_path / "back.img")
    program.run("vault", "prune", "--dry-run")
    assert not document.exists()
    said = program.run("backup", disk).stderr
    assert "vault.json was missing, and is put back" in said
    assert document.read_bytes() == before
    assert "vault.json" not in program.run("backup", disk).stderr
    writer.run(*mine)
    program.run("verify", "--stored")


def test_a_kit_that_was_proved_is_remembered(program: Program, tmp_path: Path) -> None:
    program.run("vault", "init", tmp_path / "vault", "--kit-file", tmp_path / "kit.txt")
    rolling = ("verify", "--older-than", "30d")
    assert "no second copy of the key is known" in program.run("verify").stderr
    # Another slot lies beside the first, and a page that was printed may be anywhere.
    program.run("key", "add", "--label", "second", SAFEHOLD_NEW_PASSPHRASE="two")
    program.run("key", "export", "--paper")
    assert "no second copy of the key is known" in program.run("verify").stderr
    assert "no second copy of the key is known" in program.run(*rolling).stderr
    program.run("key", "check", "--kit", tmp_path / "kit.txt")
    assert "second copy" not in program.run("verify").stderr
    assert "second copy" not in program.run(*rolling).stderr
    # The old page is no copy of a new key.
    program.run("key", "rotate", "--yes", "--kit-file", tmp_path / "new.txt", SAFEHOLD_NEW_PASSPHRASE="new")
    assert "no second copy" in program.run("verify", SAFEHOLD_PASSPHRASE="new").stderr


def test_a_passphrase_file_that_is_not_there(program: Program, vault: Path) -> None:
    program.passphrase = False
    said = program.run("key", "check", code=6, SAFEHOLD_PASSPHRASE_FILE="/nope").stderr
    assert "secret cannot be read (No such file or directory): /nope\n" in said


def test_slots(program: Program, vault: Path, tmp_path: Path) -> None:
    program.run("key", "add", "--label", "second", SAFEHOLD_NEW_PASSPHRASE="two")
    assert "owner" in program.run("key", "check", SAFEHOLD_PASSPHRASE="two").stdout
    assert "wrong passphrase" in program.run("key", "check", code=6, SAFEHOLD_PASSPHRASE="three").stderr
    slots = program.json("key", "list")["slots"]
    assert sorted(s["label"] for s in slots) == ["first", "second"]
    first, second = sorted(slots, key=lambda s: str(s["label"]))
    assert "would remove" in program.run("key", "remove", first["id"], "--dry-run").stdout
    said = program.run("key", "remove", first["id"][:10], code=2).stderr
    assert "this removes a way into the vault" in said
    assert "say --yes" in said
    said = program.run("key", "rotate", code=2, SAFEHOLD_NEW_PASSPHRASE="new").stderr
    assert "this removes every other way into the vault" in said
    program.run("key", "remove", first["id"][:10], "--yes")
    assert program.run("key", "check", code=6).stdout == ""
    program.run("key", "check", SAFEHOLD_PASSPHRASE="two")
    said = program.run("key", "remove", second["id"], "--yes", code=2, SAFEHOLD_PASSPHRASE="two").stderr
    assert "last key slot" in said


def test_recipient(program: Program, vault: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    program.run("key", "add", "--recipient", public, "--label", "yubi")
    assert "owner" in program.run("key", "check", "--identity", private, SAFEHOLD_PASSPHRASE="").stdout
    assert "not an X25519" in _other_key(program, tmp_path)
    # Somebody makes a vault for the same public key, and puts it in the place of the real one.
    thief = Program(tmp_path / "thief", {"SAFEHOLD_VAULT": str(tmp_path / "fake")})
    thief.run("vault", "init", tmp_path / "fake")
    thief.run("key", "add", "--recipient", public, "--label", "yubi")
    vault.rename(tmp_path / "real")
    (tmp_path / "fake").rename(vault)
    for command in (["key", "check"], ["backup", public, "--name", "secret"], ["points"]):
        said = program.run(*command, "--identity", private, code=4, SAFEHOLD_PASSPHRASE="").stderr
        assert "this machine knows vault" in said
    program.run("key", "check")
    program.run("key", "check", "--identity", private, SAFEHOLD_PASSPHRASE="")


def _other_key(program: Program, tmp_path: Path) -> str:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "ed.pem"], check=True)
    return program.run("key", "check", "--identity", tmp_path / "ed.pem", code=6).stderr


def test_rotation(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    program.run("backup", disk)
    writer = tmp_path / "writer.json"
    program.run("key", "writer", writer, "--resource", "remote")
    program.run("key", "rotate", "--yes", "--kit-file", tmp_path / "new-kit.txt", SAFEHOLD_NEW_PASSPHRASE="new")
    assert program.run("key", "check", code=6).stdout == ""
    program.environment["SAFEHOLD_PASSPHRASE"] = "new"
    again = program.json("backup", disk)["points"][0]
    assert again["new"] == 0, "the dedup domain goes on"
    # A credential made before the rotation goes on working, along the signed chain.
    program.run("backup", disk, "--name", "remote", "--writer", writer)
    assert len(program.json("points")["points"]) == 3
    for n, point in enumerate(program.json("points")["points"]):
        program.run("restore", f"{point['members'][0]['name']}@{point['id']}", "--to", tmp_path / f"{n}.back")
        same(disk, tmp_path / f"{n}.back")
    # The old kit reads what was sealed to the old key, and is told about the rest.
    said = program.run("key", "check", "--kit", tmp_path / "kit.txt", code=6).stderr
    assert "rotated away" in said
    fresh = Program(tmp_path / "fresh", {"SAFEHOLD_VAULT": str(vault)})
    assert len(fresh.json("points", "--kit", tmp_path / "new-kit.txt")["points"]) == 3
    assert program.json("verify", "--data")["ok"]
    assert program.json("verify", "--stored")["ok"]


def test_writer_credentials(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    credential = tmp_path / "writer.json"
    program.run("key", "writer", credential, "--resource", "web*", "--label", "web servers")
    assert stat.S_IMODE(credential.stat().st_mode) == 0o600
    assert json.loads(credential.read_text())["url"] == str(vault)
    host = Program(
        tmp_path / "host", {"SAFEHOLD_VAULT": str(vault), "SAFEHOLD_WRITER": str(credential), "SAFEHOLD_PASSPHRASE": ""}
    )
    assert "reads nothing" in host.run("key", "check").stdout
    assert host.json("backup", disk, "--name", "web1")["points"][0]["new"] > 0
    assert host.json("backup", disk, "--name", "web1")["points"][0]["new"] == 0
    assert "may not write" in host.run("backup", disk, "--name", "db", code=6).stderr
    for arguments in (["points"], ["restore", "web1@latest", "--to", tmp_path / "x"], ["verify", "--data"], ["status"]):
        assert "can add points and nothing else" in host.run(*arguments, code=6).stderr
    assert "cannot" in host.run("key", "add", code=6).stderr
    writers = [w for w in program.json("key", "list")["writers"] if w["exported"]]
    assert [(w["label"], w["resources"], w["revoked"]) for w in writers] == [("web servers", ["web*"], False)]
    program.run("restore", "web1@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")
    program.run("key", "revoke", writers[0]["id"][:8])
    for arguments in (["backup", disk, "--name", "web1"], ["key", "check"]):
        assert "this credential was revoked" in host.run(*arguments, code=6).stderr
    late = vault / "points" / writers[0]["id"] / ("f" * 32)
    late.write_bytes(b"rubbish")
    assert program.json("vault", "prune")["left_whole"] == []
    program.run("point", "expire", f"@{late.name[:8]}", "--yes")
    assert not late.exists()


def test_a_stolen_credential(program: Program, vault: Path, tmp_path: Path) -> None:
    """The runbook's page: which points it made, until when they count, and that it goes on adding."""
    disk = make_disk(tmp_path / "disk.img", "abc")
    credential = tmp_path / "host7.json"
    program.run("key", "writer", credential, "--resource", "host7-*", "--label", "host7")
    host = Program(
        tmp_path / "host", {"SAFEHOLD_VAULT": str(vault), "SAFEHOLD_WRITER": str(credential), "SAFEHOLD_PASSPHRASE": ""}
    )
    made = host.json("backup", disk, "--name", "host7-disk")["points"][0]["point"]
    mine = program.json("backup", disk)["points"][0]["point"]
    (writer,) = (one for one in program.json("key", "list")["writers"] if one["exported"])
    assert writer["revoked_at"] == 0
    wid = writer["id"]
    listed = {one["id"]: one["writer"] for one in program.json("points")["points"]}
    assert listed[made] == {"id": wid, "label": "host7"}
    assert listed[mine]["label"] == "owner"
    assert program.json("point", "show", f"host7-disk@{made}")["writer"] == listed[made]
    assert f"\nwriter       host7 ({wid[:8]})\n" in program.run("point", "show", f"host7-disk@{made}").stdout
    assert [one["id"] for one in program.json("points", "--made-by", wid[:8])["points"]] == [made]
    assert [one["id"] for one in program.json("points", "disk", "--made-by", listed[mine]["id"])["points"]] == [mine]
    assert "no points of disk by writer" in program.run("points", "disk", "--made-by", wid[:8]).stdout
    assert "no single writer" in program.run("points", "--made-by", "zz", code=2).stderr
    assert program.json("status")["problems"] == []
    program.run("key", "revoke", wid[:8])
    # A program that does not look whether it was revoked.
    (vault / "notes" / wid).rename(tmp_path / "hidden")
    late = [host.json("backup", disk, "--name", "host7-disk")["points"][0]["point"] for _ in range(2)]
    (tmp_path / "hidden").rename(vault / "notes" / wid)
    (writer,) = (one for one in program.json("key", "list")["writers"] if one["exported"])
    since = datetime.fromtimestamp(writer["revoked_at"]).strftime("%Y-%m-%dT%H:%M:%S")
    assert f"revoked {since}" in program.run("key", "list").stdout
    for verb in ("points", "verify"):
        said = program.run(verb).stderr
        for one in late:
            assert f"made after its writer was revoked → safehold point expire @{one[:8]}" in said
    for resource in ([], ["host7-disk"]):
        (problem,) = program.json("status", *resource, code=1)["problems"]
        assert problem["what"].startswith(
            f"writer {wid[:8]} (host7) was revoked on {since} and goes on adding: 2 points "
        )
        assert "take the credential off that host" in problem["remedy"]
        assert all(f"@{one[:8]}" in problem["remedy"] for one in late)
    assert program.json("status", "disk")["problems"] == []
    assert f"PROBLEM  {problem['what']} → {problem['remedy']}" in program.run("status", code=1).stdout
    assert [one["id"] for one in program.json("points", "host7-*")["points"]] == [made]
    program.run("point", "expire", *(f"@{one[:8]}" for one in late), "--yes")
    assert program.json("status")["problems"] == []


def test_two_hosts_with_one_credential_and_one_name(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    credential = tmp_path / "writer.json"
    program.run("key", "writer", credential, "--resource", "web*")
    environment = {"SAFEHOLD_VAULT": str(vault), "SAFEHOLD_WRITER": str(credential), "SAFEHOLD_PASSPHRASE": ""}
    one, two = (Program(tmp_path / name, environment) for name in ("one", "two"))
    for host, identity in ((one, "11111111"), (two, "22222222")):
        (host.home / "state").mkdir(parents=True)
        (host.home / "state" / "host-id").write_text(identity * 4)
    for host in (one, one, two):
        host.run("backup", disk, "--name", "web")
    first, second, third = program.json("points")["points"]
    assert [p["members"][0]["follows"][-32:] for p in (first, second, third)] == ["", first["id"], ""]
    for verb in ("points", "status", "verify"):
        said = program.run(verb).stderr
        assert "points of 'web' come from" in said
        assert "(id 11111111)" in said
        assert "(id 22222222)" in said
    two.run("backup", disk, "--name", "web", "--adopt")
    for verb in ("points", "status", "verify"):
        assert "come from" not in program.run(verb).stderr


def test_a_writers_rubbish_stops_no_prune(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    credential = tmp_path / "writer.json"
    program.run("key", "writer", credential, "--resource", "web*")
    program.run("backup", disk)
    program.run("point", "expire", f"disk@{program.json('points')['points'][0]['id']}", "--even-last", "--yes")
    wid = next(w["id"] for w in program.json("key", "list")["writers"] if w["exported"])
    rubbish = vault / "points" / wid / ("f" * 32)
    rubbish.parent.mkdir(parents=True)
    rubbish.write_bytes(b"rubbish")
    said = program.run("vault", "prune").stdout
    assert "deleted" in said
    assert "left whole       a writer's packs: what an object under points/ needs is unknown" in said
    assert f"safehold point expire @{rubbish.name[:8]}" in said
    program.run("point", "expire", f"@{rubbish.name[:8]}", "--yes")
    assert "left whole" not in program.run("vault", "prune").stdout


def test_store_policy_names_no_more_than_the_writers_own(program: Program, s3: str, tmp_path: Path) -> None:
    program.environment["SAFEHOLD_VAULT"] = s3
    program.run("vault", "init", s3)
    said = program.run("key", "writer", tmp_path / "w.json", "--resource", "x").stdout
    policy = json.loads(said[said.index("{") :])
    put = next(s for s in policy["Statement"] if s["Action"] == "s3:PutObject")
    wid = json.loads((tmp_path / "w.json").read_text())["wid"]
    assert "s3:if-none-match" in json.dumps(put["Condition"])
    assert not any("Delete" in json.dumps(s["Action"]) for s in policy["Statement"])
    assert wid
    assert all("points/" not in r or r.count("*") == 1 for r in put["Resource"])


def test_passphrase_sources(program: Program, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("correct horse\n")
    program.passphrase = False
    program.run("points", SAFEHOLD_PASSPHRASE_FILE=str(tmp_path / "words"))
    program.run("points", SAFEHOLD_PASSPHRASE_COMMAND=f"cat {tmp_path / 'words'}")
    assert "no passphrase" in program.run("points", code=6).stderr
    assert "exit code 3" in program.run("points", code=6, SAFEHOLD_PASSPHRASE_COMMAND="exit 3").stderr
    assert "cannot be read" in program.run("points", code=6, SAFEHOLD_PASSPHRASE_FILE=str(tmp_path / "none")).stderr
    assert "is empty" in program.run("points", code=6, SAFEHOLD_PASSPHRASE="").stderr


def test_on_s3(program: Program, s3: str, tmp_path: Path) -> None:
    program.environment["SAFEHOLD_VAULT"] = s3
    assert "16 creators" in program.run("vault", "check-store", s3).stdout
    program.run("vault", "init", s3, "--kit-file", tmp_path / "kit.txt")
    assert "there is a vault here already" in program.run("vault", "init", s3, code=2).stderr
    disk = make_disk(tmp_path / "disk.img", "abc..defgh" * 6)
    program.run("backup", disk)
    assert program.json("backup", disk)["points"][0]["stored"] == 0
    program.run("restore", "disk@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")
    for how in ("--structure", "--data", "--stored"):
        assert program.json("verify", how)["ok"]
    assert len(program.json("points", "--kit", tmp_path / "kit.txt", SAFEHOLD_PASSPHRASE="")["points"]) == 2
    said = program.run("vault", "check-store", s3, code=5, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert "does not answer" in said.stdout + said.stderr


def test_plain_http_elsewhere_is_refused(program: Program) -> None:
    said = program.run("points", "--vault", "s3://bucket/x", code=2, AWS_ENDPOINT_URL="http://example.com").stderr
    assert "not encrypted" in said
