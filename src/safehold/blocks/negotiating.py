"""What a client of the NBD server gets, settled over its socket."""

from __future__ import annotations

import socket
import time

from safehold.ports.export import ExportDirectory
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_handshake import Agreed, Handshake, HangUp

__all__ = ["negotiate"]


def negotiate(client: socket.socket, directory: ExportDirectory, patience: float, refusal: str) -> Agreed | None:
    """What was agreed on, with the export open; None where nothing was, and the socket is of no more use. `patience` in seconds is the time for all
    of it, and `refusal` why this client gets nothing, if it does not. OSError where the client is gone.
    """
    deadline = time.monotonic() + patience
    talk = Handshake(directory, refusal)
    try:
        client.settimeout(patience)
        client.sendall(talk.greeting)
        talk.flags(_receive(client, 4, deadline))
        while talk.agreed is None:
            length = talk.header(_receive(client, nbd.OPTION.size, deadline))
            client.sendall(talk.option(_receive(client, length, deadline)))
        client.settimeout(None)
    except HangUp as reason:
        if len(reason.args) > 1:
            client.sendall(reason.args[1])
        return None
    except OSError:
        if talk.agreed is not None:
            directory.release(talk.agreed.name)
        return None
    return talk.agreed


def _receive(client: socket.socket, length: int, deadline: float) -> bytes:
    data = b""
    while len(data) < length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise HangUp("a client that negotiates for too long")
        client.settimeout(left)
        got = client.recv(length - len(data))
        if not got:
            raise HangUp("the client left")
        data += got
    return data
