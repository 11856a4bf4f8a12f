from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.e2e.hosts import Host, make_vault, new_host, take_vault


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed program with a home of its own."""
    return Program(tmp_path / "home")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `make_vault`."""
    place = tmp_path_factory.mktemp("made")
    make_vault(place)
    return place


@pytest.fixture
def vault(program: Program, made: Path, tmp_path: Path) -> Path:
    """A vault in a directory, the default of `program`, which opens it with a private key; its kit is in `kit.txt` beside it."""
    take_vault(program, made, tmp_path)
    return tmp_path / "vault"


@pytest.fixture
def passphrase_vault(program: Program, tmp_path: Path) -> Path:
    """A fresh vault with nothing but a passphrase and a kit, in `kit.txt` beside it, the default of `program`."""
    place = tmp_path / "vault"
    program.run("vault", "init", place, "--kit-file", tmp_path / "kit.txt")
    return place


@pytest.fixture
def passphrase_host() -> Iterator[Host]:
    """A machine whose volumes go to vaults with nothing but a passphrase."""
    with new_host() as host:
        yield host


@pytest.fixture
def host(made: Path) -> Iterator[Host]:
    """A machine with a vault, for volumes."""
    with new_host(made) as host:
        yield host
