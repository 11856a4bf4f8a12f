"""File systems on several devices, of each kind that the kernel has: a bracket around one of those would promise what an image of it is not."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.linux import members
from safehold.adapters.linux.stack import backing_file, disks, roots
from safehold.compose.paths import Paths
from safehold.compose.volume_brackets import Served, VolumeBrackets, find_brackets
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.testing.program import Program
from tests.mounts import loop_device

KINDS = {
    "btrfs": (["mkfs.btrfs -q -f -d single -m raid1 {a} {b}"], "defaults"),
    "ext4": (["mke2fs -q -F -O journal_dev {b}", "mkfs.ext4 -q -F -J device={b} {a}"], "defaults"),
    "xfs": (["mkfs.xfs -q -l logdev={b},size=64m {a}"], "logdev={b}"),
}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """Where it is mounted, and its devices."""
    making, options = KINDS[request.param]
    where = tmp_path / "on"
    where.mkdir()
    with contextlib.ExitStack() as stack:
        devices = []
        for name in "ab":
            with (tmp_path / name).open("wb") as file:
                file.truncate(320 << 20)
            devices.append(stack.enter_context(loop_device(tmp_path / name)))
        a, b = devices
        for command in making:
            subprocess.run(command.format(a=a, b=b).split(), check=True, capture_output=True)
        subprocess.run(["mount", "-o", options.format(a=a, b=b), a, where], check=True)
        stack.callback(subprocess.run, ["umount", where], check=True)
        yield where, a, b


def served(tmp_path: Path, *devices: str) -> Served:
    """Volumes that go by the names of their devices."""
    return Served({one: one for one in devices}, [str(tmp_path / "v")], lambda name: set(), devices)


def test_all_of_them_are_seen(pair: tuple[Path, str, str], program: Program, vault: Path, tmp_path: Path) -> None:
    where, a, b = pair
    assert set(roots(str(where)).values()) == {a, b}
    assert len(disks(str(where))) == 2
    assert backing_file(str(where)) is None
    for image in (a, tmp_path / "a"):
        refused = program.run("backup", image, "--bracket", f"readonly:{where}", "--downtime", "1m", code=2)
        assert "not what is backed up" in refused.stderr


def test_a_bracket_needs_the_snapshot_to_have_all(pair: tuple[Path, str, str], tmp_path: Path) -> None:
    where, a, b = pair
    paths = Paths(tmp_path / "config", tmp_path / "state", tmp_path / "cache", tmp_path / "run")

    def ask(*devices: str, bracket: str = f"fsfreeze:{where}") -> VolumeBrackets:
        return find_brackets([bracket], served(tmp_path, *devices), paths, Context())

    found = ask(a, b)
    assert (found.covers, found.loose) == ((frozenset({a, b}),), {})
    hook = ask(a, b, bracket="hook:/bin/true")
    assert (hook.covers, hook.loose) == ((frozenset({a, b}),), dict.fromkeys((a, b), f"what is mounted on {where}"))
    with pytest.raises(UsageError, match=f"lies on {b} too"):
        ask(a)
    with pytest.raises(UsageError, match=f"lies on {a} too"):
        ask(b)


@pytest.mark.parametrize("pair", ["btrfs", "ext4"], indirect=True)
def test_what_cannot_be_told_is_refused(
    pair: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unseen(*_: object) -> Iterator[str]:
        raise PermissionError(1, "not permitted")

    where, *devices = pair
    for name in ("_btrfs", "_journal"):
        monkeypatch.setattr(members, name, unseen)
    paths = Paths(tmp_path / "config", tmp_path / "state", tmp_path / "cache", tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be told"):
        find_brackets([f"fsfreeze:{where}"], served(tmp_path, *devices), paths, Context())
