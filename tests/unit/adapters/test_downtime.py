"""File systems taken out of use, on mounts of every kind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.linux.downtime import ReadOnly, Unmount
from safehold.adapters.linux.mounts import mount_of
from safehold.model.errors import UsageError
from tests.mounts import mounted

MS_RDONLY = 1


@pytest.fixture
def view(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system that is mounted writable in one place, and read-only in another."""
    with mounted(tmp_path / "disk", "ext4") as where:
        seen = tmp_path / "seen"
        seen.mkdir()
        subprocess.run(["mount", "--bind", where, seen], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", seen], check=True)
            yield where, seen
        finally:
            subprocess.run(["umount", seen], check=True)


@pytest.mark.parametrize("kind", [ReadOnly, Unmount])
def test_a_read_only_view_of_a_writable_file_system(
    view: tuple[Path, Path], kind: type[ReadOnly] | type[Unmount]
) -> None:
    """Given back as it was mounted there, all of the file system would be read-only."""
    where, seen = view
    with pytest.raises(UsageError, match="read-only there alone") as refused:
        kind(str(seen))
    assert refused.value.remedy == f"give {where}, where it is mounted writable"
    assert kind(str(where)).undo()["flags"] & MS_RDONLY == 0


def test_the_flags_of_a_read_only_view_leave_the_file_system_writable(view: tuple[Path, Path]) -> None:
    where, seen = view
    assert mount_of(str(seen)).read_only_view
    assert mount_of(str(seen)).flags & MS_RDONLY == 0
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    assert not mount_of(str(seen)).read_only_view
    assert mount_of(str(seen)).flags & MS_RDONLY
