"""Taking a snapshot of served volumes, with whatever makes quiet what lies on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from safehold.compose.volume_brackets import VolumeBrackets
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_writers import Served
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, FailedError
from safehold.model.quiet import Quieted
from safehold.model.units import format_duration
from safehold.quiesce.holding import capture_quietly

__all__ = ["take_snapshot", "wait_for_snapshot"]

_POLL = 0.2


def take_snapshot(
    client: VolumeClient,
    names: Sequence[str],
    require: Consistency | None,
    find: Callable[[Served], VolumeBrackets],
    tags: Mapping[str, str],
    ctx: Context,
) -> tuple[dict[str, Any], float]:
    """Seal the volumes at one instant inside the brackets that `find` gives for them; returns the snapshot, which is pending, with what was reached
    in each volume (`levels`) and in all of them (`achieved`), and for how many seconds brackets were held. `require` is asked of each volume; None
    means what the brackets promise of it.

    ConsistencyError where that was not reached: all is let go of, and the snapshot has failed.
    """
    # One that is named twice, as by a group and by itself, is one all the same.
    names = tuple(dict.fromkeys(names))
    attached = client.attachments()
    # Each volume goes to the vault that it was made for, whichever this run would take by itself.
    vaults = sorted({client.order("show", name=name)["vault"] for name in names})
    devices = {name: attached[name].device for name in names if name in attached}

    def clients(name: str) -> list[int]:
        return [int(one) for one in client.order("show", name=name)["processes"]]

    # A device is connected by a process of its own, or by the service, which is itself no client.
    own = {int(client.order("ping")["pid"]), *(attached[name].pid for name in devices)} - {0}
    around = find(Served(devices, vaults, clients, names, own))
    asked = {name: around.promised(name) if require is None else require for name in names}
    words = {name: level.label for name, level in asked.items()}
    if not around.brackets:
        made = client.order("snapshot", names=names, asked=words, tags=dict(tags))
        return made | {"levels": dict.fromkeys(names, made["achieved"])}, 0.0
    for name in names:
        _demand_within_reach(name, asked[name], around)
        if name in around.loose and around.reaches(name) is Consistency.CRASH:
            ctx.progress.warn(
                f"{name}: nothing holds {around.loose[name]}, so what is captured of it is as after a power loss"
            )
    specs = ", ".join(one.spec for one in around.brackets)
    expected = sum(one.expected for one in around.brackets)
    ctx.progress.note(
        f"{specs}: about {format_duration(expected)} around the seal of {', '.join(names)}, {format_duration(around.terms.limit)} at most"
    )
    made = {}

    def create() -> None:
        made.update(client.order("snapshot", names=names, asked=words, tags=dict(tags), vouching=True))

    try:
        _, level, quiet = capture_quietly(around.brackets, create, around.terms, max(asked.values()), ctx)
        # Whoever came while the brackets were entered may have written before the seal.
        around = around.again()
        for name in names:
            _demand_within_reach(name, asked[name], around)
        done = {name: around.done(name, quiet) for name in names}
        levels = {name: _level(level, done[name]) for name in names}
        client.order(
            "vouch",
            id=made["id"],
            achieved={name: level.label for name, level in levels.items()},
            quiet=msgspec.to_builtins(done),
        )
    except BaseException as error:
        if made:
            client.order("discard", id=made["id"], why=str(error) or "it was stopped")
        raise
    pause = max(one.leaving[1] for one in quiet) - min(one.entering[0] for one in quiet) if quiet else 0.0
    told = {name: level.label for name, level in levels.items()}
    return made | {"achieved": min(levels.values()).label, "levels": told}, pause


def _demand_within_reach(name: str, asked: Consistency, around: VolumeBrackets) -> None:
    most = around.reaches(name)
    if asked > most:
        why = f"{around.loose[name]} is not held" if name in around.loose else "no bracket reaches more"
        raise ConsistencyError(
            f"{most.label} consistency can be reached, {asked.label} asked for: {why}",
            on=name,
            remedy="give a --bracket for whatever writes to it, end the rest, or ask for less with --require",
        )


def _level(vouched: Consistency, done: Sequence[Quieted]) -> Consistency:
    """What was reached in one volume; `vouched` is what all brackets vouch for, nothing where they did not hold to the end."""
    if vouched is Consistency.NONE:
        return Consistency.CRASH
    return max((Consistency.CRASH, *(Consistency.parse(one.achieved) for one in done)))


def wait_for_snapshot(client: VolumeClient, identity: str, patience: float, ctx: Context) -> dict[str, Any]:
    """Return with the snapshot once its point is in the vault; `read` and `achieved` are of all its volumes. What keeps it waiting is warned of.

    FailedError where it has failed, and where it was kept waiting for longer than `patience` seconds (infinity: for ever).
    """
    told, since = "", ctx.clock.monotonic()
    while True:
        ctx.cancel.check()
        found = client.order("find", id=identity)
        failed = [one for one in found if one["state"] == "failed"]
        if failed or not found:
            raise FailedError(
                f"the snapshot failed: {failed[0]['snapshot_problem'] if failed else 'it is gone'}",
                on=failed[0]["volume"] if failed else identity[:8],
                remedy="take another one",
            )
        if all(one["state"] == "completed" for one in found):
            first: dict[str, Any] = found[0]
            least = min(Consistency.parse(one["achieved"]) for one in found)
            return first | {"read": sum(one["read"] for one in found), "achieved": least.label}
        problem = next((one["problem"] for one in found if one["problem"]), "")
        if not problem:
            since = ctx.clock.monotonic()
        elif problem != told:
            ctx.progress.warn(problem)
            told = problem
        if ctx.clock.monotonic() - since > patience:
            raise FailedError(
                f"the snapshot is taken, and not in the vault yet: {problem}",
                on=", ".join(one["volume"] for one in found),
                remedy="mend that; it goes on by itself",
            )
        time.sleep(_POLL)
