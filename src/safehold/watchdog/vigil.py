"""Watches an owner that holds things, and lets go of them when it does not."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from safehold.watchdog.messages import Message
from safehold.watchdog.senses import Senses
from safehold.watchdog.undo import Undo

__all__ = ["PATIENCE", "Step", "Vigil"]

PATIENCE = 600.0
"""Seconds from the owner's end until the watchdog gives up on an undo that keeps failing. While the owner lives it never does: a process
that was stopped on its way to a freeze goes on with it whenever it is woken.
"""

_TURN = 2.0
"""Seconds that one undo may take before the next is begun beside it: a disk that is gone must not hold the others."""

_SOONEST, _LATEST = 0.02, 1.0
"""Seconds between two rounds: soon at first, as the owner may be in the middle of a freeze, which cannot be undone before it is done."""


@dataclass
class Step:
    """One undo in its place. `entered` once the owner may come to hold its thing, `firm` once it says that it does, `left` once it
    says that it does not any more.
    """

    undo: Undo
    entered: bool = False
    firm: bool = False
    left: bool = False
    done: bool = False
    tries: int = 0
    error: str = ""
    process: int = -1
    attempt: threading.Thread | None = field(default=None, repr=False)

    @property
    def held(self) -> bool:
        """True where the thing may be held as far as the owner told."""
        return self.entered and not self.left

    @property
    def due(self) -> bool:
        """True where there is something to undo, or soon may be: what the owner was about to hold can still come."""
        return self.held and not (self.done and self.firm)

    def let_go(self) -> None:
        """Try once more, or wait for the try that is still on its way, but no longer than a turn."""
        if self.attempt is None or not self.attempt.is_alive():
            self.attempt = threading.Thread(target=self._try, daemon=True)
            try:
                self.attempt.start()
            except RuntimeError:
                # No memory for a thread: better one after the other than not at all.
                self.attempt = None
                self._try()
                return
        self.attempt.join(_TURN)
        if self.attempt.is_alive():
            self.done, self.error = False, "not answered yet"

    def _try(self) -> None:
        self._stop_process()
        self.tries += 1
        try:
            self.undo.release()
            self.done, self.error = True, ""
        except Exception as error:  # whatever it is, the other things have to be let go of
            self.done, self.error = False, str(error)

    def _stop_process(self) -> None:
        """End what was still on its way to hold the thing, with all of its process group."""
        if self.process < 0:
            return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.process, 0)
            group = _number(self.process)
            os.killpg(group, signal.SIGKILL)


def _number(process: int) -> int:
    with open(f"/proc/self/fdinfo/{process}", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


class Vigil:
    """From the arming until nothing is held and nothing can be any more. See `messages` for what is said."""

    def __init__(self, senses: Senses, undos: Sequence[Undo], grace: float, limit: float) -> None:
        self.steps = [Step(undo) for undo in undos]
        self._senses = senses
        self._began = senses.now()
        self._grace, self._end = grace, self._began + limit
        self._until = min(self._began + grace, self._end)
        self._by, self._after = "", 0.0
        self._gone = False

    def run(self) -> Message:
        """Watch, let go, and report."""
        while not self._by:
            self._watch()
        self._let_go()
        return self.report()

    def report(self) -> Message:
        """What was let go of, by whom, how long after the arming; see `messages`."""
        steps = [
            {"what": s.undo.what, "state": _state(s), "tries": s.tries, "error": s.error}
            for s in self.steps
            if s.entered
        ]
        return {"by": self._by, "after": round(self._after, 3), "steps": steps}

    def _watch(self) -> None:
        """Until the next thing happens; notes who or what asks for the release."""
        message = self._senses.next(self._until - self._senses.now())
        if self._senses.now() >= self._until:
            self._break("deadline")
            self._late(message)
            return
        match message:
            case {"op": "enter", "step": int(number), "process": int(process)} if self._is_step(number):
                self._enter(number, process)
            case {"op": "held", "step": int(number)} if self._is_step(number):
                self.steps[number].firm = True
                self._still()
            case {"op": "left", "step": int(number)} if self._is_step(number):
                self.steps[number].left = True
            case {"op": "confirm"}:
                self._still()
            case {"op": "beat"}:
                self._until = min(self._senses.now() + self._grace, self._end)
            case {"op": "release"}:
                self._gone = True
                self._break("owner")
            case {"op": "hangup" | "death" | "signal" as cause}:
                self._gone = cause == "death"
                self._break(str(cause))
            case None:
                pass
            case _:
                self._break("hangup")

    def _break(self, by: str) -> None:
        self._by, self._after = by, self._senses.now() - self._began

    def _is_step(self, number: int) -> bool:
        return 0 <= number < len(self.steps)

    def _enter(self, number: int, process: int) -> None:
        step = self.steps[number]
        step.entered = True
        if process:
            try:
                step.process = os.pidfd_open(process)
            except OSError:
                # It is gone already, so it will not hold anything.
                step.process = -1
        self._senses.say({"op": "go"})

    def _still(self) -> None:
        self._senses.say({"op": "still", "after": round(self._senses.now() - self._began, 3)})

    def _late(self, message: Message | None) -> None:
        """Answer what comes after the release: the owner must not hold anything any more."""
        match message:
            case {"op": "held", "step": int(number)} if self._is_step(number):
                # Undone once more: the earlier tries may have come before there was anything to undo.
                self.steps[number].done, self.steps[number].firm = False, True
                self._senses.say({"op": "broken", "report": self.report()})
            case {"op": "enter" | "confirm"}:
                self._senses.say({"op": "broken", "report": self.report()})
            case {"op": "left", "step": int(number)} if self._is_step(number):
                self.steps[number].left = True
            case {"op": "release" | "death"}:
                self._gone = True

    def _let_go(self) -> None:
        """In reverse, again and again until all is done and the owner can hold nothing more: a freeze that it was in the middle of only
        begins to be one when it is through.
        """
        pause, told, over = _SOONEST, False, math.inf
        while True:
            settled = self._gone
            for step in reversed(self.steps):
                if step.due:
                    step.let_go()
            if self._gone and not told:
                self._senses.say({"op": "released", "report": self.report()})
                told = True
            now = self._senses.now()
            if settled:
                over = min(over, now + PATIENCE)
            if (settled and all(s.done for s in self.steps if s.held)) or now >= over:
                return
            message = self._senses.next(pause)
            self._late(message)
            if message is None:
                pause = min(2 * pause, _LATEST)


def _state(step: Step) -> str:
    if step.done:
        return "released"
    if step.left:
        return "left" if step.firm else "failed"
    return "held"
