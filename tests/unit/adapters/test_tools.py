"""What programs of this machine get that devices and mounts are made with."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from safehold.adapters.linux import lvm
from safehold.adapters.linux.attachment import run_tool
from safehold.adapters.linux.nbd_netlink import NbdDriver


def test_no_program_gets_what_opens_a_vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    for name in ("tool", "lvs", "modprobe"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nenv >> "{told}"\necho \'{{"report": [{{"lv": []}}]}}\'\n')
        program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SAFEHOLD_PASSPHRASE", "correct horse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the bucket")
    monkeypatch.setenv("LVM_SYSTEM_DIR", "/etc/elsewhere")
    run_tool(["tool"], "data")
    lvm._run(["lvs"], "data")
    exists = os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: path != "/sys/module/nbd" and exists(path))
    NbdDriver.load()
    text = told.read_text()
    assert text.count(f"PATH={tmp_path}") == 3
    assert "LVM_SYSTEM_DIR=/etc/elsewhere" in text, "where LVM is told to look is no secret"
    assert "SAFEHOLD" not in text
    assert "AWS_" not in text
