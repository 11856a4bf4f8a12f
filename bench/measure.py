"""Runs a command and tells its wall time, its processor time and the most anonymous memory it had."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BORG", "Measured", "clean_environment", "measure"]

BORG = str(Path(sys.executable).parent.parent / "peers/bin/borg")
"""Debian's is older than what is asked for; `make bench` builds this one from requirements/bench.txt."""

_POLL = 0.01


@dataclass(frozen=True)
class Measured:
    """Seconds of wall time and of processor time (user and system, all threads and children), peak RssAnon in MiB (sampled every 10 ms),
    and what the command printed.
    """

    seconds: float
    processor: float
    anonymous: float
    output: str


def clean_environment() -> dict[str, str]:
    """This process's environment without the user's own vault."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SAFEHOLD_")}


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Measured:
    """One command at a time. RuntimeError with what it said where it fails."""
    peak = 0
    spent = _spent()
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**clean_environment(), **environment},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    return Measured(seconds, _spent() - spent, peak / 1024, output)
