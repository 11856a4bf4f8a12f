"""Resources whose points come from several hosts, though nobody said that one of these replaced another.

The owner's backups refuse that beforehand. A writer cannot read what others made under the same name, so it shows afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safehold.model.context import Context
from safehold.model.shown import printable
from safehold.vault.catalogue import Point

__all__ = ["SharedName", "shared_names", "warn_of_shared_names"]


@dataclass(frozen=True)
class SharedName:
    """A resource's name, and the hosts that use it, by id with the name that each went by last; who came first is first."""

    resource: str
    hosts: dict[str, str]

    def __str__(self) -> str:
        hosts = " and ".join(f"{name} (id {identity[:8]})" for identity, name in self.hosts.items())
        return printable(
            f"points of {self.resource!r} come from {hosts}, and nobody said that one replaced the other: give one a name of its own "
            "with --name, or back up once with --adopt on the one that goes on"
        )


def shared_names(points: Sequence[Point]) -> list[SharedName]:
    """Which names several hosts use, since the last point that was made with `--adopt`. `points` are in the order of their times."""
    users: dict[str, dict[str, str]] = {}
    for point in points:
        body = point.body
        for resource in point.resources:
            known = {} if body.adopted else users.get(resource, {})
            users[resource] = known | {body.host_id: body.host}
    return [SharedName(resource, hosts) for resource, hosts in users.items() if len(hosts) > 1]


def warn_of_shared_names(points: Sequence[Point], ctx: Context) -> None:
    """Tell of each of them."""
    for shared in shared_names(points):
        ctx.progress.warn(str(shared))
