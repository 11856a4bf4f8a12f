"""A freeze is always released by something else than the process that froze. The proof is a write by a third process that ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safehold.quiesce.orphans import may_be_held
from tests.groups import ControlGroup
from tests.mounts import mounted, thaw

OWNER = Path(__file__).with_name("owner.py")
DEADLINE, FAR = 0.5, 1000.0
"""Seconds until the watchdog lets go by itself; FAR is never reached here."""
PATIENCE = 60
"""Seconds until a write counts as stuck: many times what a busy machine needs."""
ROUNDS = 60
"""Of each of five faults: 300 freezes."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """File systems to freeze."""
    with contextlib.ExitStack() as stack:
        base = tmp_path_factory.mktemp("frozen")
        yield [stack.enter_context(mounted(base / f"{n}", kind)) for n, kind in enumerate(["ext4", "xfs"] * 3)]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A log on a disk on which not one byte more has room."""
    with mounted(tmp_path / "full", "ext4", size=2 << 20) as where:
        log = where / "log"
        log.touch()
        with (where / "filler").open("wb", buffering=0) as file:
            # What the file system had set aside in case, it gives back when all is on disk.
            while _write_all(file):
                os.fsync(file.fileno())
        yield log


def _write_all(file: io.FileIO) -> int:
    """Bytes that there was room for."""
    began = file.tell()
    with contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return file.tell() - began


def start(
    where: Path, log: Path, fate: str, *more: str, deadline: float = DEADLINE, group: ControlGroup | None = None
) -> subprocess.Popen[str]:
    """An owner that says that it holds. On a busy machine the deadline can come before that; then another one tries."""
    for _ in range(50):
        owner = subprocess.Popen(
            [sys.executable, OWNER, where, str(deadline), log, fate, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=group.join if group else None,
        )
        assert owner.stdout is not None
        first = owner.stdout.readline()
        if first == "held\n":
            return owner
        _, errors = owner.communicate()
        assert "let go after" in first or "thawed by somebody" in first, f"{first}{errors}"
    raise AssertionError("never in time")


def can_write(where: Path, seconds: float) -> bool:
    """Whether a third process can write within that time."""
    with subprocess.Popen(["sh", "-c", 'echo written > "$0/file"; sync "$0/file"', where]) as writer:
        try:
            return writer.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            # It ends when the file system is thawed, and not before, not even by a signal.
            while writer.poll() is None:
                thaw(where)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    writer.wait(0.1)


def killed(where: Path, log: Path, deadline: float) -> None:
    with start(where, log, "wait", deadline=deadline) as owner:
        owner.kill()
        assert can_write(where, PATIENCE)


def stopped(where: Path, log: Path, deadline: float) -> None:
    with start(where, log, "wait") as owner:
        owner.send_signal(signal.SIGSTOP)
        try:
            assert can_write(where, PATIENCE)
        finally:
            owner.send_signal(signal.SIGCONT)
        said, errors = owner.communicate("\n")
        assert "let go after" in json.loads(said)["failed"], f"an owner that comes late learns of it: {said}{errors}"


def out_of_memory(where: Path, log: Path, deadline: float) -> None:
    with ControlGroup.memory(96 << 20) as group, start(where, log, "grow", deadline=deadline, group=group) as owner:
        assert can_write(where, PATIENCE)
        owner.communicate()
        assert owner.returncode == -signal.SIGKILL, "memory ran out"


def group_killed(where: Path, log: Path, deadline: float) -> None:
    with ControlGroup.plain() as group, start(where, log, "wait", deadline=deadline, group=group) as owner:
        group.kill()
        assert can_write(where, PATIENCE)
        assert owner.wait(PATIENCE) == -signal.SIGKILL


Fault = Callable[[Path, Path, float], None]


def each(places: list[Path], fault: Fault, log: Callable[[Path], Path]) -> None:
    """`ROUNDS` times, on all file systems at once, by turns with a deadline that is near and one that plays no part."""
    share = ROUNDS // len(places)

    def work(where: Path) -> None:
        for n in range(share):
            fault(where, log(where), FAR if n % 2 else DEADLINE)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(work, places))


@pytest.mark.parametrize("fault", [killed, stopped, out_of_memory, group_killed], ids=lambda f: f.__name__)
def test_a_freeze_ends_whatever_happens_to_its_owner(places: list[Path], tmp_path: Path, fault: Fault) -> None:
    each(places, fault, lambda where: tmp_path / f"log-{where.parent.name}")
    lines = [json.loads(line) for path in tmp_path.glob("log-*") for line in path.read_text().splitlines()]
    reports = [line for line in lines if "steps" in line]
    released = [report["by"] for report in reports if [step["state"] for step in report["steps"]] == ["released"]]
    assert len(released) >= ROUNDS - len(places), "the last ones may still be on their way to the log"
    expected = {"deadline"} if fault is stopped else {"deadline", "hangup", "death"}
    assert set(released) <= expected
    assert fault is stopped or set(released) & {"hangup", "death"}


def test_a_freeze_ends_with_the_disk_of_the_log_full(places: list[Path], full: Path) -> None:
    each(places, killed, lambda where: full)
    assert full.stat().st_size == 0, "there was no room for a line"


def test_what_is_left_held_is_known_from_the_log(places: list[Path], tmp_path: Path) -> None:
    """Whoever froze and his watchdog were killed both."""
    where, log = places[0], tmp_path / "log"
    assert may_be_held(log) == []
    with start(where, log, "wait", deadline=FAR) as owner:
        watchdog = watchdog_of(where)
        assert may_be_held(log) == [], "the two are at it"
        os.kill(watchdog, signal.SIGKILL)
        owner.kill()
    assert not can_write(where, DEADLINE)
    assert may_be_held(log) == [f"thaw {where}"]
    thaw(where)
    assert may_be_held(log) == [f"thaw {where}"], "nobody can ask the kernel"
    with start(where, log, "wait", deadline=FAR) as owner:
        said, _ = owner.communicate("\n")
    assert "failed" not in said
    assert can_write(where, PATIENCE)
    for _ in range(100):
        if may_be_held(log) == []:
            return
        time.sleep(0.05)
    raise AssertionError("it was let go of since")


def test_a_watchdog_that_does_nothing_is_found_out(places: list[Path], tmp_path: Path) -> None:
    """The proof above can fail: the same fault, and nobody who thaws but the test."""
    with start(places[0], tmp_path / "log", "wait", "broken") as owner:
        owner.kill()
        assert not can_write(places[0], 4 * DEADLINE)
    assert can_write(places[0], PATIENCE)


def test_an_owner_without_its_watchdog_thaws_and_fails(places: list[Path], tmp_path: Path) -> None:
    with start(places[2], tmp_path / "log", "wait", deadline=FAR) as owner:
        watchdog = watchdog_of(places[2])
        os.kill(watchdog, signal.SIGKILL)
        said, _ = owner.communicate("\n")
    assert "does not answer" in json.loads(said)["failed"]
    assert can_write(places[2], PATIENCE)


def test_a_watchdog_that_is_told_to_end_lets_go_first(places: list[Path], tmp_path: Path) -> None:
    with start(places[3], tmp_path / "log", "wait", deadline=FAR) as owner:
        os.kill(watchdog_of(places[3]), signal.SIGTERM)
        assert can_write(places[3], PATIENCE)
        said, _ = owner.communicate("\n")
    assert "let go" in json.loads(said)["failed"]


def test_nothing_is_frozen_where_the_watchdog_cannot_get_away(places: list[Path], tmp_path: Path) -> None:
    """As in a container: a kill of the group would take the watchdog along."""
    with ControlGroup.plain() as group:
        script = 'mount -o remount,bind,ro "$0" && exec "$@"'
        owner = [sys.executable, OWNER, places[4], "60", tmp_path / "log", "wait"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, group.path.parent, *owner],
            input="\n",
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=group.join,
        )
    assert "cannot leave the control group" in json.loads(done.stdout)["failed"]
    assert can_write(places[4], PATIENCE)


def watchdog_of(where: Path) -> int:
    """The watchdog that holds that mount point."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (entry / "cmdline").read_bytes()
            if b"safehold.watchdog" in program and any(
                os.readlink(fd) == str(where) for fd in (entry / "fd").iterdir()
            ):
                return int(entry.name)
    raise AssertionError("there is none")


def test_an_owner_in_time_keeps_its_capture(places: list[Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(places[1], log, "wait", deadline=FAR) as owner:
        said, _ = owner.communicate("\n")
    assert json.loads(said) == {"kept": [f"fsfreeze:{places[1]}"]}
    assert can_write(places[1], PATIENCE)
