"""Asks a store whether it keeps the promises that a vault rests on."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

from safehold.model.clock import Clock
from safehold.model.errors import ObjectExists, ObjectNotFound, SafeholdError, ShortRead
from safehold.ports.store import Store

__all__ = ["Probe", "broken_order", "check_store"]

_RACERS = 16
_SKEW = 300.0
"""Seconds between the store's clock and ours that are worth a word."""


@dataclass(frozen=True)
class Probe:
    """One promise: its name, whether it was kept, and what was seen."""

    name: str
    ok: bool
    detail: str


def check_store(store: Store, clock: Clock) -> list[Probe]:
    """Try each promise under a prefix of its own, and clean up."""
    base = f"check-{secrets.token_hex(8)}"
    probes = [
        _try("put and get", lambda: _put_and_get(store, base)),
        _try("list after put", lambda: _listing(store, base)),
        _try("ranges", lambda: _ranges(store, base)),
        _try("create-only put", lambda: _race(store, base)),
        _try("missing objects", lambda: _missing(store, base)),
        _try("clock", lambda: _clock(store, base, clock)),
        _try("delete", lambda: _delete(store, base)),
    ]
    for stamp in list(store.list(base + "/")):
        store.delete(stamp.name)
    return probes


def broken_order(store: Store) -> str:
    """What a store did instead where creations have no single winner, or a listing lacks an object whose put has returned: the order of steps
    that a prune rests on means nothing there. Empty where it kept both promises. StoreError where that could not be tried. Cleans up.
    """
    base = f"check-{secrets.token_hex(8)}"
    try:
        _race(store, base)
        _listing(store, base)
    except _BrokenPromise as broken:
        return str(broken)
    finally:
        for stamp in list(store.list(base + "/")):
            store.delete(stamp.name)
    return ""


def _try(name: str, probe: Callable[[], str]) -> Probe:
    try:
        return Probe(name, True, probe())
    except (SafeholdError, _BrokenPromise) as error:
        return Probe(name, False, str(error))


class _BrokenPromise(Exception):
    """What a store did instead."""


def _demand(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _BrokenPromise(otherwise)


def _put_and_get(store: Store, base: str) -> str:
    data = secrets.token_bytes(100_000)
    store.put(f"{base}/a/object", [data[:10], data[10:]])
    _demand(store.get(f"{base}/a/object") == data, "a get right after the put gave other bytes")
    _demand(store.head(f"{base}/a/object").size == len(data), "the size is wrong")
    return "an object reads back at once"


def _listing(store: Store, base: str) -> str:
    names = [f"{base}/list/{n:03d}" for n in range(20)]
    for name in reversed(names):
        store.put(name, [b"x"])
        _demand(name in [s.name for s in store.list(f"{base}/list/")], "an object is not listed right after its put")
    _demand([s.name for s in store.list(f"{base}/list/")] == names, "the listing is not in order of name")
    _demand(
        [s.name for s in store.list(f"{base}/list/", names[9])] == names[10:], "a listing cannot start after a name"
    )
    return "listings are complete, current and in order"


def _ranges(store: Store, base: str) -> str:
    store.put(f"{base}/ranges", [bytes(range(256))])
    part = bytearray(10)
    store.read_into(f"{base}/ranges", 100, memoryview(part))
    _demand(part == bytes(range(100, 110)), "a range gave other bytes")
    try:
        store.read_into(f"{base}/ranges", 250, memoryview(part))
    except ShortRead:
        return "ranges are exact, and one past the end is noticed"
    raise _BrokenPromise("a range past the end was not noticed")


def _race(store: Store, base: str) -> str:
    name = f"{base}/race"
    won: list[int] = []
    lost: list[int] = []
    failed: list[SafeholdError] = []
    start = threading.Barrier(_RACERS)

    def run(racer: int) -> None:
        start.wait()
        try:
            store.put(name, [b"%d" % racer])
            won.append(racer)
        except ObjectExists:
            lost.append(racer)
        except SafeholdError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(_RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    _demand(len(won) == 1, f"{len(won)} of {_RACERS} creators of one object were told that they won")
    _demand(store.get(name) == b"%d" % won[0], "the object is not the winner's")
    return f"{_RACERS} creators of one object: one won, {len(lost)} were told that they lost"


def _missing(store: Store, base: str) -> str:
    for call in (lambda: store.get(f"{base}/none"), lambda: store.head(f"{base}/none")):
        try:
            call()
        except ObjectNotFound:
            continue
        raise _BrokenPromise("a missing object was found")
    return "a missing object is said to be missing"


def _clock(store: Store, base: str, clock: Clock) -> str:
    store.put(f"{base}/clock", [b"x"])
    skew = store.head(f"{base}/clock").time - clock.now()
    note = "" if abs(skew) < _SKEW else "; one of the clocks is wrong"
    if not round(skew):
        return "the store's clock agrees with this machine's"
    return f"the store's clock is {skew:+.0f} s from this machine's{note}"


def _delete(store: Store, base: str) -> str:
    store.put(f"{base}/delete", [b"x"])
    store.delete(f"{base}/delete")
    store.delete(f"{base}/delete")
    _demand(not list(store.list(f"{base}/delete")), "a deleted object is still listed")
    return "a deleted object is gone, and deleting it again is no error"
