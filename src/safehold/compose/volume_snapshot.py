"""Taking a snapshot of served volumes, with whatever makes quiet what lies on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from safehold.compose.quiet import Served
from safehold.compose.volume_client import VolumeClient
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import FailedError
from safehold.model.units import format_duration
from safehold.ports.bracket import Bracket
from safehold.quiesce.guard import Terms
from safehold.quiesce.holding import capture_quietly

__all__ = ["take_snapshot", "wait_for_snapshot"]

_POLL = 0.2


def take_snapshot(
    client: VolumeClient,
    names: Sequence[str],
    require: Consistency | None,
    find: Callable[[Served], tuple[tuple[Bracket, ...], Terms]],
    tags: Mapping[str, str],
    ctx: Context,
) -> tuple[dict[str, Any], float]:
    """Seal the volumes at one instant inside the brackets that `find` gives for them; returns the snapshot, which is pending, and for how many
    seconds brackets were held. `require` None means what the brackets promise.

    ConsistencyError where that was not reached: all is let go of, and the snapshot has failed.
    """
    attached = client.attachments()
    # Each volume goes to the vault that it was made for, whichever this run would take by itself.
    vaults = sorted({client.order("show", name=name)["vault"] for name in names})
    devices = [attached[name].device for name in names if name in attached]

    def clients() -> set[int]:
        return {int(one) for name in names for one in client.order("show", name=name)["processes"]}

    brackets, terms = find(Served(devices, vaults, clients))
    if not brackets:
        asked = require if require is not None else Consistency.CRASH
        return client.order("snapshot", names=names, asked=asked.label, tags=dict(tags)), 0.0
    asked = require if require is not None else max(Consistency.CRASH, *(one.promises for one in brackets))
    specs = ", ".join(one.spec for one in brackets)
    expected = sum(one.expected for one in brackets)
    ctx.progress.note(
        f"{specs}: about {format_duration(expected)} around the seal of {', '.join(names)}, {format_duration(terms.limit)} at most"
    )
    made: dict[str, Any] = {}

    def create() -> None:
        made.update(client.order("snapshot", names=names, asked=asked.label, tags=dict(tags), vouching=True))

    try:
        _, level, quiet = capture_quietly(brackets, create, terms, asked, ctx)
        achieved = max(Consistency.CRASH, level)
        client.order("vouch", id=made["id"], achieved=achieved.label, quiet=msgspec.to_builtins(quiet))
    except BaseException as error:
        if made:
            client.order("discard", id=made["id"], why=str(error) or "it was stopped")
        raise
    pause = max(one.leaving[1] for one in quiet) - min(one.entering[0] for one in quiet) if quiet else 0.0
    return made | {"achieved": achieved.label}, pause


def wait_for_snapshot(client: VolumeClient, identity: str, patience: float, ctx: Context) -> dict[str, Any]:
    """Return with the snapshot once its point is in the vault; `read` is of all its volumes. What keeps it waiting is warned of.

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
            return first | {"read": sum(one["read"] for one in found)}
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
