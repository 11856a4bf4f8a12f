"""Histories of an owner and its watchdog against a freezer that is made up, in made-up time: whatever becomes of the owner, and whenever, nothing
stays frozen, nothing is frozen for long, and no owner is told that all was held when it was not.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

from safehold.watchdog import vigil as vigil_module
from safehold.watchdog.messages import Message
from safehold.watchdog.senses import DEATH, HANGUP, SIGNAL
from safehold.watchdog.vigil import Vigil

GRACE, LIMIT = 0.5, 1.5
ROUND = 1.1
"""Seconds that the watchdog lets pass between two rounds at most, and a little."""

Wait = tuple[str, float]
"""What an owner does next: `work` for some seconds, or `answer` for the watchdog's."""


class StuckError(AssertionError):
    """A history that must not be."""


@dataclass
class Freezer:
    """One thing that can be frozen; the first `failures` thaws fail."""

    world: World
    failures: int
    what: str = "a disk"
    frozen: bool = False
    due: float = 0.0
    closed: bool = False
    thawed: list[float] = field(default_factory=list)

    def freeze(self) -> None:
        self.frozen, self.due = True, self.world.time

    def release(self) -> None:
        """The watchdog's thaw."""
        self.world.time += self.world.dice.uniform(0, 0.01)
        if self.closed:
            raise OSError(9, "nothing to thaw it by")
        if not self.frozen:
            return
        if self.failures:
            self.failures -= 1
            raise OSError(5, "not this time")
        self.frozen = False
        self.thawed.append(self.world.time)
        late = self.world.time - max(self.due, self.world.broken)
        if late > self.world.bound:
            raise StuckError(f"frozen for {late:.2f} s longer than it had to be")

    def close(self) -> None:
        """The watchdog keeps nothing open any more."""
        assert not self.closed
        self.closed = True


class World:
    """The senses of a vigil, and an owner with a fate."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.time = 0.0
        self.broken = float("inf")
        self.freezers = [Freezer(self, dice.choice([0, 0, 0, 1, 3])) for _ in range(dice.randint(1, 3))]
        self.bound = ROUND * (2 + sum(f.failures for f in self.freezers))
        self.queue: list[tuple[float, int, Callable[[], Message | None]]] = []
        self.order = itertools.count()
        self.alive = self.linked = self.watched = True
        self.resumes = 0.0
        self.working = 0.0
        self.kept = False
        self.confirmed: float | None = None
        self.owner = self._owner()
        fate = dice.choice(["none", "kill", "kill", "stop", "stop", "hang up", "slow", "signal", "signals"])
        self.slow = 5.0 if fate == "slow" else 1.0
        at = dice.uniform(0, 2 * LIMIT)
        actions: dict[str, Callable[[], Message | None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "hang up": self._hang_up,
            "signal": lambda: SIGNAL,
        }
        if fate in actions:
            self._at(at, actions[fate])
        if fate == "signals":
            for moment in (at, at + dice.uniform(0, 0.5)):
                self._at(moment, lambda: SIGNAL)
        self._at(0, lambda: self._act(None))

    def _owner(self) -> Generator[Message | Wait, str | None, None]:
        """The steps of `quiesce.holding`, as messages and work."""
        held, good = [], True
        for n, freezer in enumerate(self.freezers):
            if (yield {"op": "enter", "step": n, "process": 0}) != "go":
                good = False
                break
            yield "work", self.slow * self.dice.uniform(0, 0.4)
            freezer.freeze()
            held.append(n)
            if (yield {"op": "held", "step": n}) != "still":
                good = False
                break
        if good:
            for _ in range(self.dice.randint(0, 6)):
                yield "work", self.slow * self.dice.uniform(0, 0.3)
                yield {"op": "beat"}
            self.kept = (yield {"op": "confirm"}) == "still"
            self.confirmed = self.time if self.kept else None
            if self.kept and not all(f.frozen for f in self.freezers):
                raise StuckError("all was held, the watchdog says, and it was not")
        for n in reversed(held):
            yield "work", self.dice.uniform(0, 0.1)
            # Its own thaw may fail as well; then the watchdog has to.
            if self.freezers[n].frozen and self.dice.random() < 0.2:
                continue
            self.freezers[n].frozen = False
            yield {"op": "left", "step": n}
        yield {"op": "release"}

    def _at(self, time: float, action: Callable[[], Message | None]) -> None:
        heapq.heappush(self.queue, (time, next(self.order), action))

    def _act(self, answer: str | None) -> Message | None:
        """The owner goes on until it says something, or works for some time."""
        if not self.alive:
            return None
        if self.time < self.resumes:
            self._at(self.resumes, lambda: self._act(answer))
            return None
        try:
            step = self.owner.send(answer)
        except StopIteration:
            self.alive = self.linked = False
            self._at(self.time, lambda: DEATH)
            return HANGUP
        if isinstance(step, tuple):
            self.working = self.time + step[1]
            self._at(self.working, lambda: self._act(None))
            return None
        if step["op"] in {"beat", "left"}:
            self._at(self.time, lambda: self._act(None))
        if not (self.linked and self.watched):
            if step["op"] not in {"beat", "left"}:
                self._at(self.time, lambda: self._act("nobody"))
            return None
        return step

    def _kill(self) -> None:
        """A process in the middle of a freeze dies when that is through, and not before."""
        if self.time < self.working:
            self._at(self.working + 1e-6, self._kill)
        elif self.alive:
            self.alive = False
            self._at(self.time, lambda: HANGUP)
            self._at(self.time, lambda: DEATH)

    def _stop(self) -> None:
        self.resumes = self.time + self.dice.choice([0.3, 3.0, 2000.0])

    def _hang_up(self) -> Message:
        self.linked = False
        self._at(self.time, lambda: self._act("nobody"))
        return HANGUP

    def now(self) -> float:
        return self.time

    def next(self, seconds: float) -> Message | None:
        """See `watchdog.senses.Senses`."""
        end = self.time + max(0.0, seconds)
        while self.queue and self.queue[0][0] <= end:
            time, _, action = heapq.heappop(self.queue)
            self.time = max(self.time, time)
            message = action()
            if message is not None:
                if message["op"] in {"hangup", "death", "signal", "release"}:
                    self.broken = min(self.broken, self.time)
                return message
        self.time = max(self.time, end)
        self.broken = min(self.broken, self.time) if seconds >= 0 else self.broken
        return None

    def say(self, message: Message) -> None:
        if message["op"] != "released":
            answer = str(message["op"])
            self._at(self.time, lambda: self._act(answer))
        else:
            self._at(self.time, lambda: self._act(None))


def play(seed: int, vigil: type[Vigil] = Vigil) -> tuple[str, bool]:
    """One history: by whom it ended, and whether the owner kept its capture. StuckError."""
    world = World(seed)
    report = vigil(world, world.freezers, GRACE, LIMIT).run()
    world.watched = False
    while world.queue and world.queue[0][0] < 3000:
        world.next(3000)
    if any(freezer.frozen for freezer in world.freezers):
        raise StuckError(f"frozen for good: {report}")
    if not all(freezer.closed for freezer in world.freezers):
        raise StuckError(f"kept open for good: {report}")
    if world.confirmed is not None and any(t < world.confirmed for f in world.freezers for t in f.thawed):
        raise StuckError("let go of before it was confirmed")
    return str(report["by"]), world.kept


def test_nothing_stays_frozen() -> None:
    ends = {play(seed) for seed in range(1000)}
    assert {by for by, kept in ends if not kept} == {"deadline", "hangup", "signal"}
    assert ("owner", True) in ends


@pytest.mark.soak
def test_nothing_stays_frozen_in_many_histories() -> None:
    for seed in range(10_000):
        play(10_000 + seed)


class OnlyOnce(Vigil):
    """Lets go once, and thinks that this is all: a freeze that the owner was in the middle of comes later, and stays."""

    def _let_go(self) -> None:
        for step in reversed(self.steps):
            if step.held:
                step.let_go()


class Trusting(Vigil):
    """Says at any time that all is held."""

    def _late(self, message: Message | None) -> None:
        super()._late(None if message and message["op"] == "confirm" else message)
        if message and message["op"] == "confirm":
            self._still()


class Hasty(Vigil):
    """Keeps nothing open of what it has let go of, though the owner may still be in the middle of holding it."""

    def _put_away(self, settled: bool) -> None:
        super()._put_away(True)


@pytest.mark.parametrize("broken", [OnlyOnce, Trusting, Hasty])
def test_a_broken_watchdog_is_found_out(broken: type[Vigil]) -> None:
    assert any(stuck(seed, broken) for seed in range(1000))


def test_a_watchdog_that_ends_too_soon_when_it_is_told_to_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil_module, "_HOPELESS", 0)
    assert any(stuck(seed, Vigil) for seed in range(1000))


def stuck(seed: int, broken: type[Vigil]) -> bool:
    try:
        play(seed, broken)
    except StuckError:
        return True
    return False
