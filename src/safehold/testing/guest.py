"""A guest for tests: the host's own programs under Debian's kernel, with a clock and block devices of its own.

The guest sees the host's root read-only with a memory-backed layer over it, so that the program under test, its Python and Debian's
tools are those of the host. It has no network. The processor is emulated: everything takes ten to twenty times as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safehold.testing.initramfs import HOST, SERVE, SHARE, write_initramfs
from safehold.testing.kernel import debian_kernel

__all__ = ["Finished", "Guest", "GuestError", "start_guest"]

_MACHINES = {
    "x86_64": ["qemu-system-x86_64", "-M", "q35", "-cpu", "Westmere"],
    "aarch64": ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth=off"],
}
"""By `uname -m`. No five-level page tables and no emulated pointer authentication, which cost much, and no AVX, the emulation of which is young.
None of them tests anything here.
"""

_CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
_FIRST_MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "overlay"]
_MEMORY = "1536M"
_BOOT = 300.0
_PR_SET_PDEATHSIG = 1
_TAIL = 4000

_SERVE = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /dev/pts /dev/shm /lib/modules
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind MODULES /lib/modules
ip link set lo up
set -- /dev/vport*p1
exec 3<>"$1"
echo ready >&3
while read -r number <&3; do
    cd /root
    /bin/bash -eu /share/$number.script >/share/$number.stdout 2>/share/$number.stderr </dev/null 3>&-
    echo "$number $?" >&3
done
"""
"""The guest's first process. There is no udev: LVM and mdadm are told to make their nodes themselves."""


class GuestError(AssertionError):
    """The guest did not come up, did not answer in time, or a script in it failed; the message ends with its console."""


@dataclass(frozen=True)
class Finished:
    """What a script in the guest left."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Guest:
    """A running guest; `share` is the folder that it sees as `/share`."""

    share: Path
    boot_seconds: float
    _console: Path
    _line: socket.socket
    _number: int = 0

    def run(self, script: str, *, code: int | None = 0, seconds: float = 120.0) -> Finished:
        """Run a script for `bash -eu` as root. GuestError where it ends with another code than `code` (None: any).

        `seconds` is a hard limit of the host's clock: after it the guest answers no more.
        """
        self._number += 1
        name = str(self._number)
        (self.share / f"{name}.script").write_text(script)
        self._line.sendall(f"{name}\n".encode())
        answer = self.hear(seconds, f"script {name}")
        number, status = answer.split()
        assert number == name, answer
        read = {end: (self.share / f"{name}.{end}").read_text(errors="replace") for end in ("stdout", "stderr")}
        done = Finished(int(status), **read)
        if code is not None and done.code != code:
            raise GuestError(
                f"exit code {done.code}, not {code}, of:\n{script}\n{done.stdout}\n{done.stderr}{self._log()}"
            )
        return done

    def hear(self, seconds: float, what: str) -> str:
        """The guest's next line. GuestError where none comes within `seconds`."""
        until = time.monotonic() + seconds
        said = b""
        while not said.endswith(b"\n"):
            self._line.settimeout(max(0.001, until - time.monotonic()))
            try:
                piece = self._line.recv(4096)
            except TimeoutError as error:
                raise GuestError(f"no answer within {seconds:g} s: {what}{self._log()}") from error
            if not piece:
                raise GuestError(f"the guest ended: {what}{self._log()}")
            said += piece
        return said.decode().strip()

    def _log(self) -> str:
        return f"\nconsole: {self._console.read_text(errors='replace')[-_TAIL:]}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def start_guest(directory: Path, disks: Sequence[Path | str] = (), agent: Path | None = None) -> Iterator[Guest]:
    """Boot one that lasts until the block ends. GuestError where it does not come up.

    `directory` takes its files, the console's log among them. `disks` are `/dev/vda` and so on: raw files, or what else qemu has an address
    for. `agent` is the socket of a port for a guest agent, `/dev/vport*p2` in the guest; its path has to be short.
    """
    kernel, machine = debian_kernel(), platform.machine()
    share, console, first = directory / SHARE, directory / "console.log", directory / "initramfs"
    share.mkdir(parents=True)
    (share / SERVE).write_text(_SERVE.replace("MODULES", shlex.quote(str(kernel.modules))))
    write_initramfs(first, kernel.in_order(_FIRST_MODULES))
    console.touch()
    here, there = socket.socketpair()
    command = [
        *_MACHINES[machine], "-accel", "tcg,thread=multi", "-smp", "2", "-m", _MEMORY, "-nodefaults", "-no-user-config",
        "-display", "none", "-no-reboot", "-net", "none", "-serial", f"file:{console}", "-device", "virtio-rng-pci",
        "-kernel", str(kernel.image), "-initrd", str(first),
        "-append", f"console={_CONSOLES[machine]} quiet panic=-1 mitigations=off",
        "-virtfs", f"local,path=/,mount_tag={HOST},security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={share},mount_tag={SHARE},security_model=none,multidevs=remap",
        "-device", "virtio-serial-pci", "-chardev", f"socket,id=line,fd={there.fileno()}",
        "-device", "virtserialport,chardev=line,nr=1",
    ]  # fmt: skip
    for disk in disks:
        # A file is the test's own; what is served elsewhere gets the guest's flushes.
        cache = "unsafe" if isinstance(disk, Path) else "none"
        command += ["-drive", f"file={disk},format=raw,if=virtio,cache={cache}"]
    if agent is not None:
        command += ["-chardev", f"socket,id=agent,path={agent},server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=agent,nr=2,name=org.qemu.guest_agent.0"]
    started = time.monotonic()
    with here, open(directory / "qemu.log", "wb") as log:
        emulator = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[there.fileno()],
            preexec_fn=_die_with_parent,
        )
        there.close()
        try:
            guest = Guest(share, 0.0, console, here)
            try:
                guest.hear(_BOOT, "boot")
            except GuestError as error:
                raise GuestError(f"{error}\nqemu: {(directory / 'qemu.log').read_text(errors='replace')}") from error
            guest.boot_seconds = time.monotonic() - started
            yield guest
        finally:
            # By force: what it has in memory is nobody's, and an orderly end takes seconds.
            emulator.kill()
            emulator.wait()
