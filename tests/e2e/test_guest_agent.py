"""A volume as the disk of a virtual machine, frozen by the real agent in it; judged by xfs_repair and checksums in a second machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safehold.testing.guest import Guest, start_guest
from safehold.testing.program import Program

AGENT = """
modprobe xfs
mkdir -p /run/data
printf '#!/bin/sh\\necho "$1" >> /share/hooked\\n' > /run/hook
chmod +x /run/hook
qemu-ga --daemonize --fsfreeze-hook=/run/hook --method virtio-serial --path /dev/vport*p2 --pidfile /run/agent.pid --statedir /run
"""

LOAD = """
mkfs.xfs -q /dev/vda
mount /dev/vda /run/data
(
    for number in $(seq 2000); do
        dd if=/dev/urandom of=/run/data/$number bs=96k count=1 conv=fsync status=none
        (cd /run/data; sha256sum $number) >> /share/acknowledged
        if [ -e /share/enough ]; then break; fi
    done
    touch /share/ended
) >/dev/null 2>&1 &
until [ "$(cat /share/acknowledged 2>/dev/null | wc -l)" -ge 3 ]; do sleep 0.1; done
"""

JUDGE = """
modprobe xfs
mkdir -p /run/data
mount -o ro /dev/vda /run/data
(cd /run/data; sha256sum --quiet -c /share/before)
(cd /run/data; sha256sum -c /share/acknowledged 2>/dev/null || true) > /run/judged
# What came later is there up to some file, and then no more.
awk '/OK$/ { if (missing) exit 1; next } { missing = 1 } END { exit !missing }' /run/judged
umount /run/data
xfs_repair -n /dev/vda
"""


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A directory whose name leaves room for sockets."""
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as place:
        yield Path(place)


@pytest.fixture
def program(short: Path) -> Iterator[Program]:
    made = Program(short / "home")
    made.run("vault", "init", short / "vault", "--kit-file", short / "kit")
    yield made
    made.run("volume", "stop")


@contextmanager
def machine(program: Program, short: Path, volume: str) -> Iterator[Guest]:
    """One whose disk is a volume."""
    disk = f"nbd:unix:{short}/home/run/volumes.nbd:exportname={volume}"
    with (
        tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as place,
        start_guest(Path(place), [disk], short / "agent") as guest,
    ):
        yield guest


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_guest_is_frozen_for_the_moment_of_a_snapshot(program: Program, short: Path) -> None:
    program.run("volume", "create", "data", "--size", "320M")
    with machine(program, short, "data") as guest:
        guest.run(AGENT + LOAD)
        # Two snapshots: what the first let go of can be frozen again.
        for _ in range(2):
            before = lines(guest.share / "acknowledged")
            done = program.run(
                "volume",
                "snapshot",
                "data",
                "--require",
                "filesystem",
                "--bracket",
                f"guest-agent:{short}/agent",
                "--wait",
            )
        assert "filesystem" in done.stdout
        program.run("volume", "create", "other", "--size", "1M")
        refused = program.run("volume", "snapshot", "other", "--bracket", f"guest-agent:{short}/agent", code=2)
        assert "that guest does not have the disk" in refused.stderr
        count = len(lines(guest.share / "acknowledged"))
        wait_until(lambda: len(lines(guest.share / "acknowledged")) > count + 1)
        (guest.share / "enough").touch()
        wait_until((guest.share / "ended").exists)
        assert lines(guest.share / "hooked") == ["freeze", "thaw"] * 2, "the agent ran the guest's own hook"
        acknowledged = lines(guest.share / "acknowledged")
    assert "guest-agent:" in program.run("point", "show", "data@latest").stdout
    program.run("restore", "data@latest", "--to", "volume:data2")
    with machine(program, short, "data2") as guest:
        (guest.share / "before").write_text("\n".join(before) + "\n")
        (guest.share / "acknowledged").write_text("\n".join(acknowledged) + "\n")
        guest.run(JUDGE)


def test_a_guest_goes_on_when_what_froze_it_is_killed(program: Program, short: Path) -> None:
    """The proof is a write in the guest."""
    hook = short / "hook"
    hook.write_text(f'#!/bin/sh\n[ "$1" = thaw ] || {{ touch {short}/frozen; sleep 600; }}\n')
    hook.chmod(0o755)
    program.run("volume", "create", "data", "--size", "320M")
    with machine(program, short, "data") as guest:
        guest.run(AGENT + LOAD)
        command = ["volume", "snapshot", "data", "--bracket", f"guest-agent:{short}/agent", "--bracket", f"hook:{hook}"]
        with program.start(*command) as killed:
            wait_until((short / "frozen").exists)
            count = len(lines(guest.share / "acknowledged"))
            time.sleep(2)
            assert len(lines(guest.share / "acknowledged")) <= count + 1, "it was not frozen"
            killed.kill()
        wait_until(lambda: len(lines(guest.share / "acknowledged")) > count + 3)
        program.run("volume", "snapshot", "data", "--bracket", f"guest-agent:{short}/agent", "--wait")
        (guest.share / "enough").touch()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
