"""Mounted disks that are backed up whole, judged by e2fsck, xfs_repair, cmp and the kernel's own table of mounts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.mounts import loop_device, mounted

CHECK = {"ext4": ["/usr/sbin/e2fsck", "-f", "-n"], "xfs": ["/usr/sbin/xfs_repair", "-n"], "btrfs": ["btrfs", "check"]}
OPTIONS = {"ext4": "noexec,nosuid,noatime,errors=continue", "xfs": "nodev,noquota", "btrfs": "relatime,compress=zstd:3"}


@pytest.fixture(params=list(CHECK))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, str]]:
    """A mounted file system: its kind, where it is mounted, and its device."""
    kind = request.param
    with mounted(tmp_path / "disk", kind, OPTIONS[kind]) as where:
        (where / "before").write_bytes(os.urandom(1 << 20))
        yield kind, where, entry(where).split()[0]


def entry(where: Path) -> str:
    """How the kernel tells of a mount."""
    command = ["findmnt", "--noheadings", "--output", "SOURCE,FSTYPE,OPTIONS,PROPAGATION", where]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("word", ["unmount", "readonly"])
def test_a_mounted_disk_comes_back_clean(
    program: Program, vault: Path, tmp_path: Path, disk: tuple[str, Path, str], word: str
) -> None:
    kind, where, device = disk
    before, bracket = entry(where), f"{word}:{where}"
    assert "mounted on" in program.run("backup", device, "--name", "data", code=7).stderr
    # What was read through the device once stays in its cache, and the file system writes past that.
    subprocess.run(["dd", f"if={device}", "of=/dev/null", "bs=1M"], check=True, capture_output=True)
    content = os.urandom(3 << 20)
    (where / "after").write_bytes(content)

    done = program.json("backup", device, "--name", "data", "--bracket", bracket, "--downtime", "5m")["points"][0]
    assert done["consistency"] == "filesystem"
    assert done["pause"] > 0
    assert entry(where) == before, "with the same options, flags and propagation"
    (where / "later").write_text("writable again")

    shown = program.json("point", "show", "data@latest")["members"][0]
    assert [(b["bracket"], b["consistency"]) for b in shown["brackets"]] == [(bracket, "filesystem")]
    first, last = shown["brackets"][0]["entering"], shown["brackets"][0]["leaving"]
    assert first[0] <= first[1] <= shown["taken"][0] <= shown["taken"][1] <= last[0] <= last[1]
    assert bracket in program.run("point", "show", "data@latest").stdout

    assert "mounted on" in program.run("restore", "data@latest", "--to", device, "--overwrite", code=1).stderr
    back = tmp_path / "back.img"
    program.run("restore", "data@latest", "--to", back)
    subprocess.run([*CHECK[kind], back], check=True, capture_output=True)
    again = tmp_path / "again"
    again.mkdir()
    # xfs refuses a second file system of the same name.
    options = "loop,ro,nouuid" if kind == "xfs" else "loop,ro"
    subprocess.run(["umount", where], check=True)
    subprocess.run(["mount", "-o", options, back, again], check=True)
    try:
        assert (again / "after").read_bytes() == content
        assert not (again / "later").exists()
    finally:
        subprocess.run(["umount", again], check=True)


def test_a_tree_on_a_file_system_made_read_only(program: Program, vault: Path, disk: tuple[str, Path, str]) -> None:
    _, where, _ = disk
    done = program.json("backup", where, "--name", "t", "--bracket", f"readonly:{where}", "--downtime", "5m")["points"][
        0
    ]
    assert done["consistency"] == "filesystem"
    (where / "later").write_text("writable again")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    with mounted(tmp_path / "disk", "ext4") as where:
        yield where, entry(where).split()[0]


def test_a_file_system_that_another_namespace_uses_too(program: Program, vault: Path, tmp_path: Path) -> None:
    image, where = tmp_path / "image", tmp_path / "on"
    image.write_bytes(bytes(16 << 20))
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with loop_device(image) as device:
        hidden = ["unshare", "--mount", "sh", "-c", f'mount {device} "{where}" && echo mounted && read -r _']
        with subprocess.Popen(hidden, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "mounted\n"
            subprocess.run(["mount", device, where], check=True)
            said = program.run(
                "backup", device, "--bracket", f"unmount:{where}", "--downtime", "5m", "--name", "d", code=7
            ).stderr
            assert "still in use elsewhere" in said
            assert entry(where), "mounted again"
            subprocess.run(["umount", where], check=True)
            other.communicate("\n")


def test_a_disk_in_use_is_left_as_it_is(program: Program, vault: Path, data: tuple[Path, str]) -> None:
    where, device = data
    down = ["--downtime", "5m", "--name", "data"]
    with (where / "open").open("wb") as file:
        for word in ("unmount", "readonly"):
            said = program.run("backup", device, "--bracket", f"{word}:{where}", *down, code=7).stderr
            assert "in use" in said
            assert "fuser" in said
        file.write(b"still mine")
        # Less was asked for, in so many words: it goes on, and says so.
        less = program.run("backup", device, "--bracket", f"unmount:{where}", *down, "--require", "none")
        assert "going on without brackets" in less.stderr
        assert "consistency: none" in less.stdout
    assert len(program.json("points")["points"]) == 1


def test_what_is_no_downtime_is_refused(program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str]) -> None:
    where, device = data

    def refused(*arguments: object) -> str:
        said = program.run("backup", "--name", "data", *arguments, code=2).stderr
        (where / "writable").write_text("at once")
        return said

    down = ("--downtime", "5m")
    assert "for the moment in which" in refused(device, "--bracket", f"fsfreeze:{where}", *down)
    assert "--downtime 30m" in refused(device, "--bracket", f"unmount:{where}")
    assert "a downtime of what" in refused(device, *down)
    assert "no such kind" in refused(device, "--bracket", f"snapshot:{where}", *down)
    assert "is not where a file system is mounted" in refused(device, "--bracket", f"unmount:{where}/lost+found", *down)
    assert "no such program" in refused(device, "--bracket", "hook:/no/such", *down)
    other = tmp_path / "other.img"
    other.write_bytes(bytes(1 << 20))
    assert "not what is backed up" in refused(other, "--bracket", f"unmount:{where}", *down)
    assert "nothing to read" in refused(where, "--bracket", f"unmount:{where}", *down)
    assert (
        "would back up data: unmount"
        in program.run("backup", device, "--name", "data", "--bracket", f"unmount:{where}", *down, "--dry-run").stdout
    )


def test_nothing_is_stopped_that_the_backup_needs(program: Program, tmp_path: Path, data: tuple[Path, str]) -> None:
    where, device = data
    program.run("vault", "init", where / "vault", "--kit-file", tmp_path / "kit.txt")
    said = program.run(
        "backup", device, "--bracket", f"readonly:{where}", "--downtime", "5m", "--name", "d", code=2
    ).stderr
    assert "the vault" in said
    # One further down: the cache in an image in that file system.
    with mounted(where / "deeper", "ext4", size=16 << 20) as inner:
        deeper = {"SAFEHOLD_HOME": str(inner), "SAFEHOLD_VAULT": str(tmp_path / "elsewhere")}
        program.run("vault", "init", tmp_path / "elsewhere", "--kit-file", tmp_path / "kit2.txt", **deeper)
        said = program.run(
            "backup", device, "--bracket", f"readonly:{where}", "--downtime", "5m", "--name", "d", code=2, **deeper
        ).stderr
        assert "the state directory" in said


@pytest.mark.parametrize("word", ["fsfreeze", "unmount", "readonly"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_an_image_that_can_be_cloned_goes_on_being_used(
    program: Program, vault: Path, tmp_path: Path, kind: str, word: str
) -> None:
    """Held for the moment of the clone only: the one who writes all the time finds its later bytes only in the image."""
    with mounted(tmp_path / "outer", "xfs", size=512 << 20) as outer, mounted(outer / "guest", kind) as where:
        image = outer / "guest/image"
        content = os.urandom(3 << 20)
        (where / "content").write_bytes(content)
        assert program.run("backup", image, "--name", "guest", code=7), "as it lies there it is in use"
        # Freezing does not keep anybody from having a file open for writing.
        busy = (where / "busy").open("wb") if word == "fsfreeze" else contextlib.nullcontext()
        with busy:
            done = program.json("backup", image, "--name", "guest", "--bracket", f"{word}:{where}")["points"][0]
        assert done["consistency"] == "filesystem"
        (where / "later").write_text("goes on")
        shown = program.json("point", "show", "guest@latest")["members"][0]
        (bracket,) = shown["brackets"]
        assert bracket["entering"][1] <= shown["taken"][0] <= shown["taken"][1] <= bracket["leaving"][0]
        assert done["pause"] == pytest.approx(bracket["leaving"][1] - bracket["entering"][0], abs=0.01)

        back, again = tmp_path / "back.img", tmp_path / "again"
        program.run("restore", "guest@latest", "--to", back)
        if kind == "ext4" or word != "fsfreeze":
            subprocess.run([*CHECK[kind], back], check=True, capture_output=True)
        again.mkdir()
        # Without looking at the log: everything has to be in its place already.
        options = "loop,ro,norecovery,nouuid" if kind == "xfs" else "loop,ro,noload"
        subprocess.run(["mount", "-o", options, back, again], check=True)
        try:
            assert (again / "content").read_bytes() == content
            assert not (again / "later").exists()
        finally:
            subprocess.run(["umount", again], check=True)
        # Another file system than the one in the image says nothing about it.
        said = program.run("backup", image, "--name", "guest", "--bracket", f"fsfreeze:{outer}", code=2).stderr
        assert "not what is backed up" in said


def test_swap_and_overlays_are_looked_through(
    program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str]
) -> None:
    where, device = data
    readonly = ["backup", device, "--bracket", f"readonly:{where}", "--downtime", "5m", "--name", "d"]
    swap = where / "swap"
    swap.write_bytes(bytes(4 << 20))
    swap.chmod(0o600)
    subprocess.run(["mkswap", swap], check=True, capture_output=True)
    subprocess.run(["swapon", swap], check=True)
    try:
        assert f"swap ({swap})" in program.run(*readonly, code=2).stderr
    finally:
        subprocess.run(["swapoff", swap], check=True)
    over = tmp_path / "over"
    for name in (over, where / "upper", where / "work", tmp_path / "lower"):
        name.mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={where}/upper,workdir={where}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", over], check=True)
    try:
        elsewhere = {"SAFEHOLD_HOME": str(over), "SAFEHOLD_VAULT": str(vault)}
        assert "the state directory" in program.run(*readonly, code=2, **elsewhere).stderr
    finally:
        subprocess.run(["umount", over], check=True)


HOOK = """#!/bin/sh
echo "$1" >> "{log}"
env | grep -c PASSPHRASE >> "{log}"
{more}
"""


def hook(tmp_path: Path, more: str) -> tuple[Path, Path]:
    program, log = tmp_path / "hook.sh", tmp_path / "hook.log"
    program.write_text(HOOK.format(log=log, more=more))
    program.chmod(0o755)
    return program, log


@pytest.mark.parametrize(
    ("more", "reached"),
    [("echo consistency=application", "application"), ("echo said nothing of it", "filesystem")],
)
def test_a_hook_vouches_for_what_it_says(
    program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str], more: str, reached: str
) -> None:
    where, device = data
    command, log = hook(tmp_path, more)
    brackets = ["--bracket", f"hook:{command}", "--bracket", f"unmount:{where}", "--downtime", "5m"]
    done = program.json("backup", device, "--name", "data", *brackets)["points"][0]
    assert done["consistency"] == reached
    assert log.read_text().split() == ["freeze", "0", "thaw", "0"], "and no passphrase in its environment"
    less = program.run("backup", device, "--name", "data", *brackets, "--require", "application", code=None)
    assert less.returncode == (0 if reached == "application" else 7)
    assert "was being written" not in less.stderr


def test_what_no_bracket_reaches_is_refused_before_anything_is_held(
    program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str]
) -> None:
    where, device = data
    before = entry(where)
    words = ["--bracket", f"unmount:{where}", "--downtime", "5m", "--require", "application"]
    said = program.run("backup", device, "--name", "data", *words, code=7).stderr
    assert "filesystem is the most that this can reach" in said
    assert entry(where) == before, "it was not mounted anew"


def test_a_hook_that_fails_ends_the_run(program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str]) -> None:
    where, device = data
    command, log = hook(tmp_path, '[ "$1" = thaw ] || { echo no database; exit 3; }')
    brackets = ["--bracket", f"unmount:{where}", "--bracket", f"hook:{command}", "--downtime", "5m"]
    said = program.run("backup", device, "--name", "data", *brackets, code=7).stderr
    assert "ended with code 3: no database" in said
    assert log.read_text().split()[::2] == ["freeze", "thaw"]
    assert program.json("points")["points"] == []
    (where / "file").write_text("mounted again and writable")


def test_what_nobody_is_left_to_let_go_of_is_a_problem(
    program: Program, vault: Path, tmp_path: Path, data: tuple[Path, str]
) -> None:
    where, device = data
    # A loop device goes with its last user.
    kept = os.open(device, os.O_RDONLY)
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    command, _ = hook(tmp_path, f'[ "$1" = thaw ] || {{ echo > "{reached}"; exec sleep 60; }}')
    brackets = ["--bracket", f"unmount:{where}", "--bracket", f"hook:{command}", "--downtime", "1h"]
    assert program.json("status")["problems"] == []
    with program.start("backup", device, "--name", "data", *brackets) as run:
        with open(os.open(reached, os.O_RDWR)) as said_so:
            assert select.select([said_so], [], [], 60)[0], "the hook was started"
        lines = [json.loads(line) for line in (program.home / "state/watchdog.log").read_text().splitlines()]
        os.kill(next(line["pid"] for line in lines if "armed" in line), signal.SIGKILL)
        run.kill()
    problems = program.json("status", code=1)["problems"]
    assert [one for one in problems if f"mount {device} on {where}" in one["what"]]
    subprocess.run(["mount", device, where], check=True)
    hook(tmp_path, "true")
    program.run("backup", device, "--name", "data", *brackets)
    # The watchdog's last line comes after its last word.
    for _ in range(100):
        if not program.json("status", code=None)["problems"]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("all was let go of in a later backup")
    os.close(kept)


@pytest.mark.parametrize("word", ["unmount", "readonly"])
@pytest.mark.parametrize(("fault", "downtime"), [(signal.SIGKILL, "1h"), (signal.SIGSTOP, "6s")])
def test_a_downtime_ends_with_its_limit(
    program: Program,
    vault: Path,
    tmp_path: Path,
    data: tuple[Path, str],
    word: str,
    fault: signal.Signals,
    downtime: str,
) -> None:
    """The hook comes last and does not end by itself, so that the run is where the fault should meet it."""
    where, device = data
    reached, before = tmp_path / "reached", entry(where)
    os.mkfifo(reached)
    command, log = hook(tmp_path, f'[ "$1" = thaw ] || {{ echo > "{reached}"; sleep 1000; }}')
    brackets = ["--bracket", f"{word}:{where}", "--bracket", f"hook:{command}", "--downtime", downtime]
    with program.start("backup", device, "--name", "data", *brackets) as run:
        with open(os.open(reached, os.O_RDWR)) as said_so:
            assert select.select([said_so], [], [], 60)[0], "the hook was started"
        run.send_signal(fault)
        writer = [
            "sh",
            "-c",
            f'until [ "$(findmnt -no SOURCE "{where}")" ] && echo > "{where}/file"; do sleep 0.1; done',
        ]
        subprocess.run(writer, check=True, timeout=60, stderr=subprocess.DEVNULL)
        run.send_signal(signal.SIGCONT)
        said = "".join(run.communicate())
    assert entry(where) == before
    if fault is signal.SIGSTOP:
        assert run.returncode == 7, said
    assert program.json("points")["points"] == []
    until_logged = ["sh", "-c", f'until grep -q steps "{program.home}/state/watchdog.log"; do sleep 0.1; done']
    subprocess.run(until_logged, check=True, timeout=60)
    report = json.loads((program.home / "state/watchdog.log").read_text().splitlines()[-1])
    assert [step["state"] for step in report["steps"]] == ["released", "released"]
    assert log.read_text().split()[::2][:2] == ["freeze", "thaw"]
