"""Threads of a verification that meet the same bad chunk at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from safehold.model.context import Context
from safehold.model.progress import Silent
from safehold.recovery.units import Hurt, Unit
from safehold.recovery.verify import Findings, _member

BAD = b"b" * 32


class Tells(Silent):
    """Sets an event when a unit is done."""

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def advance(self, amount: int) -> None:
        self._done.set()


def test_each_range_of_a_bad_chunk_is_told_whoever_checks_it() -> None:
    """One thread is still at the check while the other has come to the end of its unit."""
    other_done = threading.Event()
    turn = iter(["waits"])

    def check(chunks: object, ids: list[bytes]) -> Iterator[tuple[bytes, str]]:
        if next(turn, None):
            assert other_done.wait(60)
        yield from ((identity, "rotten") for identity in ids)

    def unit(number: int) -> Unit:
        return Unit(10, [BAD], lambda identity, reason, hurt: hurt.range(reason, number * 10, number * 10 + 10))

    ctx = Context(progress=Tells(other_done))
    hurt, findings = Hurt(), Findings()
    chunks: Any = SimpleNamespace(remote=False)
    _member(iter([unit(0), unit(2)]), chunks, check, set(), {}, hurt, findings, ctx)
    assert sorted(hurt.ranges["rotten"]) == [(0, 10), (20, 30)]
    assert findings.checked == 1
