"""What the owner and the watchdog say to each other: one JSON object in each packet of a Unix socket.

    owner                                   watchdog
    arm {owner, start, steps, grace,        armed {pid, locked, spared, apart} | refused {why}
         limit, log}
    enter {step, process}                   go | broken {report}
    held {step}                             still {after} | broken {report}
    left {step}                             –
    beat                                    –
    confirm                                 still {after} | broken {report}
    release                                 released {report}

`owner` is a process number and `start` the clock ticks from boot to its start (proc(5)). `steps` are undos (see `undo`), in the order of
their holding. `grace` are the seconds that the owner may say nothing, `limit` those from the arming to the release, whatever it says.
`process` is a process that waits to be told to start (0: none), and is killed on release. A report is `{by, after, steps: [{what,
state, tries, error}]}`: by `owner`, `deadline`, `hangup`, `death` or `signal`, `after` that many seconds. A state is `left` by the
owner, `failed` where he never came to hold it, `released` by the watchdog, or `held`.
"""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["LARGEST", "Hangup", "Message", "receive", "send"]

LARGEST = 64 * 1024
"""Bytes of a packet: hundreds of steps, and well below what a socket's buffer takes at once."""

Message = dict[str, Any]


class Hangup(Exception):
    """The other side closed the connection, or says what no owner says."""


def receive(link: socket.socket) -> Message:
    """The next message. Hangup where there is no other side any more."""
    try:
        packet = link.recv(LARGEST)
        message = json.loads(packet) if packet else None
    except (OSError, ValueError) as error:
        raise Hangup(str(error)) from error
    if not isinstance(message, dict):
        raise Hangup("the end")
    return message


def send(link: socket.socket, message: Message) -> None:
    """Send without ever waiting: whoever does not read its answers goes without."""
    try:
        link.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return
