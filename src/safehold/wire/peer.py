"""Who is at the other end of a unix socket."""

from __future__ import annotations

import socket
import struct

__all__ = ["peer_process", "peer_user"]

_CREDENTIALS = struct.Struct("3i")


def peer_process(connection: socket.socket) -> int:
    """The process that connected, or on the connecting side the one that listened (unix(7): SO_PEERCRED); 0 for one of another namespace. OSError."""
    return _peer(connection)[0]


def peer_user(connection: socket.socket) -> int:
    """The user id of that process. OSError."""
    return _peer(connection)[1]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(told)
    return process, user, group
