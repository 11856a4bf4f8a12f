"""The owner's side of the watchdog; `safehold.watchdog.messages` says what is said."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safehold.model.errors import ConsistencyError
from safehold.ports.bracket import Undo
from safehold.quiesce.launch import launch

__all__ = ["Guard", "Released", "Terms", "arm"]

_LARGEST = 64 * 1024
_ANSWER = 60.0
"""Seconds for an answer: releasing a few things with a hook among them takes some."""

_WHY = {
    "deadline": "the time for it was over",
    "hangup": "the connection to the watchdog was lost",
    "signal": "the watchdog was told to stop",
}


@dataclass(frozen=True)
class Terms:
    """When the watchdog lets go by itself: after `grace` seconds without a word, and `limit` seconds after the arming whatever is said.
    `log` is where it writes what it did.
    """

    grace: float
    limit: float
    log: Path | None = None


@dataclass(frozen=True)
class Released:
    """What the watchdog says in the end: `by` whom it was asked, seconds `after` the arming, and what is `still` held, with the reason."""

    by: str
    after: float
    still: tuple[str, ...]


class Guard:
    """An armed watchdog. `process` is its number; `apart` from our control group; `locked` in memory, and `spared` when memory
    runs out. Methods raise ConsistencyError once it has let go, or does not answer."""

    def __init__(self, link: socket.socket, answer: dict[str, Any], terms: Terms) -> None:
        self._link = link
        self._terms = terms
        self._turn = threading.Lock()
        self.closed = threading.Event()
        self.process = int(answer["pid"])
        self.apart = bool(answer["apart"])
        self.locked, self.spared = bool(answer["locked"]), bool(answer["spared"])

    def enter(self, step: int, process: int = 0) -> None:
        """Ask whether step number `step` may be taken; from here on the watchdog undoes it."""
        self._ask({"op": "enter", "step": step, "process": process}, "go")

    def held(self, step: int) -> None:
        """Step number `step` is done: its thing is held; make sure that the time was not over before."""
        self._ask({"op": "held", "step": step}, "still")

    def left(self, step: int) -> None:
        """Step number `step` is not held any more, or never was."""
        self._tell({"op": "left", "step": step})

    def beat(self) -> None:
        """Still here; the silence begins anew."""
        self._tell({"op": "beat"})

    def confirm(self) -> None:
        """Make sure that all was held until this moment."""
        self._ask({"op": "confirm"}, "still")

    def release(self) -> Released:
        """The end: the watchdog lets go of what is left. It goes on trying should that fail."""
        return _released(self._ask({"op": "release"}, "released")["report"])

    def close(self) -> None:
        """Hang up; whatever is held then is let go of."""
        self.closed.set()
        self._link.close()

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._link.send(json.dumps(message).encode())
        except OSError:
            # The next question finds out.
            return

    def _ask(self, message: dict[str, Any], wanted: str) -> dict[str, Any]:
        with self._turn:
            answer = _exchange(self._link, message, _ANSWER)
            while answer and answer["op"] not in (wanted, "broken"):
                # The answer to a question that was given up, by an interrupt.
                answer = _receive(self._link)
        if answer is None:
            raise ConsistencyError(
                "the watchdog does not answer any more, so what was held may have been let go of",
                on=f"process {self.process}",
                remedy="see who ended it, and start again",
            )
        if answer.get("op") != wanted:
            report = _released(answer["report"])
            raise ConsistencyError(
                f"the watchdog let go after {report.after:.1f} s: {_WHY.get(report.by, report.by)}",
                on=f"limits: {self._terms.grace:g} s without a word, {self._terms.limit:g} s in all",
                remedy="give it more time, or make it quicker; nothing was kept of what was read since",
            )
        return answer


def _released(report: dict[str, Any]) -> Released:
    still = tuple(f"{s['what']}: {s['error']}" for s in report["steps"] if s["state"] == "held")
    return Released(str(report["by"]), float(report["after"]), still)


def _exchange(link: socket.socket, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """The answer to a message; None where there is nobody."""
    try:
        link.settimeout(seconds)
        link.send(json.dumps(message).encode())
    except OSError:
        return None
    return _receive(link)


def _receive(link: socket.socket) -> dict[str, Any] | None:
    try:
        packet = link.recv(_LARGEST)
    except OSError:
        return None
    return dict(json.loads(packet)) if packet else None


def _started() -> int:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def arm(steps: Sequence[Undo], terms: Terms, start: Callable[[], socket.socket] = launch) -> Guard:
    """A watchdog that holds these undos and could carry them out this moment. ConsistencyError where it cannot."""
    link = start()
    order = {
        "op": "arm",
        "owner": os.getpid(),
        "start": _started(),
        "steps": [dict(step) for step in steps],
        "grace": terms.grace,
        "limit": terms.limit,
        "log": str(terms.log) if terms.log else "",
    }
    answer = _exchange(link, order, _ANSWER)
    if answer is None or answer.get("op") != "armed":
        link.close()
        why = answer.get("why", "") if answer else "it does not answer"
        raise ConsistencyError(
            f"the watchdog is not ready ({why}), and without it nothing is held", remedy="mend that, then try again"
        )
    return Guard(link, answer, terms)
