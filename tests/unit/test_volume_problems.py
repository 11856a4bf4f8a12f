"""What `status` says of a volume service that answers badly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from safehold.compose import volume_client
from safehold.compose.paths import Paths
from safehold.compose.volume_client import VolumeClient
from safehold.model.context import Context
from safehold.model.errors import FailedError
from safehold.wire.control import ControlServer


def problems(root: Path, answer: Callable[[Mapping[str, object]], Mapping[str, object]]) -> list[str]:
    paths = Paths(root / "config", root / "state", root / "cache", root / "run")
    paths.volume_control.parent.mkdir(parents=True)
    server = ControlServer(paths.volume_control, answer, lambda error: None)
    try:
        return VolumeClient(paths, {}, Context()).problems()
    finally:
        server.close()


def test_a_service_that_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_client, "_LOOK", 0.1)
    asked = threading.Event()

    def answer(order: Mapping[str, object]) -> Mapping[str, object]:
        asked.wait(0.5)
        return {"result": {}}

    (problem,) = problems(tmp_path, answer)
    assert "volumes cannot be looked at" in problem


def test_an_answer_that_is_too_long(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, lambda order: {"result": "x" * (5 << 20)})
    assert "volumes cannot be looked at" in problem


def test_a_service_that_cannot(tmp_path: Path) -> None:
    def answer(order: Mapping[str, object]) -> Mapping[str, object]:
        raise FailedError("no room")

    (problem,) = problems(tmp_path, answer)
    assert "no room" in problem
