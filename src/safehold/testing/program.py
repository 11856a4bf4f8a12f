"""The installed program, run as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Program"]

TIMEOUT = 300


@dataclass
class Program:
    """`safehold` with a home and a passphrase of its own."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    passphrase: bool = True

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SAFEHOLD_")}
        mine = {"SAFEHOLD_HOME": str(self.home), "PYTHONWARNINGS": "error"}
        if self.passphrase:
            mine["SAFEHOLD_PASSPHRASE"] = "correct horse"
        return kept | mine | self.environment | more

    def run(self, *arguments: object, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command line. AssertionError where the exit code is not `code` (None: any), or a traceback shows."""
        command = [str(Path(sys.executable).parent / "safehold"), *map(str, arguments)]
        return self._finish(command, code, environment)

    def crash(self, which: int | str, when: str, report: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run one command line under `testing.crashing`; the exit code is -9 where it was killed."""
        command = [
            sys.executable,
            "-m",
            "safehold.testing.crashing",
            str(which),
            when,
            str(report),
            *map(str, arguments),
        ]
        return self._finish(command, None, {})

    def _finish(
        self, command: list[str], code: int | None, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        said = f"{' '.join(command[1:])}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in said, said
        assert code is None or done.returncode == code, f"exit code {done.returncode}, not {code}: {said}"
        return done

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start one command line and leave it running."""
        command = [str(Path(sys.executable).parent / "safehold"), *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=self._environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *arguments: object, code: int | None = 0, **environment: str) -> Any:
        """What a command line prints with `--json`."""
        return json.loads(self.run(*arguments, "--json", code=code, **environment).stdout)
