from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from safehold.testing.guest import Guest, start_guest
from safehold.testing.seaweed import S3Server, start_s3
from tests.struck import pytest_terminal_summary, struck

__all__ = ["guest", "pytest_terminal_summary", "s3", "s3_server", "struck"]

# Whoever runs the tests may ignore it (nohup), which programs take over, and respect.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Nothing is asserted about time: a busy machine is no failure.
hypothesis.settings.register_profile("safehold", deadline=None)
hypothesis.settings.load_profile("safehold")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for each test process; tests take a prefix each."""
    with start_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of an empty place on the server; the environment makes clients find it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://vaults/{tmp_path.name.lower().replace('[', '-').replace(']', '')}-{id(tmp_path):x}"


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest for each test process; a test leaves neither mounts nor processes in it, and leaves its clock alone."""
    with start_guest(tmp_path_factory.mktemp("guest")) as running:
        yield running
