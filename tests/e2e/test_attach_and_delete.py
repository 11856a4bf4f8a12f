"""Devices of volumes that go while they are being made."""

from __future__ import annotations

import os
from typing import Any

import pytest

from safehold.adapters.linux import attach as devices
from safehold.adapters.linux import loop_device
from safehold.adapters.linux.attachment import run_tool
from safehold.compose.paths import find_paths
from safehold.compose.volume_client import VolumeClient
from safehold.model.context import Context
from safehold.model.errors import FailedError, UsageError
from tests.e2e.hosts import Host, run


def client_of(host: Host) -> VolumeClient:
    return VolumeClient(find_paths({"SAFEHOLD_HOME": str(host.home)}, os.geteuid()), os.environ, Context())


def test_a_volume_that_is_deleted_while_it_is_attached_is_gone_and_leaves_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "other"):
        host.program.run("volume", "create", name, "--size", "1M")
    client = client_of(host)
    right = devices.attach

    def late(*arguments: Any) -> Any:
        client.order("delete", name="data")
        return right(*arguments)

    monkeypatch.setattr(devices, "attach", late)
    with pytest.raises(UsageError, match="no such volume: data") as gone:
        client.attach("data")
    assert "there are other" in gone.value.remedy
    assert list((host.home / "run" / "attached").glob("data*")) == []
    monkeypatch.undo()
    host.program.run("volume", "delete", "data", "--undo")
    host.program.run("volume", "attach", "data")


def test_a_loop_device_that_is_not_made_leaves_neither_daemon_nor_file(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.program.run("volume", "create", "data", "--size", "1M")

    def fails(command: list[str], on: str, *keep: int) -> str:
        if command[0] == "losetup":
            raise FailedError("losetup failed", on=on)
        return run_tool(command, on, *keep)

    monkeypatch.setattr(loop_device, "run_tool", fails)
    place, turn = host.home / "run", os.open(host.home, os.O_RDONLY)
    with pytest.raises(FailedError, match="losetup failed"):
        loop_device.LoopDevice().make(place, host.socket, "data", turn)
    os.close(turn)
    assert not (place / "data.disk").exists()
    assert str(place / "data.disk") not in run("ps", "-eo", "args")
