"""The command line's side of the volume service: orders to it, and devices made of what it serves."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safehold.adapters.linux import attach as devices
from safehold.adapters.linux.attach import Attachment
from safehold.compose.paths import Paths
from safehold.model.context import Context
from safehold.model.errors import FailedError, UsageError
from safehold.wire.control import ServiceAbsent, ask

__all__ = ["SwitchStep", "VolumeClient"]

_PATIENCE = 600.0
"""Seconds that an order may take: making a volume of a point reads the point's whole map."""

_START = 20.0
"""Seconds until a service that was started has to answer."""

_STOP = 60.0
"""Seconds that a service may take to put its volumes away."""


@dataclass(frozen=True)
class SwitchStep:
    """One step of a switch that was carried out, and how many seconds it took."""

    what: str
    seconds: float


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
            return ask(self._paths.volume_control, question, _PATIENCE)["result"]

    def running(self) -> bool:
        """True where the service answers."""
        try:
            ask(self._paths.volume_control, {"verb": "ping"}, 5.0)
        except ServiceAbsent:
            return False
        return True

    def problems(self) -> list[str]:
        """What somebody should look at; asks a service that runs, and starts none."""
        found = []
        try:
            told = ask(self._paths.volume_control, {"verb": "list"}, 5.0)["result"]
        except ServiceAbsent:
            return [
                f"volume {one.volume} is {one.device}{f' on {one.mount}' if one.mount else ''}, and nobody serves it: its requests wait "
                f"{devices.RECONNECT} seconds and then fail → safehold volume serve"
                for one in self.attachments().values()
            ]
        found += [f"volume {one['name']}: {one['problem']}" for one in told["volumes"] if one["problem"]]
        return found + [f"volume {name} cannot be opened: {why}" for name, why in told["broken"].items()]

    def stop(self) -> None:
        """Return when the service has ended. ServiceAbsent where it does not run, FailedError where it does not end."""
        process = int(ask(self._paths.volume_control, {"verb": "ping"}, 5.0)["result"]["pid"])
        ask(self._paths.volume_control, {"verb": "stop"}, 5.0)
        end = time.monotonic() + _STOP
        while Path(f"/proc/{process}").exists() and self.running():
            if time.monotonic() > end:
                raise FailedError("the volume service does not end", on=f"process {process}", remedy="see its log")
            time.sleep(0.05)

    def _start(self) -> None:
        self._paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self._paths.state / "volumes.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # Not a child that anybody waits for: it outlives this run.
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "safehold", "volume", "serve"],
            self._environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
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

    @property
    def _attached(self) -> Path:
        return self._paths.run / "attached"

    def attachments(self) -> dict[str, Attachment]:
        """What is attached to this machine, by volume."""
        return {one.volume: one for one in devices.attachments(self._attached)}

    def attach(self, name: str, place: str | None = None, options: str = "") -> Attachment:
        """Make a device of a volume, and mount it."""
        self.order("show", name=name)
        made = devices.attach(self._attached, self._paths.volume_exports, name)
        if place is None:
            return made
        try:
            return devices.mount(self._attached, made, place, options)
        except FailedError:
            devices.detach(self._attached, made)
            raise

    def detach(self, name: str) -> Attachment:
        """Unmount a volume where it was mounted by `attach`, and take its device away."""
        made = self._found(name)
        devices.detach(self._attached, made)
        return made

    def _found(self, name: str) -> Attachment:
        try:
            return self.attachments()[name]
        except KeyError:
            raise UsageError(
                "the volume is not attached", on=name, remedy="safehold volume list shows what is"
            ) from None

    def switch(self, old: str, new: str) -> list[SwitchStep]:
        """Put one volume in another's place: unmount, detach, attach, mount. Where a step fails, what was there before is put back.

        FailedError; its remedy says whether the old volume is in its place.
        """
        was = self._found(old)
        self.order("show", name=new)
        if new in self.attachments():
            raise UsageError("the volume is attached already", on=new, remedy=f"safehold volume detach {new}")
        steps: list[SwitchStep] = []

        def step(what: str, began: float) -> None:
            steps.append(SwitchStep(what, time.monotonic() - began))

        began = time.monotonic()
        place, options = was.mount, was.options
        if place:
            was = devices.unmount(self._attached, was)
            step(f"unmounted {place}", began)
            began = time.monotonic()
        try:
            devices.detach(self._attached, was)
            step(f"detached {old} from {was.device}", began)
            began = time.monotonic()
            made = self.attach(new, place or None, options)
            step(f"attached {new} as {made.device}" + (f", mounted on {place}" if place else ""), began)
        except BaseException as error:
            self._put_back(old, place, options)
            if not isinstance(error, FailedError):
                raise
            raise FailedError(
                f"the switch did not come about: {error}",
                on=new,
                remedy=f"{old} is in its place again; mend that and try again",
            ) from error
        return steps

    def _put_back(self, name: str, place: str, options: str) -> None:
        made = self.attachments().get(name)
        if made is None:
            self.attach(name, place or None, options)
        elif place:
            devices.mount(self._attached, made, place, options)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
