"""Holding, tagging and expiring points, with the installed program."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.testing.program import Program


@pytest.fixture
def ids(program: Program, vault: Path, tmp_path: Path) -> list[str]:
    """Six points of a small disk, oldest first."""
    disk = tmp_path / "disk.img"
    out = []
    for n in range(6):
        disk.write_bytes(b"%d" % n * 5000)
        out.append(program.json("backup", disk)["points"][0]["point"])
    return out


def test_rules_and_holds(program: Program, ids: list[str], tmp_path: Path) -> None:
    program.run("point", "hold", f"disk@{ids[0]}", "--reason", "lawsuit 17")
    program.run("point", "tag", f"disk@{ids[1]}", "legal=yes", "env=prod")
    rules = ("--keep-last", "2", "--keep-tag", "legal", "--keep-daily", "1")
    dry = program.json("point", "expire", *rules, "--dry-run")
    kept = {p["id"]: p["kept_by"] for p in dry["points"]}
    assert kept[ids[0]] == ["held: lawsuit 17"]
    assert kept[ids[1]] == ["tag"]
    assert kept[ids[2]] == kept[ids[3]] == []
    assert kept[ids[5]] == ["last", "daily", "newest"]
    assert len(program.json("points")["points"]) == 6
    told = program.run("point", "expire", *rules, "--dry-run").stdout
    assert "EXPIRES" in told
    assert "prune" not in told
    done = program.json("point", "expire", *rules, "--yes")
    assert done["expired"] == [ids[2], ids[3]]
    left = program.json("points")["points"]
    assert [p["id"] for p in left] == [ids[0], ids[1], ids[4], ids[5]]
    assert left[0]["held"] == "lawsuit 17"
    assert left[1]["tags"] == {"legal": "yes", "env": "prod"}
    for n in (0, 5):
        program.run("restore", f"disk@{ids[n]}", "--to", tmp_path / f"out{n}")
        assert (tmp_path / f"out{n}").read_bytes() == b"%d" % n * 5000
    assert "is gone" not in program.run("verify", "--data").stderr
    # Held, however it is asked for; then no longer.
    assert "lawsuit 17" in program.run("point", "expire", f"disk@{ids[0]}", "--yes", code=2).stderr
    program.run("point", "release", f"disk@{ids[0]}")
    program.run("point", "expire", f"disk@{ids[0]}", "--yes")
    program.run("point", "tag", f"disk@{ids[1]}", "--remove", "legal")
    assert program.json("point", "show", f"disk@{ids[1]}")["tags"] == {"env": "prod"}
    assert program.json("point", "expire", *rules, "--yes")["expired"] == [ids[1]]


def test_what_is_refused(program: Program, ids: list[str]) -> None:
    assert "no rule says what to keep" in program.run("point", "expire", code=2).stderr
    assert "no points of these" in program.run("point", "expire", "nothing*", "--keep-last", "1", code=2).stderr
    assert "exclude each other" in program.run("point", "expire", f"disk@{ids[0]}", "--keep-last", "1", code=2).stderr
    assert "is no span of time" in program.run("point", "expire", "--window", "soon", code=2).stderr
    assert "let no last point go" in program.run("point", "expire", "--keep-last", "1", "--even-last", code=2).stderr
    # Without a terminal nobody can say yes.
    said = program.run("point", "expire", "--keep-last", "1", code=2).stderr
    assert "this lets points go: 5 of 6 points" in said
    assert "say --yes" in said
    assert len(program.json("points")["points"]) == 6
    # The newest stays, whatever the rules say.
    said = program.run("point", "expire", "--keep-tag", "nothing", "--yes").stdout
    assert said.endswith("5 of 6 points expired; safehold vault prune gives the space back\n")
    assert [p["id"] for p in program.json("points")["points"]] == [ids[5]]


def test_an_expired_point_that_this_machine_made_is_not_missed(program: Program, ids: list[str]) -> None:
    program.run("point", "expire", f"disk@{ids[5]}", "--yes")
    done = program.run("verify")
    assert "is gone" not in done.stdout + done.stderr


def test_keep_until_deleted(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * 5000)
    kept = program.json("backup", disk, "--keep-until-deleted")["points"][0]["point"]
    disk.write_bytes(b"y" * 5000)
    program.run("backup", disk)
    program.run("point", "expire", "--keep-last", "1", "--yes")
    assert len(program.json("points")["points"]) == 2
    program.run("point", "expire", f"disk@{kept}", "--yes")
    assert len(program.json("points")["points"]) == 1


def test_the_only_verified_point_and_the_last_one(program: Program, ids: list[str]) -> None:
    """Single points go when they are asked for; what proves that anything can be restored goes only when that is said as well."""
    program.run("verify", f"disk@{ids[5]}", "--data")
    said = program.run("point", "expire", f"disk@{ids[5]}", f"disk@{ids[4]}", "--yes", code=2).stderr
    assert f"no other point of the resource is verified: disk@{ids[5][:8]}" in said
    assert "--even-last" in said
    assert len(program.json("points")["points"]) == 6
    program.run("verify", f"disk@{ids[0]}", "--data")
    program.run("point", "expire", f"disk@{ids[5]}", "--yes")
    every = [f"disk@{one}" for one in ids[:5]]
    assert "all that is left" in program.run("point", "expire", *every, "--yes", code=2).stderr
    assert len(program.json("point", "expire", *every, "--even-last", "--yes")["expired"]) == 5
    assert program.json("points")["points"] == []


def test_a_point_that_somebody_took_away(program: Program, vault: Path, ids: list[str], tmp_path: Path) -> None:
    """Its object is moved out of the vault: everything says so, nothing that it needs goes, and it is whole when it is back."""
    (place,) = vault.glob(f"points/*/{ids[5]}")
    was = place.stat()
    for how in ("moved", "a directory"):
        place.rename(tmp_path / "kept")
        if how == "a directory":
            place.mkdir()
        assert "a point is gone" in program.run("status", code=4).stdout
        assert ids[5] in program.run("verify", code=4).stdout
        refused = program.run("restore", "disk@latest", "--to", tmp_path / "no", code=4).stderr
        assert f"disk@{ids[4][:8]}" in refused
        assert f"point expire @{ids[5][:8]}" in program.run("vault", "prune", code=4).stderr
        program.run("restore", f"disk@{ids[4]}", "--to", tmp_path / f"before {how}")
        assert (tmp_path / f"before {how}").read_bytes() == b"4" * 5000
        if how == "a directory":
            place.rmdir()
        (tmp_path / "kept").rename(place)
        assert place.stat().st_ino == was.st_ino
        program.run("verify")
        program.run("status")
        program.run("restore", "disk@latest", "--to", tmp_path / f"whole {how}")
        assert (tmp_path / f"whole {how}").read_bytes() == b"5" * 5000
    place.unlink()
    program.run("verify", code=4)
    program.run("point", "expire", f"@{ids[5][:8]}", "--yes")
    program.run("status")
    program.run("vault", "prune")
    program.run("verify", "--data")
    program.run("restore", "disk@latest", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"4" * 5000
