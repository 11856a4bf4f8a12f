"""Who is at the other end of a unix socket."""

from __future__ import annotations

import socket
import struct

__all__ = ["peer_process"]

_CREDENTIALS = struct.Struct("3i")


def peer_process(connection: socket.socket) -> int:
    """The process that connected, or on the connecting side the one that listened (unix(7): SO_PEERCRED); 0 for one of another namespace. OSError."""
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])
