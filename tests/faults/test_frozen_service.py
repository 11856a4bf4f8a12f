"""Under systemd the watchdog is a unit of its own: what ends a service, with all of its control group, does not end the watchdog."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import mounted
from tests.systemd import Systemd, systemd

OWNER = Path(__file__).with_name("owner.py")
PATIENCE = 60


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "ext4") as place:
        yield place


@pytest.fixture
def manager(where: Path, tmp_path: Path) -> Iterator[Systemd]:
    with systemd(tmp_path) as running:
        yield running


@pytest.mark.parametrize("end", [("kill", "--signal=KILL"), ("stop",)], ids=["kill", "stop"])
def test_a_service_that_is_ended_whole(manager: Systemd, where: Path, tmp_path: Path, end: tuple[str, ...]) -> None:
    said, log = tmp_path / "said", tmp_path / "log"
    service = ["systemd-run", "--quiet", "--unit=backup", f"--property=StandardOutput=file:{said}"]
    started = manager.run(*service, sys.executable, OWNER, where, "1000", log, "stay")
    assert started.returncode == 0, started.stderr
    until = time.monotonic() + PATIENCE
    while not (said.exists() and said.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert said.read_text() == "held\n"
    units = manager.run("systemctl", "list-units", "--plain", "--no-legend", "safehold-watchdog-*").stdout.splitlines()
    assert [unit.split()[2:4] for unit in units] == [["active", "running"]]

    manager.run("systemctl", end[0], "backup", *end[1:])
    subprocess.run(["sh", "-c", 'echo written > "$0/file"', where], check=True, timeout=PATIENCE)
    # What it was armed for, and what came of it.
    while len(lines := log.read_text().splitlines()) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    report = json.loads(lines[1])
    assert report["by"] in {"hangup", "death"}
    assert report["steps"][0]["state"] == "released"
