"""One client of the NBD server: bytes from its socket to requests, and the threads that carry them out."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable

from safehold.blocks.execution import SHORT, Execution
from safehold.blocks.negotiating import negotiate
from safehold.blocks.slow_lane import Changing, SlowLane
from safehold.model.progress import Progress
from safehold.ports.export import ExportDirectory
from safehold.wire import nbd_protocol as nbd
from safehold.wire.nbd_handshake import Agreed
from safehold.wire.nbd_outlet import Outlet
from safehold.wire.nbd_replies import Replies, room_for
from safehold.wire.peer import peer_process

__all__ = ["Connection"]

_GLANCE = 64 * 1024
"""Bytes asked of the socket without knowing what comes: many small requests, and not much of the payload of a large one,
of which the rest is received in one piece to where it stays."""
_USUAL = 1024 * 1024 + _GLANCE
"""Size in bytes of the buffer that a connection keeps; longer payloads get one of their own while they are carried out."""
_DURABLE, _FAR, _WIDE = 2, 4, 1
"""Threads of one connection for requests that wait for durability, for those that wait for a vault, and for long zeroing: who flushes does not wait
for a vault that is away, nor does who zeroes.
"""
_LATE_PAYLOAD = 256 * 1024
"""Bytes of a write that are kept while it waits for the vault beside the loop, small as writes of parts of a sector are; the loop waits for longer
ones, and with it what comes behind them.
"""
_STEP = 32 * 1024 * 1024
"""Bytes that are trimmed or zeroed at once, as many as a write may have; more is done in such steps beside the loop, as it may come to writing zeros.
"""
_LONG = 0.05
"""Seconds after which the loop sees whether its client is still there before it changes anything more."""
_UNDERWAY = 2 * 1024 * 1024
"""Bytes of replies that the kernel is asked to hold (socket(7): SO_SNDBUF, up to wmem_max), so that reading for the next
request goes on while the client takes the last."""
_SOON = 0.002
_HEADER = nbd.REQUEST.size
_unpack = nbd.REQUEST.unpack_from


class Connection:
    """Serves one client on the thread that calls `serve`. `hold`, `rest`, `stop` and `cut` may be called from any thread.

    Requests are carried out in the order in which they come, except for those that have to wait (flushes, FUA, reads that are not `ready`, changes
    of parts of blocks that are not, long zeroing): a few threads do those, so replies come in any order, as the protocol allows.

    Nothing is changed any more for a client that has hung up, once that was seen: it may have sent the same request again by another connection,
    and others after it.
    """

    def __init__(
        self,
        client: socket.socket,
        directory: ExportDirectory,
        patience: float,
        progress: Progress,
        outlast: Callable[[Connection], None],
        refusal: str = "",
    ) -> None:
        """`patience` in seconds is the time for the whole negotiation. `outlast` is called before the first request is taken, and returns when
        nothing changes the export any more for clients that are gone. `refusal` says why this client gets no export at all, if it does not.
        """
        self._socket = client
        self._outlet = Outlet(client)
        self._directory = directory
        self._patience = patience
        self._progress = progress
        self._outlast = outlast
        self.refusal = refusal
        """Why it gets nothing, or nothing."""
        self._stopping = self._parting = self._parted = self._busy = False
        self._end = threading.Event()
        self._lanes: tuple[SlowLane, ...] = ()
        self._flush: Callable[[], object] = lambda: None
        self._changing = Changing()
        self.export = ""
        """The name of what it uses, or nothing before that is settled."""
        self.process = peer_process(client)
        """The client's process."""

    def serve(self) -> None:
        """Return when the client has left, broken the protocol or been stopped, and nothing of it is under way."""
        try:
            agreed = negotiate(self._socket, self._directory, self._patience, self.refusal)
            if agreed is None:
                return
            self.export = agreed.name
            try:
                self._transmit(agreed)
            finally:
                self._directory.release(agreed.name)
        except OSError:
            pass
        finally:
            self._socket.close()

    def hold(self) -> None:
        """Carry out no more requests: what is under way ends, what comes besides is not answered, and neither is what cannot wait for a vault any
        more. A client that reconnects sends again what has no answer; one with an error it would pass on.

        It is not hung up on before `stop`: until then it waits for as long as it takes.
        """
        self._stopping = True

    def rest(self, deadline: float) -> None:
        """Return when nothing is under way and what was answered is durable, after `hold`. A client that takes no replies is cut off from then on
        (time.monotonic); one that waits for what it asked for is not.
        """
        while self._busy:
            if time.monotonic() > deadline and self._outlet.stalled:
                self.cut()
            time.sleep(_SOON)
        for lane in self._lanes:
            lane.drain(deadline)
        self._flush()

    def stop(self) -> None:
        """Hang up once nothing is under way."""
        self._stopping = True
        self._end.set()
        self._shut(socket.SHUT_RD)

    def gone(self) -> bool:
        """True where the client has hung up: nobody waits for replies. One that sends nothing more and still listens is there."""
        with contextlib.suppress(OSError, ValueError):
            line = select.poll()
            line.register(self._socket, 0)
            return bool(line.poll(0))
        return True

    def end_changes(self) -> None:
        """Return when nothing is changed any more for this client, which is gone. What it still asks for is not carried out."""
        self._changing.end()
        self._changing.wait()

    def cut(self) -> None:
        """Give up a client that does not take its replies."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, direction: int) -> None:
        try:
            self._socket.shutdown(direction)
        except OSError:
            pass

    # -- transmission ------------------------------------------------------------------------------------------------

    def _transmit(self, agreed: Agreed) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNDERWAY)
        execution = Execution(agreed.export, agreed.name, agreed.context, self._progress)
        outlet = self._outlet
        replies = Replies(outlet, agreed.structured)
        durable, far, wide = (
            SlowLane(threads, outlet, agreed.structured, self.cut) for threads in (_DURABLE, _FAR, _WIDE)
        )
        self._lanes = durable, far, wide
        if not agreed.export.read_only:
            self._flush = execution.flush
        try:
            self._await_request()
            self._outlast(self)
            with self._changing.begun() as allowed:
                if allowed:
                    self._loop(agreed, execution, replies)
        finally:
            self._busy = False
            self._parted = True
            if not self._heard():
                self._changing.end()
            far.close()
            wide.close()
            self._changing.end()
            durable.close()
            # They refer to this object: in a circle the export's files stay open until the garbage collector comes along.
            self._lanes, self._flush = (), lambda: None

    def _await_request(self) -> None:
        line = select.poll()
        line.register(self._socket, select.POLLIN)
        line.poll()

    def _loop(self, agreed: Agreed, execution: Execution, replies: Replies) -> None:
        """Receive, carry out all that has come whole, send the replies together, and only then wait for more."""
        ready, refusal, read, write = agreed.export.ready, execution.refusal, execution.read, execution.write
        read_short, size = execution.read_short, agreed.export.size
        part = agreed.export.block_size - 1
        durable, far, wide = self._lanes
        changing, now = self._changing, time.monotonic
        usual = room_for(_USUAL)
        buffer, at, end = usual, 0, 0
        looked = now()
        while True:
            needed = _HEADER
            while end - at >= _HEADER:
                magic, flags, command, cookie, offset, length = _unpack(buffer, at)
                if magic != nbd.REQUEST_MAGIC:
                    return
                start = at + _HEADER
                if command == nbd.CMD_WRITE:
                    if length > nbd.LARGEST_PAYLOAD:
                        return
                    needed = _HEADER + length
                    if end - at < needed:
                        break
                    at += needed
                    needed = _HEADER
                else:
                    at = start
                    if command == nbd.CMD_DISC:
                        self._parting = True
                        replies.flush()
                        return
                if self._stopping:
                    self._park(replies)
                    return
                # What most requests are, by the shortest way: all that follows would come to the same.
                if command == nbd.CMD_READ and not flags and 0 < length < SHORT and offset + length <= size:
                    if not read_short(cookie, offset, length, replies):
                        far.add(replies, self._late_read(execution, flags, cookie, offset, length))
                    continue
                error = refusal(flags, command, offset, length)
                if error:
                    if command == nbd.CMD_READ or command == nbd.CMD_BLOCK_STATUS:
                        replies.failed(cookie, error)
                    else:
                        replies.done(cookie, error)
                elif command == nbd.CMD_READ:
                    if ready(offset, length):
                        read(flags, cookie, offset, length, replies)
                    else:
                        far.add(replies, self._late_read(execution, flags, cookie, offset, length))
                elif command == nbd.CMD_BLOCK_STATUS:
                    execution.status(flags, cookie, offset, length, replies)
                elif command == nbd.CMD_FLUSH:
                    self._changed(execution, nbd.CMD_FLAG_FUA, cookie, 0, replies, durable)
                elif command == nbd.CMD_CACHE:
                    far.add(replies, self._late_fetch(execution, cookie, offset, length))
                else:
                    if (offset | length) & part and not ready(offset, length):
                        if command != nbd.CMD_WRITE or length <= _LATE_PAYLOAD:
                            data = bytes(buffer[start : start + length]) if command == nbd.CMD_WRITE else b""
                            far.add(replies, self._late_change(execution, flags, command, cookie, offset, length, data))
                            continue
                        replies.flush()
                        error = execution.prepare(offset, length)
                        if self._stopping:
                            self._park(replies)
                            return
                    elif length > _STEP and command != nbd.CMD_WRITE:
                        wide.add(replies, self._late_change(execution, flags, command, cookie, offset, length, b""))
                        continue
                    if now() - looked > _LONG:
                        if self.gone():
                            return
                        looked = now()
                    if changing.ended:
                        return
                    if error:
                        pass  # what it needs could not be fetched
                    elif command == nbd.CMD_WRITE:
                        error = write(offset, buffer[start : start + length])
                    else:
                        error = execution.clear(flags, command, offset, length)
                    self._changed(execution, flags, cookie, error, replies, durable)
            replies.flush()
            buffer, at, end = _make_room(usual, buffer, at, end, needed)
            self._busy = False
            if needed > end - at + _GLANCE:
                got = self._socket.recv_into(buffer[end:], at + needed - end, socket.MSG_WAITALL)
            else:
                got = self._socket.recv_into(buffer[end:], _GLANCE)
            if not got:
                return
            self._busy = True
            end += got
            looked = now()

    def _park(self, replies: Replies) -> None:
        """Leave the client waiting until it is hung up on: what it sends stays in the socket."""
        replies.flush()
        self._busy = False
        self._end.wait()

    def _changed(
        self, execution: Execution, flags: int, cookie: int, error: int, replies: Replies, durable: SlowLane
    ) -> None:
        """Answer a change; with FUA, once it is durable."""
        if error or not flags & nbd.CMD_FLAG_FUA:
            replies.done(cookie, error)
        else:
            durable.add(replies, lambda late: late.done(cookie, execution.flush()))

    def _late_read(
        self, execution: Execution, flags: int, cookie: int, offset: int, length: int
    ) -> Callable[[Replies], None]:
        def read(late: Replies) -> None:
            if not self._parted and not self._stopping:
                execution.read(flags, cookie, offset, length, late)
            if self._stopping and late.failure:
                late.drop()

        return read

    def _late_fetch(self, execution: Execution, cookie: int, offset: int, length: int) -> Callable[[Replies], None]:
        def fetch(late: Replies) -> None:
            if not self._parted and not self._stopping:
                execution.fetch(cookie, offset, length, late)
            if self._stopping:
                late.drop()

        return fetch

    def _late_change(
        self, execution: Execution, flags: int, command: int, cookie: int, offset: int, length: int, data: bytes
    ) -> Callable[[Replies], None]:
        def change(late: Replies) -> None:
            if self._changing.ended or self._stopping:
                return
            error = execution.prepare(offset, length)
            with self._changing.begun() as allowed:
                # Without an answer: a client that reconnects sends its request again.
                if not allowed or self._stopping or not self._heard():
                    return
                if not error and command == nbd.CMD_WRITE:
                    error = execution.write(offset, memoryview(data))
                elif not error:
                    cleared = self._clear(execution, flags, command, offset, length)
                    if cleared is None:
                        return
                    error = cleared
            if not error and flags & nbd.CMD_FLAG_FUA:
                error = execution.flush()
            late.done(cookie, error)

        return change

    def _clear(self, execution: Execution, flags: int, command: int, offset: int, length: int) -> int | None:
        """In steps that begin where a block does; the error number of the one that failed, None where somebody ended it before it was done."""
        end, error = offset + length, 0
        while offset < end and not error:
            if self._changing.ended or self._stopping:
                return None
            stop = min((offset // _STEP + 1) * _STEP, end)
            error = execution.clear(flags, command, offset, stop - offset)
            offset = stop
        return error

    def _heard(self) -> bool:
        """True where what was asked for counts: the client is there, or took its leave, which does not take back what it had asked for before."""
        return self._parting or not self.gone()


def _make_room(usual: memoryview, buffer: memoryview, at: int, end: int, needed: int) -> tuple[memoryview, int, int]:
    """A buffer with room for `needed` bytes of a request that begins at `at`, and where its bytes begin and end there."""
    waiting = end - at
    room = max(needed, waiting + _GLANCE)
    if at + room <= len(buffer) and (buffer is usual or waiting):
        return (buffer, at, end) if waiting else (buffer, 0, 0)
    target = usual if room <= len(usual) else room_for(room)
    target[:waiting] = buffer[at:end]
    return target, 0, waiting
