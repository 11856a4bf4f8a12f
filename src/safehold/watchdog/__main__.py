"""`python -I -m safehold.watchdog --fd N | --connect NAME`: over a socket that it was born with, or an abstract one by name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

from safehold.watchdog.messages import Hangup, Message, receive, send
from safehold.watchdog.place import Place, detach, share_mounts, take_place
from safehold.watchdog.senses import OwnerSenses
from safehold.watchdog.undo import Undo, make_undo
from safehold.watchdog.vigil import Vigil


def _link(words: list[str]) -> socket.socket:
    if words[:1] == ["--connect"]:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.connect("\0" + words[1])
        return link
    return socket.socket(fileno=int(words[1]))


def _arm(link: socket.socket, order: Message) -> tuple[Vigil, int, Place]:
    """Everything that the release will need, gathered before anything is held. Raises whatever is in the way."""
    owner = int(order["owner"])
    share_mounts(owner)
    place = take_place(owner)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if order["log"] else -1
    senses = OwnerSenses(link, owner, int(order["start"]))
    undos: list[Undo] = [make_undo(step) for step in order["steps"]]
    return Vigil(senses, undos, float(order["grace"]), float(order["limit"])), log, place


def _note(log: int, process: int, what: Message) -> None:
    """A line in the log, where there is room for it."""
    line = json.dumps({"time": round(time.time(), 3), "pid": process, **what}) + "\n"
    with contextlib.suppress(OSError):
        os.write(log, line.encode())


def _note_apart(log: int, report: Message) -> None:
    """By a child: a log on a frozen disk takes nobody along."""
    process = os.getpid()
    if log < 0 or os.fork():
        return
    # Should this child have to wait, then with nothing open that it could keep busy.
    log = os.dup2(log, 3)
    os.closerange(4, 4096)
    _note(log, process, report)
    os._exit(0)


def main(words: list[str]) -> int:
    """Arm, watch, let go, report."""
    link = _link(words)
    if words[:1] != ["--connect"]:
        detach()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        order = receive(link)
    except Hangup:
        return 0
    try:
        vigil, log, place = _arm(link, order)
    except Exception as error:  # the owner is told, and holds nothing
        send(link, {"op": "refused", "why": f"{type(error).__name__}: {error}"})
        return 1
    # Should this process be killed together with its owner, this tells what they may have held. Nothing is held yet, so it can be written here.
    _note(log, os.getpid(), {"armed": [step.undo.what for step in vigil.steps], "owner": int(order["owner"])})
    answer = {"locked": place.locked, "spared": place.spared, "apart": place.apart}
    send(link, {"op": "armed", "pid": os.getpid(), **answer})
    report = vigil.run()
    link.close()
    _note_apart(log, report)
    # Not sys.exit: a thread that waits for a disk must not keep the rest of the process.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
