"""The command line's side of the volume service, against a service that answers as the test says."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

from safehold.compose.paths import Paths
from safehold.compose.volume_client import VolumeClient
from safehold.model.context import Context


def test_a_service_that_ends_while_it_is_asked_has_ended(tmp_path: Path) -> None:
    """The question whether it still runs may arrive just before its socket is closed, and is never answered."""
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(paths.volume_control))
    listening.listen(4)

    def serve() -> None:
        for answer in ({"result": {"pid": os.getpid()}}, {"result": None}):
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        connection, _ = listening.accept()
        paths.volume_control.unlink()
        listening.close()
        # What was sent is not read: the kernel resets the connection.
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    VolumeClient(paths, {}, Context()).stop()
    thread.join()
