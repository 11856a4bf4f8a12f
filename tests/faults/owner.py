"""A process that freezes and then meets its fate; run by test_frozen.

    owner.py WHERE DEADLINE LOG wait|grow|stay [broken]

Says `held` once it holds, and in the end what became of it. `wait` is for a line of input, `stay` for ever, `grow` takes memory until there
is none; `broken` is guarded by a watchdog that agrees to everything and does nothing.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from safehold.adapters.linux.freeze import Freeze
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError
from safehold.quiesce.guard import Guard, Terms, arm
from safehold.quiesce.holding import hold
from safehold.quiesce.launch import launch

IDLE = """
import json, socket, sys
link = socket.socket(fileno=int(sys.argv[1]))
for answer in ({"op": "armed", "pid": 1, "locked": True, "spared": True, "apart": True}, {"op": "go"}, {"op": "still"}):
    link.recv(65536)
    link.send(json.dumps(answer).encode())
while link.recv(65536):
    pass
"""


def idle() -> socket.socket:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen([sys.executable, "-c", IDLE, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    return mine


def main(where: str, deadline: str, log: str, fate: str, *more: str) -> None:
    def guarded(steps, terms: Terms) -> Guard:  # type: ignore[no-untyped-def]
        return arm(steps, terms, idle if more else launch)

    terms = Terms(float(deadline), float(deadline), Path(log))
    try:
        with hold([Freeze(where)], terms, Consistency.FILESYSTEM, Context(), guarded) as held:
            print("held", flush=True)
            taken = []
            while fate == "grow":
                taken.append(b"x" * (1 << 20))
            while fate == "stay":
                signal.pause()
            sys.stdin.readline()
            held.confirm()
    except ConsistencyError as error:
        print(json.dumps({"failed": str(error)}), flush=True)
    else:
        print(json.dumps({"kept": [q.bracket for q in held.record]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
