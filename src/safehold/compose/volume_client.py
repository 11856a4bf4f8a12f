"""The command line's side of the volume service: orders to it, and devices made of what it serves."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from safehold.adapters.linux import attach as devices
from safehold.adapters.linux.attachment import RECONNECT, Attachment
from safehold.compose.absence import Absences
from safehold.compose.paths import Paths
from safehold.model.context import Context
from safehold.model.errors import FailedError, SafeholdError, UsageError
from safehold.wire.control import ServiceAbsent, ServiceLost, ask

__all__ = ["VolumeClient"]

_PATIENCE = 600.0
"""Seconds that an order may take: making a volume of a point reads the point's whole map."""

_LOOK = 5.0
"""Seconds for an order that only looks."""

_START = 20.0
"""Seconds until a service that was started has to answer."""

_SECRET = 3
"""The descriptor on which a service that is started finds a passphrase."""

_STOP = 60.0
"""Seconds that a service may take to put its volumes away."""


_QUESTIONS = ("find", "list", "show")
"""Orders that change nothing."""


class VolumeClient:
    """Talks to the volume service of this user; starts it where it does not run."""

    def __init__(self, paths: Paths, environment: Mapping[str, str], ctx: Context) -> None:
        """`environment` is what a service that has to be started gets, with what opens the vault."""
        self._paths, self._environment, self._ctx = paths, dict(environment), ctx

    @property
    def exports(self) -> str:
        """Where the service speaks NBD, as a URI without the volume's name."""
        return f"nbd+unix:///{{}}?socket={self._paths.volume_exports}"

    def order(self, verb: str, **arguments: object) -> Any:
        """What the service answers to an order. SafeholdError as the service raised it."""
        question = {"verb": verb, **arguments}
        try:
            return ask(self._paths.volume_control, question, _PATIENCE)["result"]
        except ServiceAbsent:
            self._start()
        except ServiceLost:
            # One that is being killed still takes connections. A mere question can be asked twice.
            if verb not in _QUESTIONS or self.running():
                raise
            self._start()
        return ask(self._paths.volume_control, question, _PATIENCE)["result"]

    def running(self) -> bool:
        """True where the service answers."""
        try:
            ask(self._paths.volume_control, {"verb": "ping"}, _LOOK)
        except (ServiceAbsent, ServiceLost):
            return False
        return True

    def problems(self) -> list[str]:
        """What somebody should look at; asks a service that runs, and starts none."""
        found = []
        try:
            told = ask(self._paths.volume_control, {"verb": "list"}, _LOOK)["result"]
        except ServiceAbsent:
            return [
                f"volume {one.volume} is {one.device}{f' on {one.mount}' if one.mount else ''}, and nobody serves it: its requests wait "
                f"{RECONNECT} seconds and then fail → safehold volume serve"
                for one in self.attachments().values()
                if not devices.dead(one)
            ] + self._problems_of_devices()
        except SafeholdError as error:
            return [f"volumes cannot be looked at: {error}", *self._problems_of_devices()]
        found += [f"volume {one['name']}: {one['problem']}" for one in told["volumes"] if one["problem"]]
        found += self._problems_of_devices()
        found += [
            f'volume {name} cannot be opened: {why} → see the runbook, "A volume cannot be opened"'
            for name, why in told["broken"].items()
        ]
        found += [
            f"volume {name} is gone, and its point is still kept for it, as the vault could not be told; it will be once that can be reached → "
            "see volumes.log in the state directory, or the unit's journal"
            for name in told.get("waiting", ())
        ]
        return found + [
            f"volume {one['name']} in the recycle bin is damaged ({one['problem']}) → "
            f"safehold volume delete {one['entry']} --for-good"
            for one in told["deleted"]
            if one.get("problem")
        ]

    def stop(self) -> None:
        """Return when the service has ended. ServiceAbsent where it does not run, FailedError where it does not end."""
        process = int(ask(self._paths.volume_control, {"verb": "ping"}, _LOOK)["result"]["pid"])
        ask(self._paths.volume_control, {"verb": "stop"}, _LOOK)
        end = time.monotonic() + _STOP
        # It listens no longer long before its volumes are put away, and the next service cannot have them before.
        while _lives(process):
            if time.monotonic() > end:
                raise FailedError("the volume service does not end", on=f"process {process}", remedy="see its log")
            time.sleep(0.05)

    def _start(self) -> None:
        self._paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self._paths.state / "volumes.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        environment = dict(self._environment)
        secret = environment.pop("SAFEHOLD_PASSPHRASE", None)
        with contextlib.ExitStack() as stack:
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            if secret is not None:
                memory = _in_memory(os.fsencode(secret))
                stack.callback(os.close, memory)
                actions.append((os.POSIX_SPAWN_DUP2, memory, _SECRET))
                environment["SAFEHOLD_PASSPHRASE_FILE"] = f"/proc/self/fd/{_SECRET}"
            # Not a child that anybody waits for: it outlives this run.
            process = os.posix_spawn(
                sys.executable,
                # Whatever lies in the directory in which this run was started (-P) is no part of the program.
                [sys.executable, "-P", "-m", "safehold", "volume", "serve"],
                environment,
                file_actions=actions,
                setsid=True,
            )
        end = time.monotonic() + _START
        while not self.running():
            ended, _ = os.waitpid(process, os.WNOHANG)
            if ended or time.monotonic() > end:
                raise FailedError(
                    f"the volume service did not start: {_last_line(log)}",
                    on=str(log),
                    remedy="start it: safehold volume serve",
                )
            time.sleep(0.05)
        self._ctx.progress.note(f"the volume service was started (process {process}, log {log})")

    # -- devices -----------------------------------------------------------------------------------------------------

    def attachments(self) -> dict[str, Attachment]:
        """What is attached to this machine, by volume, on record or not."""
        found = {name: one for name, one in self._unrecorded().items() if one.device}
        return found | {one.volume: one for one in devices.attachments(self._paths.attached)}

    def _unrecorded(self) -> dict[str, Attachment]:
        names = [path.name for path in self._paths.volumes.glob("*")]
        return {one.volume: one for one in devices.unrecorded(self._paths.attached, names)}

    def _problems_of_devices(self) -> list[str]:
        problems = self.device_problems()
        # Where the device is there, that is told instead.
        lost = {name: path for name, path in devices.unreadable(self._paths.attached).items() if name not in problems}
        return [f"volume {name}: {why}" for name, why in problems.items()] + [
            f"volume {name}: what is on record of it as a device cannot be read, and there is none → remove {path}"
            for name, path in lost.items()
        ]

    def device_problems(self) -> dict[str, str]:
        """What somebody should know of the devices that volumes are, by volume, of those where there is something."""
        recorded = {one.volume: self._problem(one) for one in devices.attachments(self._paths.attached)}
        stray = {name: _stray_problem(one) for name, one in self._unrecorded().items()}
        return {name: why for name, why in {**recorded, **stray}.items() if why}

    def _problem(self, one: Attachment) -> str:
        if not devices.dead(one):
            return Absences(self._paths.run).problem(one)
        where = one.device + (f" on {one.mount}" if one.mount else "")
        return f"{where} gives errors, for its storage daemon is gone → safehold volume detach {one.volume}"

    def demand_detached(self, name: str, what: str) -> None:
        """UsageError where a volume is a device of this machine. The service does not know of one that waits for it."""
        one = self.attachments().get(name)
        if one is not None:
            raise UsageError(
                f"the volume is attached as {one.device} and cannot be {what}",
                on=name,
                remedy=f"first: safehold volume detach {name}",
            )

    def attach(self, name: str, place: str | None = None, options: str = "") -> Attachment:
        """Make a device of a volume, and mount it."""
        self.order("show", name=name)
        try:
            made = devices.attach(self._paths.attached, self._paths.volume_exports, name)
        except FailedError:
            self._demand_still_there(name)
            raise
        if place is None:
            return made
        try:
            return devices.mount(self._paths.attached, made, place, options)
        except BaseException:
            # It may be mounted by now: an interrupt comes at any time.
            with contextlib.suppress(SafeholdError, OSError):
                placed = msgspec.structs.replace(made, mount=os.path.realpath(place))
                devices.detach(self._paths.attached, placed)
            raise

    def _demand_still_there(self, name: str) -> None:
        """UsageError where a volume went meanwhile, which is the reason for all that failed then. What else is wrong with it is told already."""
        with contextlib.suppress(FailedError):
            ask(self._paths.volume_control, {"verb": "show", "name": name}, _LOOK)

    def detach(self, name: str) -> Attachment:
        """Unmount a volume where it was mounted by `attach`, and take its device away."""
        made = self._unrecorded().get(name) or self.found(name)
        devices.detach(self._paths.attached, made)
        return made

    def end_left(self, name: str) -> None:
        """Where only the daemon is there of a volume's device, by an attach or a detach that was killed, end it."""
        left = self._unrecorded().get(name)
        if left is not None and not left.device:
            devices.detach(self._paths.attached, left)

    def demand_unused(self, name: str) -> None:
        """FailedError where somebody has the device of a volume besides who mounted it."""
        devices.demand_unused(self.found(name))

    def mount(self, name: str, place: str, options: str) -> None:
        """Mount a volume that is attached."""
        devices.mount(self._paths.attached, self.found(name), place, options)

    def unmount(self, name: str, place: str) -> None:
        """Unmount a volume from `place`, where it is mounted there; it stays attached."""
        devices.unmount(self._paths.attached, self.found(name), place)

    def found(self, name: str) -> Attachment:
        """The attachment of a volume. UsageError where it is not attached."""
        try:
            return self.attachments()[name]
        except KeyError:
            raise UsageError(
                "the volume is not attached", on=name, remedy="safehold volume list shows what is"
            ) from None


def _stray_problem(stray: Attachment) -> str:
    places = devices.mounted_on(stray.device)
    what = f"{stray.device}{f', mounted on {places[0]},' if places else ''}" if stray.device else "a storage daemon"
    first = f"umount {places[0]}, then " if places else ""
    return f"{what} is there of it, and nothing of that is on record → {first}safehold volume detach {stray.volume}"


def _lives(process: int) -> bool:
    """True while a process has not ended. One that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _in_memory(secret: bytes) -> int:
    """A file without a name that holds a secret: what is in the environment of a service goes on to all that it starts."""
    memory = os.memfd_create("passphrase")
    os.fchmod(memory, 0o600)
    os.write(memory, secret)
    return memory


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
