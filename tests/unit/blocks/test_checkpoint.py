"""The log of what changed in a volume's maps: torn at its end it is whole, damaged before that it is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.blocks.checkpoint import Change, ChangeKind, CheckpointLog
from safehold.model.errors import FailedError

CHANGES = [Change(ChangeKind.STATE, 0, number, 1, 3) for number in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = CheckpointLog.write_new(tmp_path / "ckpt.log", CHANGES[:2])
    log.append(CHANGES[2:4])
    log.append(CHANGES[4:])
    return tmp_path / "ckpt.log"


def test_a_torn_last_batch_was_never_promised(path: Path) -> None:
    whole = path.read_bytes()
    last = 20 + 2 * 24
    assert list(CheckpointLog.read(path)) == CHANGES
    for torn in range(1, last + 1):
        path.write_bytes(whole[:-torn])
        assert list(CheckpointLog.read(path)) == CHANGES[:4]
        # Its length is on the disk, and some of its content is not.
        path.write_bytes(whole[:-torn] + bytes(torn))
        assert len(list(CheckpointLog.read(path))) == 4 or not any(whole[-torn:])


def test_a_flipped_bit_before_the_end_is_damage(path: Path) -> None:
    """Wherever it is: also in the number that says where the next batch begins."""
    whole = path.read_bytes()
    last = len(whole) - 20 - 2 * 24
    for at in range(last):
        for bit in (1, 128):
            data = bytearray(whole)
            data[at] ^= bit
            path.write_bytes(data)
            with pytest.raises(FailedError, match="cannot be read"):
                CheckpointLog.read(path)
