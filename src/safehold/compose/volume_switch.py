"""Puts one attached volume in another's place. What is under way is on record, so that a switch which was killed can be finished or taken back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from safehold.compose.volume_client import VolumeClient
from safehold.model.errors import FailedError, SafeholdError, UsageError
from safehold.model.remembered import keep

__all__ = ["Plan", "SwitchStep", "Underway", "alone", "plan_switch", "read_underway", "switch", "switch_problems"]


@dataclass(frozen=True)
class SwitchStep:
    """One step of a switch that was carried out, and how many seconds it took."""

    what: str
    seconds: float


class Underway(msgspec.Struct, frozen=True):
    """A switch that has begun: `new` is to be where `old` was, mounted on `mount` with `options` where that is not empty."""

    old: str
    new: str
    mount: str
    options: str


@dataclass(frozen=True)
class Plan:
    """What a switch is about to do: go on with `left`, where one did not come to its end; `away` says what nobody can use meanwhile."""

    wanted: Underway
    left: Underway | None
    away: str


def read_underway(record: Path) -> Underway | None:
    """What a switch that did not come to its end was about. FailedError where that cannot be read."""
    try:
        return msgspec.json.decode(record.read_bytes(), type=Underway)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedError(
            "a switch of volumes has not come to its end, and what it was about cannot be read",
            on=str(record),
            remedy="see with safehold volume list what is attached, attach and mount what is missing, then remove that file",
        ) from error


def switch_problems(record: Path) -> list[str]:
    """What somebody should look at."""
    try:
        left = read_underway(record)
    except FailedError as error:
        return [f"{error} → {error.remedy}"]
    if left is None:
        return []
    where = left.mount or f"what was volume {left.old}"
    remedy = f"safehold volume switch {left.old} --to {left.new}, or with --back"
    return [
        f"the switch of volume {left.old} to {left.new} is under way or was killed, and {where} may be away → {remedy}"
    ]


@contextlib.contextmanager
def alone(record: Path) -> Iterator[None]:
    """One switch at a time, from its plan to its end; one that is killed lets the next one come. FailedError where another is at work."""
    record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(record.with_name(f"{record.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = read_underway(record)
            what = f"the switch of {left.old} to {left.new}" if left else "another switch"
            raise FailedError(
                f"{what} is at work",
                remedy="nothing was changed; wait until it has ended, then see with safehold volume list what is attached",
            ) from None
        yield
    finally:
        os.close(lock)


def plan_switch(client: VolumeClient, record: Path, old: str, new: str) -> Plan:
    """What a switch would do. UsageError and FailedError where it is refused; nothing was changed then."""
    if old == new:
        raise UsageError("a volume cannot take its own place", on=old, remedy="name another one with --to")
    left = read_underway(record)
    if left is not None and {left.old, left.new} == {old, new}:
        return Plan(Underway(old, new, left.mount, left.options), left, left.mount or f"what was {left.old}")
    if left is not None:
        raise UsageError(
            f"the switch of {left.old} to {left.new} has not come to its end",
            on=old,
            remedy=f"finish it: safehold volume switch {left.old} --to {left.new}, with --back to take it back",
        )
    was = client.found(old)
    client.order("show", name=new)
    if new in client.attachments():
        raise UsageError("the volume is attached already", on=new, remedy=f"safehold volume detach {new}")
    client.demand_unused(old)
    away = was.device + (f" on {was.mount}" if was.mount else "")
    return Plan(Underway(old, new, was.mount, was.options), None, away)


def switch(client: VolumeClient, record: Path, old: str, new: str) -> list[SwitchStep]:
    """Unmount, detach, attach, mount. Where a step fails, what was there before is put back. `record` is the file that tells of it meanwhile;
    where it tells of one between the same two volumes, this goes on from wherever that one stopped. To be called `alone`.

    FailedError; its remedy says whether the old volume is in its place.
    """
    steps: list[SwitchStep] = []
    wanted = _begin(client, record, old, new)
    try:
        _take_away(client, old, wanted, steps)
        _put(client, new, wanted, steps)
    except BaseException as error:
        left = _put_back(client, wanted)
        if not left:
            record.unlink(missing_ok=True)
        if not isinstance(error, FailedError):
            raise
        again = f"mend that and try again{f', or take it back: safehold volume switch {old} --to {new} --back' if left else ''}"
        raise FailedError(
            f"the switch did not come about: {error}{left}",
            on=new,
            remedy=f"{old} is in its place again; {again}",
        ) from error
    record.unlink(missing_ok=True)
    return steps


def _put_back(client: VolumeClient, wanted: Underway) -> str:
    """What was there before is there again; why `new` is attached still, or nothing. An earlier run may have attached it."""
    left = ""
    try:
        _take_away(client, wanted.new, wanted, [])
    except SafeholdError as error:
        left = f"; and {wanted.new} stays attached: {error}"
    _put(client, wanted.old, wanted, [])
    return left


def _begin(client: VolumeClient, record: Path, old: str, new: str) -> Underway:
    plan = plan_switch(client, record, old, new)
    wanted = plan.wanted
    if plan.left is not None:
        return wanted
    keep(record, msgspec.json.encode(wanted))
    return wanted


def _take_away(client: VolumeClient, name: str, wanted: Underway, steps: list[SwitchStep]) -> None:
    was = client.attachments().get(name)
    if was is None:
        client.end_left(name)
        return
    client.demand_unused(name)
    if was.mount:
        with _step(steps, f"unmounted {was.mount}"):
            client.unmount(name, was.mount)
    elif wanted.mount:
        # It may be mounted all the same, by a switch that was killed before that was on record.
        client.unmount(name, wanted.mount)
    with _step(steps, f"detached {name} from {was.device}"):
        client.detach(name)


def _put(client: VolumeClient, name: str, wanted: Underway, steps: list[SwitchStep]) -> None:
    made = client.attachments().get(name)
    if made is None:
        with _step(steps, f"attached {name}" + (f", mounted on {wanted.mount}" if wanted.mount else "")):
            client.attach(name, wanted.mount or None, wanted.options)
    elif wanted.mount:
        # Also where it is on record as mounted: a switch that was killed may have left an unmounting behind that nobody put on record.
        with _step(steps, f"mounted {name} on {wanted.mount}"):
            client.mount(name, wanted.mount, wanted.options)


@contextlib.contextmanager
def _step(steps: list[SwitchStep], what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    steps.append(SwitchStep(what, time.monotonic() - began))
