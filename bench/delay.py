"""A server further away: hands bytes to a server on this machine and back, each of its answers later.

python -m bench.delay PORT SECONDS        Prints the port to connect to, and goes on until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

_PIECE = 256 * 1024


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Whatever comes, in order and `delay` seconds later, however much is on its way."""
    loop = asyncio.get_running_loop()
    while piece := await reader.read(_PIECE):
        loop.call_later(delay, writer.write, piece) if delay else writer.write(piece)
    loop.call_later(delay, writer.close)


async def _serve(port: int, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, back, 0.0), _pass_on(there, writer, delay), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def further_away(port: int, delay: float) -> Iterator[int]:
    """The port of the server at `port` on the loopback, its answers `delay` seconds later; in a process of its own."""
    command = [sys.executable, "-m", "bench.delay", str(port), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        assert proxy.stdin is not None
        yield int(proxy.stdout.readline())
        proxy.stdin.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
