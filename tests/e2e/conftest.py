from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.e2e.hosts import Host, new_host


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed program with a home of its own."""
    return Program(tmp_path / "home")


@pytest.fixture
def vault(program: Program, tmp_path: Path) -> Path:
    """A fresh vault in a directory, the default of `program`; its kit is in `kit.txt` beside it."""
    place = tmp_path / "vault"
    program.run("vault", "init", place, "--kit-file", tmp_path / "kit.txt")
    return place


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine with a vault, for volumes."""
    with new_host() as made:
        yield made
