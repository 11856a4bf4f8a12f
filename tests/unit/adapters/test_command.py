"""How a program that is a source ends, and what is told of it."""

from __future__ import annotations

import os
import time
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("printf 'first\\nlast  \\n \\n' >&2", "; it said: last"),
        ("printf 'half a line' >&2", "; it said: half a line"),
        ("printf 'bad \\033[2J\\377' >&2", r"; it said: bad \x1b[2J\xff"),
        ("printf '%0100000d' 7 >&2", f"; it said: {'7':0>300}"),
        (":", ""),
    ],
)
def test_its_last_words_are_told_and_passed_on(
    words: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "dump"
    script.write_text(f"#!/bin/sh\necho data\n{words}\nexit 3\n")
    script.chmod(0o700)
    with pytest.raises(SourceError) as failed:
        read_all(str(script))
    assert failed.value.what == f"the command failed with exit code 3: nothing that it wrote is kept{told}"
    assert (len(capfd.readouterr().err) > 5) == bool(told)


def test_who_holds_its_standard_error_open_is_not_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "dump"
    script.write_text("#!/bin/sh\necho data\nsetsid sleep 20 >/dev/null &\necho why >&2\nexit 3\n")
    script.chmod(0o700)
    began = time.monotonic()
    with pytest.raises(SourceError, match="it said: why"):
        read_all(str(script))
    assert time.monotonic() - began < 10
