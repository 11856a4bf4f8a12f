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


def make_vault(place: Path) -> None:
    """Make the directory `vault`, its `kit.txt`, and the private key `identity.pem` that opens it as the passphrase does, but in no time."""
    program = Program(place / "home")
    program.run("vault", "init", place / "vault", "--kit-file", place / "kit.txt")
    private, public = place / "identity.pem", place / "public.pem"
    run("openssl", "genpkey", "-algorithm", "x25519", "-out", private)
    private.chmod(0o600)
    run("openssl", "pkey", "-in", private, "-pubout", "-out", public)
    program.run("key", "add", "--recipient", public)


def take_vault(program: Program, made: Path, place: Path) -> None:
    """Copy the vault that `make_vault` made, its kit and its key into `place`, and have `program` use it."""
    for name in ("vault", "kit.txt", "identity.pem"):
        run("cp", "-a", made / name, place / name)
    (program.home / "config").mkdir(parents=True)
    (program.home / "config" / "default-vault").write_text(f"{place / 'vault'}\n")
    program.passphrase = False
    program.environment["SAFEHOLD_IDENTITY"] = str(place / "identity.pem")


class Host:
    """A machine with a vault and the program; its home is short, as the path of a socket has to be."""

    def __init__(self, home: Path, made: Path | None = None) -> None:
        """With the vault of `make_vault`, else with one of its own."""
        self.home = home
        self.program = Program(home)
        if made:
            take_vault(self.program, made, home)
        else:
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
        attached = self.home / "run" / "attached"
        for record in attached.glob("*.json"):
            with contextlib.suppress(ValueError):
                place = json.loads(record.read_text())["mount"]
                if place:
                    subprocess.run(["umount", place], check=False)
        # A test that failed may have left devices that are on no record.
        for name in {path.stem for path in attached.glob("*.[jd]*")}:
            found = subprocess.run(
                ["losetup", "--noheadings", "--output", "NAME", "--associated", attached / f"{name}.disk"],
                capture_output=True,
                text=True,
                check=False,
            )
            for device in found.stdout.split():
                subprocess.run(["umount", "--all-targets", device], capture_output=True, check=False)
            self.program.run("volume", "detach", name, code=None)
        with contextlib.suppress(Exception):
            process = self.pid()
            os.kill(process, signal.SIGTERM)
            for _ in range(200):
                if not Path(f"/proc/{process}").exists():
                    break
                time.sleep(0.05)


@contextlib.contextmanager
def new_host(vault: Path | None = None) -> Iterator[Host]:
    """One with an empty vault (`Host`), gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Host(Path(folder), vault)
        try:
            yield made
        finally:
            made.close()


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
