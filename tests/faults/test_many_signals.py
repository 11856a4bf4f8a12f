"""Signals that come while those before them are still being answered."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

_AT_EVERY_LINE = """
import signal, sys, threading
from safehold.model.context import CancelToken

token = CancelToken()
signal.signal(signal.SIGTERM, lambda number, frame: token.cancel())


def strike(frame, event, argument):
    if event == "line" and frame.f_code.co_filename == threading.__file__:
        signal.raise_signal(signal.SIGTERM)
    return strike


sys.settrace(strike)
token.wait(60)
sys.settrace(None)
print("ended")
"""

_AGAIN_AND_AGAIN = """
import signal
from safehold.model.context import CancelToken

tokens = [CancelToken()]
signal.signal(signal.SIGTERM, lambda number, frame: tokens[-1].cancel())
print("ready", flush=True)
for _ in range(300):
    while not tokens[-1].wait(60):
        pass
    tokens.append(CancelToken())
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ended")
"""


def test_a_signal_may_come_wherever_the_wait_for_it_is() -> None:
    """At every line of Python's own that the wait goes through: inside its lock too."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_EVERY_LINE], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "ended\n"


def test_a_run_that_is_told_again_and_again_to_stop_stops() -> None:
    """Hundreds meet it while it waits, while it begins to, and inside the handler of another. What hangs is killed by the test."""
    with subprocess.Popen([sys.executable, "-c", _AGAIN_AND_AGAIN], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            end = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < end:
                process.send_signal(signal.SIGTERM)
            assert process.poll() == 0, "it hangs"
            assert process.stdout.read() == "ended\n"
        finally:
            process.kill()
