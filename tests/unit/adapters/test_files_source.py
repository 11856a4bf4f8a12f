"""How still a tree of files is while it is read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from safehold.adapters.files.source import FilesSource, MountMemory
from safehold.adapters.files.walk import Rules
from safehold.model.consistency import Consistency
from safehold.model.context import Context


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_made_writable_while_it_is_read(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], check=True)
    try:
        source = FilesSource(Rules(), MountMemory(tmp_path))
        ref = source.resolve(str(place))
        assert ref is not None
        with source.capture(ref, Consistency.FILESYSTEM, Context()) as capture:
            assert capture.achieved is Consistency.FILESYSTEM
            subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            assert capture.achieved is Consistency.NONE
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            assert capture.achieved is Consistency.NONE
    finally:
        subprocess.run(["umount", place], check=True)
