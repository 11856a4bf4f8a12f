"""qcow2 images, read by qemu's own server over a unix socket."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safehold.model.environment import plain_environment
from safehold.model.errors import SourceError
from safehold.model.extents import Extent, ExtentKind
from safehold.ports.blocks import Lineage
from safehold.wire.nbd import NbdClient

__all__ = ["Qcow2Blocks", "is_qcow2", "serve_qcow2"]

_MAGIC = b"QFI\xfb"
_START = 20.0
"""Seconds that qemu-nbd may take to open an image and its backing files."""
_PR_SET_PDEATHSIG = 1


def is_qcow2(head: bytes) -> bool:
    """True for the first bytes of a qcow2 image."""
    return head.startswith(_MAGIC)


class Qcow2Blocks:
    """The guest's view of a qcow2 image; one connection for each reading thread would not be faster, as the server
    decodes one at a time.
    """

    def __init__(self, client: NbdClient) -> None:
        self._client = client
        self.size = client.size

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        """What is not allocated, or allocated as zeros, is zero."""
        for offset, length, zero in self._client.status():
            yield Extent(offset, length, ExtentKind.ZERO if zero else ExtentKind.DATA)

    def read_into(self, offset: int, buf: memoryview) -> None:
        """See `ports.blocks.Blocks`."""
        self._client.read_into(offset, buf)


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def serve_qcow2(path: str, *, shared: bool) -> Iterator[Qcow2Blocks]:
    """Serve the image while the block runs; `shared` reads it although another qemu may be writing to it.

    SourceError where qemu-nbd is not installed or refuses the image, with its own words.
    """
    program = shutil.which("qemu-nbd")
    if program is None:
        raise SourceError(
            "qemu-nbd is needed to read qcow2 images", on=path, remedy="install it: apt-get install qemu-utils"
        )
    with tempfile.TemporaryDirectory(prefix="safehold-") as directory:
        socket = os.path.join(directory, "nbd")
        options = f"driver=qcow2,file.driver=file,file.filename={path.replace(',', ',,')}" + (
            ",force-share=on" if shared else ""
        )
        command = [program, "--read-only", "--persistent", "--shared=8", f"--socket={socket}", "--image-opts", options]
        with open(os.path.join(directory, "errors"), "w+b") as errors:
            server = subprocess.Popen(
                command,
                env=plain_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                preexec_fn=_die_with_parent,
            )
            try:
                client = _connect(server, socket, Path(errors.name), path)
                try:
                    yield Qcow2Blocks(client)
                finally:
                    client.close()
            finally:
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def _connect(server: subprocess.Popen[bytes], socket: str, errors: Path, path: str) -> NbdClient:
    """Wait until the server answers; SourceError with its words where it ends instead. Its socket is there before it has opened the image."""
    deadline = time.monotonic() + _START
    while True:
        try:
            return NbdClient(socket)
        except SourceError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                said = errors.read_text(errors="replace").strip().removeprefix("qemu-nbd: ") or str(error)
                raise SourceError(
                    f"qemu-nbd does not open the image ({said})", on=path, remedy="check the image: qemu-img check"
                ) from error
        time.sleep(0.01)
