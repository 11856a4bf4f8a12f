"""A writer at work: chunks in, packs and index runs out, and one object whose creation commits it all.

W1 announce the session, W2 take the dedup view (`state`), W3 upload packs and, behind them, index runs, W4 create the
point. Everything a run speaks of is durable before the run is put; everything a point needs is durable before the
point is put.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import FencedError, ObjectExists, ObjectNotFound, SafeholdError, StoreFull, StoreUnavailable
from safehold.ports.store import Store
from safehold.vault.envelope import close, encode
from safehold.vault.index.view import ChunkIndex
from safehold.vault.names import Kind, commit_name, pack_name, run_name, session_name
from safehold.vault.node import Node, encode_node
from safehold.vault.pack import PackBuilder, PackRow
from safehold.vault.records import (
    Heartbeat,
    OwnerPublic,
    Parameters,
    PointBody,
    PointObject,
    RunPack,
    SessionInfo,
    SessionObject,
)
from safehold.vault.run import ROW_SIZE, encode_rows, store_run
from safehold.vault.sealing import ChunkSealer, SessionSecret, chunk_id, seal_body, seal_secret
from safehold.vault.writers import WriterKey

__all__ = ["LARGEST_CUT", "Lane", "Session", "SessionTotals"]

HEARTBEAT = 3600.0
"""Seconds between heartbeats: prune calls a session stale only after many of them are missing."""

_RUN_SECONDS = 120.0
_RUN_PACKS = 256
"""A run is put at the latest after this much time or this many packs, and sooner at the start of a session (see
`_run_due`).
"""

_RUN_ROWS = 1_000_000
"""… or once it has so many rows, 48 MB of them: readers take a run whole."""

_COMMIT_TRIES = 8
_COMMIT_WAIT = 1.0
"""Seconds before the second attempt to commit; doubled each time. Together about two minutes, then the run fails and
can be repeated.
"""

LARGEST_CUT = 4 * 1024 * 1024
"""Bytes of the largest chunk that is cut by content; a pack that has room at all has room for one."""

_SLACK = 1024 * 1024
"""Room behind a pack's target size for the table of contents."""

_BATCH = 1024
"""Ids looked up at once."""

_MAX_UPLOADS = 8
"""Uploads under way at once: each holds a pack buffer, and eight fill a 10 Gbit/s link at 60 ms."""

HOT = "hot"
"""The storage class of packs that can be read at once."""


@dataclass
class SessionTotals:
    """What a session added, in bytes: `new` plaintext, `stored` in the vault (packs, metadata and runs), and counts
    of both.
    """

    new: int = 0
    stored: int = 0
    chunks: int = 0
    packs: int = 0


class Session:
    """One backup's connection to the vault. Use as a context manager: leaving it without `commit` leaves no point
    behind, and where the store allows it no open session.
    """

    def __init__(
        self,
        store: Store,
        direct: Store,
        vault: bytes,
        writer: WriterKey,
        owner: OwnerPublic,
        certificate: bytes,
        parameters: Parameters,
        info: SessionInfo,
        ctx: Context,
        lanes: int,
    ) -> None:
        """`owner` are the keys in force, to which the session is sealed. `direct` is the same store without retries: a commit may be tried
        again only after the session was seen to exist.

        At most `lanes` threads hand in chunks at once; each may hold a data pack and a metadata pack open.
        """
        self._store, self._direct = store, direct
        self._vault, self._writer, self._certificate = vault, writer, certificate
        self._parameters = parameters
        self._index: ChunkIndex | None = None
        self._info = info
        self._ctx = ctx
        self.sid = os.urandom(16)
        self._secret = SessionSecret(writer.wid, self.sid, os.urandom(32), writer.dedup_key)
        self._key = seal_secret(vault, owner, self._secret)
        self.totals = SessionTotals()
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._claims: set[bytes] = set()
        self._open: dict[Kind, list[PackBuilder]] = {Kind.PACK: [], Kind.META: []}
        self._failure: BaseException | None = None
        self._uploads: deque[Future[None]] = deque()
        workers = max(2, min(store.caps.parallel, _MAX_UPLOADS))
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="upload")
        largest = max(parameters.block_size, LARGEST_CUT)
        self._buffers = _Buffers(workers + 2 * lanes, parameters.pack_size + largest + _SLACK)
        self._pending: list[tuple[RunPack, list[PackRow]]] = []
        self._runs = 0
        self._last_run = ctx.clock.monotonic()
        self._beats = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._announced = self._tried = False
        self._own_packs: set[str] = set()
        self._under_way = 0
        self.view_runs: frozenset[str] = frozenset()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._announced:
            self._heart.join()
            # Who has no patience, or no store that answers, leaves it to a prune.
            if (
                not self._tried
                and (error is None or isinstance(error, Exception))
                and not isinstance(error, StoreUnavailable)
            ):
                self._withdraw()

    def _withdraw(self) -> None:
        """Take back the announcement of a session that never tried to commit: no prune need wait for what cannot come any more. Where the store
        lets a writer delete nothing, it stays.
        """
        # The session object goes last: it alone tells whose process this was.
        with contextlib.suppress(SafeholdError):
            for beat in range(self._beats, -1, -1):
                self._direct.delete(session_name(self._writer.wid, self.sid, beat))

    def announce(self) -> None:
        """W1: create the session object and start its heartbeats. Comes before the dedup view is taken."""
        self._take_room(0)
        name = session_name(self._writer.wid, self.sid)
        sealed = seal_body(self._secret.session_key, self._vault, name, encode(self._info))
        self._put(name, encode(SessionObject(self._key, sealed)))
        self._announced = True
        self._heart.start()

    def use(self, index: ChunkIndex, runs: frozenset[str]) -> None:
        """W2: the dedup view, taken after `announce`, and the names of the runs in it; no chunk can be handed in
        before.
        """
        self._index = index
        self.view_runs = runs

    def overlap(self, rows: bytes | bytearray) -> int:
        """Stored bytes of the chunks in a run's 48-byte rows that this session stored too."""
        total = 0
        for at in range(0, len(rows), ROW_SIZE * _BATCH):
            batch = bytes(rows[at : at + ROW_SIZE * _BATCH])
            found = self._view().find_many([batch[n : n + 32] for n in range(0, len(batch), ROW_SIZE)])
            total += sum(location.stored for location in found if location and location.pack in self._own_packs)
        return total

    def _view(self) -> ChunkIndex:
        if self._index is None:
            raise RuntimeError("a session takes chunks only once it has a dedup view")
        return self._index

    def _put(self, name: str, payload: bytes) -> None:
        self._store.put(name, [close(self._vault, name, payload, self._writer.sign)])

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self._beats += 1
            name = session_name(self._writer.wid, self.sid, self._beats)
            try:
                self._put(name, encode(Heartbeat(self._beats)))
            except SafeholdError as error:
                self._ctx.progress.warn(f"heartbeat of this session could not be written ({error}); the run goes on")

    def lane(self) -> Lane:
        """A way in for one thread."""
        return Lane(self, ChunkSealer(self._vault, self._secret.session_key, self._parameters.compression))

    def put_node(self, lane: Lane, node: Node) -> bytes:
        """Store a metadata node; returns its id."""
        return lane.put(Kind.META, [memoryview(encode_node(node))])[0]

    def known(self, identities: Sequence[bytes]) -> list[int]:
        """For each chunk that this session may rely on its plain length; -1 for one that would have to be stored."""
        found = self._view().find_many(identities)
        return [-1 if location is None else location.plain for location in found]

    # -- called by lanes ---------------------------------------------------------------------------------------------

    def claim(self, identities: Sequence[bytes]) -> list[bool]:
        """For each id, whether the caller is to store it: true once for an id that is neither in the view nor
        claimed yet.
        """
        self._raise_failure()
        with self._claiming:
            # One lock over both: an uploaded chunk enters the index before it leaves the claims, so it is always in one of them.
            found = self._view().find_many(identities)
            mine = []
            for identity, location in zip(identities, found, strict=True):
                fresh = location is None and identity not in self._claims
                if fresh:
                    self._claims.add(identity)
                mine.append(fresh)
            return mine

    def take_pack(self, kind: Kind, plain: int) -> PackBuilder:
        """An open pack with room for a chunk of `plain` bytes; the caller alone has it until it is given back."""
        while True:
            with self._lock:
                builder = self._open[kind].pop() if self._open[kind] else None
            if builder is None:
                buffer = self._buffers.take(self._raise_failure)
                return PackBuilder(
                    kind, self._vault, self._key, self._secret.session_key, buffer, self._parameters.pack_size
                )
            if builder.fits(plain):
                return builder
            self._upload(builder)

    def give_pack(self, builder: PackBuilder) -> None:
        """Return an open pack."""
        with self._lock:
            self._open[builder.kind].append(builder)

    # -- uploads -----------------------------------------------------------------------------------------------------

    def _upload(self, builder: PackBuilder) -> None:
        with self._lock:
            while self._uploads and self._uploads[0].done():
                self._uploads.popleft()
            self._uploads.append(self._executor.submit(self._upload_pack, builder))

    def _upload_pack(self, builder: PackBuilder) -> None:
        size = 0
        try:
            data = builder.finish()
            self._take_room(len(data))
            size = len(data)
            name = pack_name(builder.kind, blake3(data).digest(), HOT)
            self._store.put(name, [data])
            data.release()
            pack = RunPack(name, size)
            self._view().add(pack, builder.rows)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._buffers.give(builder.buffer)
            with self._lock:
                self._under_way -= size
        with self._claiming:
            self._claims.difference_update(row.identity for row in builder.rows)
        with self._lock:
            self._pending.append((pack, builder.rows))
            self._own_packs.add(name)
            totals = self.totals
            totals.new += builder.plain_bytes
            totals.stored += size
            totals.packs += 1
            totals.chunks += len(builder.rows)
            due = self._run_due()
        if due:
            self._put_run()

    def _take_room(self, size: int) -> None:
        """StoreFull where that and what this session has under way would use up what is kept for giving space back. What is half written counts
        twice, and other sessions not at all: a pack or so either way.
        """
        with self._lock:
            if self._store.caps.room() < self._under_way + size:
                raise StoreFull(
                    "the store is full",
                    on=self._store.url,
                    remedy='make room: see the runbook, "Full vault"; what was uploaded is reused',
                )
            self._under_way += size

    def _run_due(self) -> bool:
        """True when the packs since the last run are as many as all before them (so little is lost when a young
        session dies).
        """
        waited = self._ctx.clock.monotonic() - self._last_run
        return (
            len(self._pending) >= min(_RUN_PACKS, max(1, len(self._own_packs) // 2))
            or sum(len(rows) for _, rows in self._pending) >= _RUN_ROWS
            or waited >= _RUN_SECONDS
        )

    def _put_run(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            if not pending:
                return
            number = self._runs
            self._runs += 1
            self._last_run = self._ctx.clock.monotonic()
        writer = self._writer
        name = run_name(writer.wid, self.sid, number)
        rows = encode_rows((n, row) for n, (_, pack_rows) in enumerate(pending) for row in pack_rows)
        packs = [pack for pack, _ in pending]
        stored = store_run(self._vault, name, writer.domain, writer.index_key, packs, rows, writer.sign)
        try:
            self._store.put(name, [stored])
        except BaseException as error:
            self._fail(error)
            raise
        with self._lock:
            self.totals.stored += len(stored)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._buffers.wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Upload every open pack, wait for all of them, and put the last run: all that was handed in is durable and
        found by others.
        """
        with self._lock:
            builders = [b for group in self._open.values() for b in group]
            for group in self._open.values():
                group.clear()
        for builder in builders:
            self._upload(builder)
        while self._uploads:
            self._uploads.popleft().result()
        self._raise_failure()
        self._put_run()

    # -- commit ------------------------------------------------------------------------------------------------------

    @property
    def point(self) -> str:
        """The object name of the point that this session may come to be."""
        return commit_name(self._writer.wid, self.sid)

    def commit(self, body: PointBody) -> str:
        """W4: create the point; returns its object name. FencedError where somebody ended this session in the
        meantime.
        """
        self.flush()
        if self._stop.is_set():
            raise RuntimeError("a session that was left has nothing to commit")
        name = self.point
        sealed = seal_body(self._secret.session_key, self._vault, name, encode(body))
        stored = close(self._vault, name, encode(PointObject(self._key, sealed, self._certificate)), self._writer.sign)
        self._commit_object(name, stored)
        return name

    def _commit_object(self, name: str, stored: bytes) -> None:
        # From here on a point may come to be, now or late: only a fence ends that.
        self._tried = True
        wait = _COMMIT_WAIT
        for attempt in range(_COMMIT_TRIES):
            try:
                self._direct.put(name, [stored])
                return
            except ObjectExists:
                there = self._store.get(name)
                if there == stored:
                    return
                raise self._fenced(name) from None
            except StoreUnavailable:
                self._ctx.clock.sleep(wait)
                wait *= 2
                if self._committed(name, stored):
                    return
                if attempt == _COMMIT_TRIES - 1:
                    raise
                try:
                    self._store.head(session_name(self._writer.wid, self.sid))
                except ObjectNotFound:
                    raise self._fenced(name) from None

    def _committed(self, name: str, stored: bytes) -> bool:
        """True where the attempt whose answer was lost was carried out all the same."""
        try:
            return self._store.get(name) == stored
        except ObjectNotFound:
            return False

    def _fenced(self, name: str) -> FencedError:
        return FencedError(
            "this session was ended by a prune that took it for dead",
            on=name,
            remedy="run the backup again: what was uploaded is reused",
        )


class Lane:
    """One thread's way into a session: chunks handed in here share compression state and packs with no other thread.

    Two threads at once in one lane would seal rubbish that nobody notices before a restore, so the second is refused with RuntimeError.
    """

    def __init__(self, session: Session, sealer: ChunkSealer) -> None:
        self._session = session
        self._sealer = sealer
        self._dedup_key = session._secret.dedup_key
        self._used = threading.Lock()

    def put(self, kind: Kind, pieces: Sequence[memoryview]) -> list[bytes]:
        """Store chunks that the vault does not hold yet; returns the id of each. The buffers are free again when it
        returns.
        """
        identities = [chunk_id(self._dedup_key, piece) for piece in pieces]
        self.put_known(kind, identities, pieces)
        return identities

    def put_known(self, kind: Kind, identities: Sequence[bytes], pieces: Sequence[memoryview]) -> None:
        """Like `put` for chunks whose ids the caller computed already."""
        session = self._session
        builder: PackBuilder | None = None
        if not self._used.acquire(blocking=False):
            raise RuntimeError("a lane is used by two threads at once")
        try:
            for identity, piece, mine in zip(identities, pieces, session.claim(identities), strict=True):
                if not mine:
                    continue
                if builder is None or not builder.fits(len(piece)):
                    if builder is not None:
                        session.give_pack(builder)
                    builder = session.take_pack(kind, len(piece))
                builder.add(self._sealer, identity, piece)
        finally:
            self._used.release()
            if builder is not None:
                session.give_pack(builder)


class _Buffers:
    """Pack buffers, made when first needed and then reused: their number bounds the memory of a session.

    They are anonymous maps, not byte arrays, because those start on a page and can be written to disk without a copy.
    """

    def __init__(self, count: int, size: int) -> None:
        self._size = size
        self._left = count
        self._free: list[mmap.mmap] = []
        self._changed = threading.Condition()

    def take(self, check: Callable[[], None]) -> mmap.mmap:
        """A buffer, waiting for one; `check` is called while waiting and may raise."""
        with self._changed:
            while not self._free:
                check()
                if self._left:
                    self._left -= 1
                    return mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._changed.wait()
            return self._free.pop()

    def give(self, buffer: mmap.mmap) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
