"""Ends of storage daemons that the real one shows only once in hundreds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from safehold.adapters.linux.loop_device import end_daemon
from safehold.model.errors import FailedError

SLEEPS_OVER = """
import signal, sys
left = int(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
for _ in range(left + 1):
    signal.sigwait({signal.SIGTERM})
"""


def started(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_daemon_that_sleeps_over_a_signal_is_told_again(lost: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPS_OVER, str(lost)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        assert daemon.stdout.readline()
        end_daemon(daemon.pid, started(daemon), time.monotonic() + 30)
        assert daemon.wait() == 0


def test_a_daemon_that_does_not_end_is_told_of() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPS_OVER, "1000"], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        assert daemon.stdout.readline()
        with pytest.raises(FailedError, match="does not end"):
            end_daemon(daemon.pid, started(daemon), time.monotonic() + 1)
        assert daemon.poll() is None
        daemon.kill()


def test_another_process_of_that_number_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        end_daemon(other.pid, started(other) + 1, time.monotonic() + 30)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        other.kill()
