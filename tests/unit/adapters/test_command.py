"""How a program that is a source ends, and what is told of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.files.command import CommandSource
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import SourceError


def read_all(command: str) -> bytes:
    source = CommandSource()
    ref = source.resolve(f"command:{command}")
    assert ref is not None
    buffer = bytearray(65536)
    with source.capture(ref, Consistency.NONE, Context()) as capture:
        parts = []
        while got := capture.content.read_some(memoryview(buffer)):
            parts.append(bytes(buffer[:got]))
    return b"".join(parts)


def test_all_of_it_comes() -> None:
    assert read_all("seq 100000") == "".join(f"{n}\n" for n in range(1, 100_001)).encode()


@pytest.fixture(params=[False, True], ids=["ours", "another user's"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program that became another user's, as sudo does, may not be sent a signal."""
    if request.param:

        def refuse(group: int, number: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "killpg", refuse)
    yield
    assert not any(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()), "no child is left"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'echo half; exit 3'", "failed with exit code 3"),
        ("sh -c 'echo half; kill -9 $$'", "was ended by SIGKILL"),
        ("sh -c 'echo half; kill -40 $$'", "was ended by signal 40"),
        ("true", "wrote nothing"),
        ("/nowhere/dump --password=secret", "cannot be started"),
    ],
)
@pytest.mark.usefixtures("whose")
def test_what_is_told_of_a_bad_end(command: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as told:
        read_all(command)
    assert "secret" not in str(told.value)
