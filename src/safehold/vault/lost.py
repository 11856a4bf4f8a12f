"""Points that were committed and are gone, though nobody said that they were to be expired.

Nothing in a vault tells of itself that it is missing. Three memories do: what this machine has read, the last point that it made, and the points
that the gc chain names as of the last prune. An intent to expire a point stays for good, so whatever is gone without one is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable

from safehold.model.errors import ObjectNotFound
from safehold.ports.store import Store
from safehold.vault.catalogue import Listing, Rejected
from safehold.vault.heads import Head
from safehold.vault.names import gc_name
from safehold.vault.trust import Chain

__all__ = ["LOST", "lost_points"]

LOST = "a point is gone, and nobody said that it was expired"


def lost_points(
    store: Store,
    listing: Listing,
    head: Head,
    chain: Chain,
    patterns: Callable[[str], tuple[str, ...]],
    expired: Callable[[Iterable[str]], Container[str]],
) -> list[Rejected]:
    """What is missing from the listing. `patterns` gives what a point of a name may be of, `expired` which of such names the owner expired.

    The time of one that this machine has not read is the latest that it can have: what is asked for as the newest may be that one.
    """
    there = {*(point.name for point in listing.points), *(one.name for one in listing.rejected)}
    recorded = set(chain.record.points if chain.record else ())
    gone = ({*listing.absent, *recorded, *head.missing}) - there
    if not gone:
        return []
    given_up = expired(gone)
    lost = sorted(name for name in gone if name not in given_up)
    newest = max((point.time for point in listing.points), default=0.0) + 1.0
    # Before the last that this machine made, where that is there.
    last = {point.name: point.time for point in listing.points}.get(head.point)
    made = newest if last is None else math.nextafter(last, 0.0)
    pruned = _pruned(store, chain) if recorded.intersection(lost) else newest
    found = []
    for name in lost:
        known = listing.absent.get(name)
        latest = min(made if name in head.missing else newest, pruned if name in recorded else newest)
        resources = known.resources if known else head.resources(name)
        time = known.time if known else latest
        found.append(
            Rejected(
                name,
                _told(resources),
                time,
                allowed=patterns(name),
                resources=resources,
                gone=True,
                earlier=known is None,
            )
        )
    return found


def _told(resources: tuple[str, ...]) -> str:
    return f"{LOST}: it was of {', '.join(resources)}" if resources else LOST


def _pruned(store: Store, chain: Chain) -> float:
    """When the newest record was made: what it names was there before."""
    assert chain.record is not None
    try:
        return store.head(gc_name(chain.record.number)).time
    except ObjectNotFound:
        return float("inf")
