"""The process that serves volumes: its sockets, and the orders it takes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import msgspec

from safehold.adapters.image.topology import detect
from safehold.adapters.linux.attach import attachments
from safehold.adapters.linux.descriptors import many_descriptors
from safehold.adapters.linux.reconnector import Reconnector
from safehold.app.host import this_host
from safehold.app.opening import Credentials, open_vault
from safehold.app.volumes import SnapshotRequest, VolumeService
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot, VolumeRecord
from safehold.blocks.recycle_bin import Deleted
from safehold.blocks.server import NbdServer
from safehold.compose.absence import BEAT, Absences
from safehold.compose.paths import Paths
from safehold.compose.rooted import work_in_root
from safehold.compose.wiring import open_stores, places
from safehold.model.consistency import Consistency
from safehold.model.context import CancelToken, Context
from safehold.model.errors import FailedError, UsageError
from safehold.model.halting import HaltingClock
from safehold.model.quiet import Quieted
from safehold.model.shown import in_words
from safehold.model.topology import Topology
from safehold.objects.location import rooted
from safehold.ports.blocks import Blocks
from safehold.vault.vault import Vault
from safehold.wire.control import ControlServer

__all__ = ["Orders", "serve_volumes"]

_OTHER_VERSION = (
    "restart the volume service, which may be of another version: safehold volume stop && safehold volume list"
)
"""What a command line that is of the service's version never asks for."""


@many_descriptors()
def serve_volumes(
    paths: Paths, credentials: Callable[[], Credentials], ready: Callable[[], None], ctx: Context
) -> None:
    """Serve this machine's volumes until the run is cancelled, in the root directory. FailedError where another process does.

    `credentials` opens vaults, asked anew each time; `ready` is called once clients can connect.
    """

    halt = CancelToken()
    patience = HaltingClock(ctx.clock, halt)
    # A commit that is tried again, too: whether there is a point is asked the next time.
    waiting = replace(ctx, clock=patience)
    before = work_in_root(os.environ)

    def vault(address: str) -> Vault:
        # On record may be one that was relative to where an earlier program was started.
        return open_vault(open_stores(rooted(address, before), patience), credentials(), places(paths), waiting)

    try:
        paths.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FailedError(
            f"cannot be made ({error.strerror})", on=str(paths.run), remedy="check the directory that it is to be in"
        ) from error
    host = this_host(paths.state)
    directory = VolumeDirectory(paths.volumes, host.boot, ctx.clock, ctx.progress.warn)
    for name, problem in directory.broken.items():
        ctx.progress.warn(f"volume {name} cannot be opened: {problem}")
    service = VolumeService(directory, vault, host, _on_device, ctx)
    # Before anybody can ask for what is missing.
    service.start()
    exports = NbdServer(str(paths.volume_exports), directory, progress=ctx.progress)
    reconnector = Reconnector(lambda: attachments(paths.attached), paths.volume_exports, ctx.progress)
    absences = Absences(paths.run)
    orders = Orders(service, exports.processes, reconnector.problem, ctx.cancel.cancel)
    control = ControlServer(paths.volume_control, orders.answer, _log)
    try:
        absences.begin(attachments(paths.attached))
        reconnector.start()
        ready()
        while not ctx.cancel.wait(BEAT):
            absences.beat()
    finally:
        control.close()
        reconnector.stop()
        # A device gives up half a minute after it was hung up on: whatever may take longer comes before that. Nobody is told of a failure that
        # is only due to the halt, for clients ask again.
        exports.hold()
        halt.cancel()
        exports.rest()
        service.rest()
        directory.put_away()
        exports.stop()
        directory.close()


def _log(error: Exception) -> None:
    """For whoever is to find out what went wrong; standard error is the service's log."""
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


def _on_device(blocks: Blocks) -> Topology:
    return detect(blocks, "volume")


class Orders:
    """Carries out what the command line asks the service for."""

    def __init__(
        self,
        service: VolumeService,
        processes: Callable[[str], Collection[int]],
        device: Callable[[str], str],
        stop: Callable[[], None],
    ) -> None:
        """`processes` gives the clients of a volume, `device` what is wrong with its device, `stop` asks the process to end."""
        self._service = service
        self._processes = processes
        self._device = device
        self._stop = stop
        self._verbs: dict[str, Callable[[Mapping[str, object]], object]] = {
            "ping": lambda order: {"pid": os.getpid()},
            "stop": lambda order: self._stop(),
            "create": self._create,
            "list": self._list,
            "show": lambda order: self._volume(self._service.directory.get(_text(order, "name"))),
            "delete": lambda order: self._service.delete(_text(order, "name")),
            "delete-for-good": self._delete_for_good,
            "undelete": lambda order: self._volume(self._service.undelete(_text(order, "name"))),
            "resize": lambda order: self._volume(self._service.resize(_text(order, "name"), _number(order, "size"))),
            "snapshot": self._snapshot,
            "vouch": self._vouch,
            "discard": lambda order: self._service.discard(_text(order, "id"), _text(order, "why")),
            "find": self._find,
        }

    def answer(self, order: Mapping[str, object]) -> Mapping[str, object]:
        """See `wire.control.ControlServer`."""
        verb = self._verbs.get(_text(order, "verb"))
        if verb is None:
            raise UsageError(
                "the volume service does not know this order", on=_text(order, "verb"), remedy=_OTHER_VERSION
            )
        try:
            return {"result": verb(order)}
        except OSError as error:
            # What fails on a file that is open does not say on which.
            where = error.filename or self._service.directory.root
            raise FailedError(
                f"the volume service could not do this ({in_words(error)})", on=str(where), remedy=_mended(error, where)
            ) from error
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            raise UsageError(
                f"not an order that can be carried out ({error})", on=_text(order, "verb"), remedy=_OTHER_VERSION
            ) from error

    def _create(self, order: Mapping[str, object]) -> object:
        held = self._service.create(
            _text(order, "name"), _number(order, "size"), _text(order, "vault"), _text(order, "origin")
        )
        return self._volume(held)

    def _list(self, order: Mapping[str, object]) -> object:
        directory = self._service.directory
        return {
            # All snapshots of many volumes would be longer than an answer may be.
            "volumes": [self._volume(held) | {"snapshots": _last(held)} for held in directory.all()],
            "busy": directory.busy,
            "broken": {name: str(error) for name, error in directory.broken.items()},
            "deleted": [_deleted(entry) for entry in directory.bin.entries()],
            "waiting": list(self._service.waiting),
        }

    def _delete_for_good(self, order: Mapping[str, object]) -> object:
        return [_deleted(entry) for entry in self._service.delete_for_good(_text(order, "name"))]

    def _snapshot(self, order: Mapping[str, object]) -> object:
        names = _names(order, "names")
        asked = _levels(order, "asked")
        if not asked.keys() <= set(names):
            raise UsageError("not levels of these volumes", on="asked", remedy=_OTHER_VERSION)
        request = SnapshotRequest(names, asked, _texts(order, "tags"), _flag(order, "vouching"))
        return _snapshot(self._service.snapshot(request))

    def _vouch(self, order: Mapping[str, object]) -> object:
        quiet = msgspec.convert(order.get("quiet"), dict[str, tuple[Quieted, ...]])
        for one in itertools.chain.from_iterable(quiet.values()):
            Consistency.parse(one.achieved)
        self._service.vouch(_text(order, "id"), _levels(order, "achieved"), quiet)
        return None

    def _find(self, order: Mapping[str, object]) -> object:
        found = self._service.find(_text(order, "id"))
        return [
            {"volume": held.name, "problem": self._problem(held), **_snapshot(snapshot)} for held, snapshot in found
        ]

    def _problem(self, held: HeldVolume) -> str:
        return "; ".join(filter(None, (self._service.problem(held), self._device(held.name))))

    def _volume(self, held: HeldVolume) -> dict[str, object]:
        record = held.record
        return {
            **_record(record),
            "deleted": 0.0,
            "missing": min(held.missing * record.block, record.size),
            "clients": held.clients,
            "processes": sorted(self._processes(held.name)),
            "read_only": held.volume.read_only,
            "problem": self._problem(held),
            "directory": str(held.files.directory),
            "snapshots": [_snapshot(snapshot) for snapshot in record.snapshots],
        }


def _mended(error: OSError, where: object) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"make room there, which df -h {where} shows, and try again; nothing was lost"
    return "see that the disk below can be written to, and what the kernel says of it (dmesg); nothing was lost"


def _last(held: HeldVolume) -> list[dict[str, object]]:
    return [_snapshot(snapshot) for snapshot in held.record.snapshots[-1:]]


def _record(record: VolumeRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "uuid": record.uuid,
        "size": record.size,
        "block": record.block,
        "vault": record.vault,
        "created": record.created,
        "origin": record.origin,
        "last_point": record.lineage.point if record.lineage else "",
        "suspect": record.suspect,
    }


def _deleted(entry: Deleted) -> dict[str, object]:
    """A volume in the recycle bin; of one whose record cannot be read little is known."""
    known = {"name": entry.name} if entry.record is None else _record(entry.record)
    return {**known, "deleted": entry.when, "entry": entry.place.name, "problem": entry.problem}


def _snapshot(snapshot: Snapshot) -> dict[str, object]:
    return {
        "id": snapshot.id,
        "state": str(snapshot.state),
        "durable": snapshot.durable,
        "taken": snapshot.taken[1],
        "pause": snapshot.taken[1] - snapshot.taken[0],
        "achieved": snapshot.achieved,
        "brackets": [one.bracket for one in snapshot.quiet],
        "group": list(snapshot.group),
        "point": snapshot.point,
        "snapshot_problem": snapshot.problem,
        "compared_everything": snapshot.full,
        "read": snapshot.read,
        "stored": snapshot.stored,
    }


def _text(order: Mapping[str, object], key: str) -> str:
    return _checked(order.get(key, ""), key)


def _checked(value: object, key: str) -> str:
    """What is to be on record as a text has to be one, and none that JSON alone can write."""
    if not isinstance(value, str):
        raise UsageError("not a text", on=key, remedy=_OTHER_VERSION)
    if not value.isascii() and value != value.encode(errors="ignore").decode():
        raise UsageError(f"no text in UTF-8: {value}", on=key, remedy="write it in UTF-8")
    return value


def _names(order: Mapping[str, object], key: str) -> list[str]:
    value = order.get(key)
    names = [_checked(name, key) for name in value] if isinstance(value, list) else []
    if not names or not all(names) or len(set(names)) < len(names):
        raise UsageError("not names of volumes, each of them once", on=key, remedy=_OTHER_VERSION)
    return names


def _texts(order: Mapping[str, object], key: str) -> dict[str, str]:
    value = order.get(key, {})
    if not isinstance(value, dict) or "" in value:
        raise UsageError("not a text for each name", on=key, remedy=_OTHER_VERSION)
    return {_checked(name, key): _checked(text, key) for name, text in value.items()}


def _levels(order: Mapping[str, object], key: str) -> dict[str, Consistency]:
    return {name: Consistency.parse(level) for name, level in _texts(order, key).items()}


def _number(order: Mapping[str, object], key: str) -> int:
    value = order.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError("not a number", on=key, remedy=_OTHER_VERSION)
    return value


def _flag(order: Mapping[str, object], key: str) -> bool:
    value = order.get(key, False)
    if not isinstance(value, bool):
        raise UsageError("not a yes or no", on=key, remedy=_OTHER_VERSION)
    return value
