"""Every interleaving of backups, prunes, expiry, restores and the network, in worlds that are small and gone through to the end.

No point that counts ever loses its chunk; no restore fails that nobody expired; no backup that lives is ended, or has to wait; and from every
state prunes free what nothing needs, even while backups overlap for ever. Twenty-one mistakes are found, each with its shortest story.
"""

from __future__ import annotations

import pytest

from tests.model.explore import explore
from tests.model.judge import Judge
from tests.model.mistakes import MISTAKES, Mistake
from tests.model.protocol import Protocol
from tests.model.rules import Bounds
from tests.model.state import NOTHING, World, after_a_fence, after_a_stop, start

EXPIRE = frozenset({"x0", "x1"})
LATE = frozenset({"session", "pack", "run", "point"})

WORLDS = {
    "a backup and two prunes": (start(writers=1, prunes=1), Bounds(rounds=2, expires=EXPIRE)),
    "two backups and a prune": (start(writers=2, prunes=1), Bounds()),
    "a backup and two prunes at once": (start(writers=1, prunes=2), Bounds()),
    "puts that arrive late, answers that are lost": (
        start(writers=1, prunes=1, late=True),
        Bounds(expires=EXPIRE, late=LATE, lost_answers=True),
    ),
    "backups that fail": (start(writers=2, prunes=1), Bounds(failures=True, silences=False)),
    "a backup that fails, and puts that arrive late": (
        start(writers=1, prunes=1, late=True),
        Bounds(expires=EXPIRE, late=LATE, lost_answers=True, failures=True),
    ),
    "thirty days and moved chunks": (start(writers=1, prunes=1, days=1), Bounds(rounds=2, moves=True)),
    "a restore during a backup and a prune": (start(writers=1, prunes=1, readers=1), Bounds(moves=True)),
    "a restore that outlasts prunes": (
        start(writers=0, prunes=1, readers=1),
        Bounds(rounds=3, moves=True, expires=NOTHING),
    ),
    "a restore and two prunes at once": (
        start(writers=0, prunes=2, readers=1),
        Bounds(moves=True, expires=NOTHING),
    ),
    "after a prune that stopped": (after_a_stop(), Bounds(rounds=2)),
    "after a writer was fenced": (after_a_fence(), Bounds()),
}

LARGE_WORLDS = {
    "late puts between two prunes": (
        start(writers=1, prunes=1),
        Bounds(rounds=2, expires=EXPIRE, late=LATE, lost_answers=True),
    ),
    "late puts and two backups": (
        start(writers=2, prunes=1, late=True),
        Bounds(expires=EXPIRE, late=frozenset({"run", "point"})),
    ),
}

_MOST = 250_000
_MOST_IN_SOAK = 3_000_000


def _holds(world: World, bounds: Bounds, most: int) -> None:
    protocol = Protocol(bounds)
    outcome = explore(world, protocol.steps, Judge(protocol), most)
    assert not outcome.wrong, f"\n{outcome}"
    assert outcome.states > 1000, "nothing happens in this world"


@pytest.mark.parametrize("name", WORLDS)
def test_the_protocol_holds(name: str) -> None:
    _holds(*WORLDS[name], _MOST)


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGE_WORLDS)
def test_the_protocol_holds_in_large_worlds(name: str) -> None:
    _holds(*LARGE_WORLDS[name], _MOST_IN_SOAK)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_found(mistake: Mistake) -> None:
    protocol = mistake.protocol(mistake.bounds)
    outcome = explore(mistake.world, protocol.steps, Judge(protocol), _MOST)
    print(f"{mistake.name}: {outcome}")
    assert mistake.tells in outcome.wrong
    assert outcome.story


OTHER_WORLDS = {(mistake.world, mistake.bounds): mistake.name for mistake in MISTAKES}
"""Worlds of mistakes that are not among those above, by the mistake that each of them shows."""
for _world in WORLDS.values():
    OTHER_WORLDS.pop(_world, None)


@pytest.mark.parametrize(("world", "bounds"), OTHER_WORLDS, ids=OTHER_WORLDS.values())
def test_the_world_of_a_mistake_is_right_without_it(world: World, bounds: Bounds) -> None:
    _holds(world, bounds, _MOST)


def test_the_story_is_a_shortest_one() -> None:
    outcome = explore(
        1, lambda n: iter([(f"{n} + 1", n + 1), (f"{n} * 2", n * 2)]), lambda n: "ten" if n == 10 else "", 100
    )
    assert outcome.story == ("1 + 1", "2 * 2", "4 + 1", "5 * 2")


def test_a_model_that_is_not_gone_through_proves_nothing() -> None:
    with pytest.raises(OverflowError):
        explore(0, lambda n: iter([("one more", n + 1)]), lambda n: "", 100)
