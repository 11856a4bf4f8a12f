"""The guest that other tests run in is what they take it for."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from safehold.testing.guest import Guest, GuestError, start_guest
from safehold.testing.kernel import debian_kernel


def test_the_hosts_programs_under_another_kernel(guest: Guest) -> None:
    assert guest.run("uname -r").stdout.strip() != platform.release()
    assert guest.run(f"{Path(sys.executable).parent}/safehold --version").stdout.startswith("safehold ")
    guest.run("modprobe -a nbd raid0 dm-mod xfs loop fuse; test -b /dev/nbd0")


def test_what_is_written_stays_in_the_guest(guest: Guest, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.write_text("host")
    guest.run(f"test $(cat {seen}) = host; echo guest > {seen}; test $(cat {seen}) = guest")
    assert seen.read_text() == "host"


def test_files_go_in_and_out(guest: Guest) -> None:
    (guest.share / "in").write_bytes(bytes(range(256)) * 5000)
    guest.run("cp /share/in /run/kept; mv /run/kept /share/out")
    assert (guest.share / "out").read_bytes() == bytes(range(256)) * 5000


def test_a_script_that_fails_is_shown_with_what_it_said(guest: Guest) -> None:
    with pytest.raises(GuestError, match="exit code 3, not 0") as caught:
        guest.run("echo told; echo complained >&2; exit 3")
    assert "told" in str(caught.value)
    assert "complained" in str(caught.value)
    with pytest.raises(GuestError, match="exit code 1, not 0"):
        guest.run("false; true")
    assert guest.run("exit 7", code=None).code == 7


def test_disks_and_the_clock_and_the_end_of_patience(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    with start_guest(tmp_path / "guest", [disk]) as guest:
        guest.run("date -s 2031-02-03T04:05:06; printf marked | dd of=/dev/vda conv=fsync status=none")
        assert guest.run("date +%F").stdout.strip() == "2031-02-03"
        with pytest.raises(GuestError, match=r"no answer within 1 s"):
            guest.run("sleep 600", seconds=1)
    assert disk.read_bytes()[:6] == b"marked"


def test_modules_come_after_what_they_need() -> None:
    names = [path.stem for path in debian_kernel().in_order(["xfs", "raid0"])]
    assert names.index("libcrc32c") < names.index("xfs")
    assert names.index("md-mod") < names.index("raid0")
    with pytest.raises(RuntimeError, match="no module sorcery"):
        debian_kernel().in_order(["sorcery"])
