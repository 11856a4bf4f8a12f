"""What LVM's programs can answer and a healthy LVM does not: programs in their place say it. How real ones behave is tested in a guest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safehold.adapters.linux.lvm import LogicalVolume, LvmSnapshot, is_logical_volume, logical_volume, lvm_snapshot
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, FailedError

EXTENT = 4 << 20
Says = Callable[[str, str], None]


@dataclass
class Told:
    """A Progress that keeps what it is told."""

    told: list[str] = field(default_factory=list)

    def start(self, task: str, total: int | None) -> None: ...
    def advance(self, amount: int) -> None: ...
    def done(self) -> None: ...

    def note(self, text: str) -> None:
        self.told.append(text)

    def warn(self, text: str) -> None:
        self.told.append(text)


def volume(size: int = 100 * EXTENT, free: int = 50 * EXTENT, thin: bool = False) -> LogicalVolume:
    return LogicalVolume("pool", "data", size, thin, free, EXTENT)


def row(name: str, **more: str) -> dict[str, str]:
    fields = {
        "vg_name": "pool",
        "lv_name": name,
        "lv_kernel_major": "-1",
        "lv_kernel_minor": "-1",
        "lv_size": str(100 * EXTENT),
        "segtype": "linear",
        "origin": "",
        "lv_tags": "",
        "lv_attr": "-wi-ao----",
        "vg_free": str(50 * EXTENT),
        "vg_extent_size": str(EXTENT),
        "data_percent": "",
    }
    return fields | more


def report(*rows: dict[str, str]) -> str:
    return f"echo {json.dumps(json.dumps({'report': [{'lv': list(rows)}]}))}"


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Puts a script in the place of one of LVM's programs; each notes its arguments in `calls`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def says(name: str, script: str) -> None:
        program = programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls\n{script}\n')
        program.chmod(0o755)

    for name in ("lvs", "lvcreate", "lvremove"):
        says(name, report() if name == "lvs" else "")
    return says


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedError, match="lvs cannot be run") as caught:
        logical_volume("/dev/null")
    assert "install lvm2" in caught.value.remedy


@pytest.mark.parametrize("said", ["echo rubbish", "true", "echo '[1]'", """echo '{"report": []}'"""])
def test_no_report(says: Says, said: str) -> None:
    says("lvs", said)
    with pytest.raises(FailedError, match="no report"):
        logical_volume("/dev/null")


def test_unknown_to_lvm(says: Says) -> None:
    says("lvs", report(row("other", lv_kernel_major="253", lv_kernel_minor="7")))
    with pytest.raises(FailedError, match="does not know this device"):
        logical_volume("/dev/null")
    assert not is_logical_volume("/dev/null")


def test_the_programs_reason_is_shown(says: Says) -> None:
    says("lvcreate", "echo 'Some warning.' >&2; echo '  Volume group is exported.' >&2; exit 5")
    with pytest.raises(FailedError, match=r"lvcreate: Volume group is exported\."), lvm_snapshot(volume(), Context()):
        pytest.fail("there is no snapshot")


@pytest.mark.parametrize(
    ("size", "free", "room"),
    [(100, 50, 25), (100, 3, 3), (1, 9, 1), (101, 50, 26)],
    ids=["a quarter", "what is left", "one extent at least", "whole extents"],
)
def test_room(says: Says, tmp_path: Path, size: int, free: int, room: int) -> None:
    with lvm_snapshot(volume(size * EXTENT, free * EXTENT + 5), Context()) as snapshot:
        assert snapshot.room == room * EXTENT
    made = next(line for line in calls(tmp_path) if line.startswith("lvcreate"))
    assert f"--size {room * EXTENT}b " in made
    assert calls(tmp_path)[-1] == f"lvremove --quiet --yes --force pool/{Path(snapshot.path).name}"


def test_no_room(says: Says, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="no free space"), lvm_snapshot(volume(free=EXTENT - 1), Context()):
        pytest.fail("there is no snapshot")
    assert not any(line.startswith("lvcreate") for line in calls(tmp_path))


def test_a_thin_one_takes_no_room(says: Says, tmp_path: Path) -> None:
    with lvm_snapshot(volume(free=0, thin=True), Context()) as snapshot:
        assert snapshot.room == 0
    assert not any("--size" in line for line in calls(tmp_path))


def test_one_that_cannot_be_removed_does_not_cost_the_backup(says: Says) -> None:
    told = Told()
    says("lvremove", "echo 'Logical volume in use.' >&2; exit 5")
    with lvm_snapshot(volume(), Context(progress=told)):
        pass
    assert len(told.told) == 1
    assert "is left behind" in told.told[0]
    assert "in use" in told.told[0]


def test_leftovers(says: Says, tmp_path: Path) -> None:
    made: list[str] = []
    with lvm_snapshot(volume(), Context()):
        made = [line for line in calls(tmp_path) if line.startswith("lvcreate")]
    mine = next(word for word in made[0].split() if word.startswith("safehold.owner="))
    machine, boot, pid, started = mine.split(".", 1)[1].removeprefix("owner=").split(".")
    gone = [
        f"{machine}.{boot}.{pid}.{int(started) + 1}",
        f"{machine}.another-boot.{pid}.{started}",
        f"{machine}.{boot}.4194305.{started}",
    ]
    kept = [f"{machine}.{boot}.{pid}.{started}", f"elsewhere.{boot}.4194305.{started}"]
    (tmp_path / "calls").unlink()
    rows = [row(f"gone{n}", origin="data", lv_tags=f"x,safehold.owner={owner}") for n, owner in enumerate(gone)]
    rows += [row(f"kept{n}", origin="data", lv_tags=f"safehold.owner={owner}") for n, owner in enumerate(kept)]
    rows += [row("others", origin="more", lv_tags=f"safehold.owner={gone[0]}"), row("plain", origin="data")]
    says("lvs", report(*rows))
    with lvm_snapshot(volume(), Context()):
        removed = [line.rpartition(" ")[2] for line in calls(tmp_path) if line.startswith("lvremove")]
    assert removed == ["pool/gone0", "pool/gone1", "pool/gone2"]


@pytest.mark.parametrize(
    "found",
    [
        [],
        [row("s", lv_attr="swi-I-s---")],
        [row("s", lv_attr="swi-a-s---", data_percent="100.00")],
        [row("s", data_percent="")],
    ],
    ids=["gone", "invalid", "full", "unknown"],
)
def test_a_lost_instant(says: Says, found: list[dict[str, str]]) -> None:
    says("lvs", report(*found))
    with pytest.raises(ConsistencyError, match=r"has room for \(4 MiB\)"):
        LvmSnapshot("pool", "s", EXTENT).check()


def test_a_sound_instant(says: Says) -> None:
    says("lvs", report(row("s", lv_attr="swi-a-s---", data_percent="99.99")))
    LvmSnapshot("pool", "s", EXTENT).check()
    says("lvs", report(row("s", lv_attr="Vri-a-tz--", data_percent="")))
    LvmSnapshot("pool", "s", 0).check()
