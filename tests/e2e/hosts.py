"""A machine with a vault and volumes that the installed program serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safehold.testing.program import Program
from safehold.wire.control import ask


class Host:
    """A machine with a vault and the program; its home is short, as the path of a socket has to be."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.program = Program(home)
        self.program.run("vault", "init", home / "vault", "--kit-file", home / "kit.txt")

    @property
    def control(self) -> Path:
        return self.home / "run" / "volumes.control"

    @property
    def socket(self) -> Path:
        return self.home / "run" / "volumes.nbd"

    def pid(self) -> int:
        return int(ask(self.control, {"verb": "ping"}, 5)["result"]["pid"])

    def nbd(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.socket}"

    def show(self, name: str) -> dict[str, object]:
        told: dict[str, object] = self.program.json("volume", "show", name)
        return told

    def wait_until_sent(self, name: str) -> None:
        for _ in range(600):
            snapshots = self.show(name)["snapshots"]
            assert isinstance(snapshots, list)
            if all(one["state"] != "pending" for one in snapshots):
                return
            time.sleep(0.05)
        raise AssertionError("snapshots never reached the vault")

    def wait_until_here(self, name: str) -> None:
        for _ in range(400):
            if not self.show(name)["missing"]:
                return
            time.sleep(0.05)
        raise AssertionError("never filled in")

    def close(self) -> None:
        for attached in (self.home / "run" / "attached").glob("*.json"):
            place = json.loads(attached.read_text())["mount"]
            if place:
                subprocess.run(["umount", place], check=False)
            self.program.run("volume", "detach", attached.stem, code=None)
        with contextlib.suppress(Exception):
            process = self.pid()
            os.kill(process, signal.SIGTERM)
            for _ in range(200):
                if not Path(f"/proc/{process}").exists():
                    break
                time.sleep(0.05)


@contextlib.contextmanager
def new_host() -> Iterator[Host]:
    """One with an empty vault, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Host(Path(folder))
        try:
            yield made
        finally:
            made.close()


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
