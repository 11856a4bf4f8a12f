"""A vault that version 1 of the format was written into stays readable and writable."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.compat.contents import FIRST, SECOND

FIXTURE = Path(__file__).parent / "vault-v1.tar.xz"


@pytest.fixture
def past(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        # Debian's Python 3.11.2 does not know filters yet; later ones warn without.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path


@pytest.mark.parametrize("credential", ["passphrase", "kit"])
def test_everything_restores(past: Path, credential: str) -> None:
    program = Program(past / "home", {"SAFEHOLD_VAULT": str(past / "vault"), "SAFEHOLD_PASSPHRASE": "compat"})
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
    program = Program(past / "home", {"SAFEHOLD_VAULT": str(past / "vault"), "SAFEHOLD_PASSPHRASE": "compat"})
    (past / "disk.img").write_bytes(SECOND)
    done = program.json("backup", past / "disk.img", "--adopt")["points"][0]
    assert done["new"] == 0, "blocks of the past are found"
    program.run("backup", past / "disk.img", "--name", "web", "--writer", past / "writer.json")
    assert len(program.json("points")["points"]) == 5
    assert program.json("verify", "--data")["ok"]
