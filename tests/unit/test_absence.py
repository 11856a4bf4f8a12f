"""What is remembered of a time in which nobody served volumes, whatever becomes of the service and of its run directory."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from safehold.adapters.linux.attachment import RECONNECT, Attachment
from safehold.compose import absence
from safehold.compose.absence import Absences

DISK = Attachment("data", "/dev/loop0", made=7.0)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds)


def served(run: Path) -> None:
    """By somebody before, who had attached it then."""
    Absences(run).begin([])


def test_a_restart_is_none_and_a_long_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(tmp_path)
    Absences(tmp_path).begin([DISK])
    assert Absences(tmp_path).problem(DISK) == ""
    later(monkeypatch, RECONNECT + 5)
    Absences(tmp_path).begin([DISK])
    assert "nobody served /dev/loop0 for 35" in Absences(tmp_path).problem(DISK)
    Absences(tmp_path).begin([DISK])
    assert "for 35" in Absences(tmp_path).problem(DISK), "the next service knows, too"
    again = Attachment("data", "/dev/loop0", made=8.0)
    assert Absences(tmp_path).problem(again) == ""
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("left", ["", "rubbish", "nan", "1e99", None])
def test_a_sign_of_life_that_cannot_be_read_is_a_doubt(tmp_path: Path, left: str | None) -> None:
    served(tmp_path)
    alive = tmp_path / "volumes.alive"
    alive.unlink() if left is None else alive.write_text(left)
    Absences(tmp_path).begin([DISK])
    assert "nobody served /dev/loop0 for an unknown time" in Absences(tmp_path).problem(DISK)


def test_a_full_run_directory_loses_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(tmp_path)
    right = os.replace

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    later(monkeypatch, RECONNECT + 5)
    monkeypatch.setattr(os, "replace", full)
    Absences(tmp_path).begin([DISK])
    # There is room for signs of life only, and then for none.
    monkeypatch.setattr(os, "replace", lambda one, two: full(one, two) if "doubts" in str(two) else right(one, two))
    first = Absences(tmp_path)
    first.begin([DISK])
    first.beat()
    monkeypatch.setattr(os, "replace", right)
    Absences(tmp_path).begin([DISK])
    assert "for 35" in Absences(tmp_path).problem(DISK)


def test_one_that_had_no_room_at_first_notes_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(tmp_path)
    later(monkeypatch, RECONNECT + 5)
    service = Absences(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(absence, "keep", lambda path, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        service.begin([DISK])
    service.beat()
    assert "for 35" in Absences(tmp_path).problem(DISK)
