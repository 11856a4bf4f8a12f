"""Goes through every state that a model can get into, nearest first, so that the story of the first wrong one is as short as any."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Outcome", "explore"]

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """How many states were met; where one of them is wrong, what is wrong with it and the steps that lead there."""

    states: int
    wrong: str = ""
    story: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:3}  {words}" for number, words in enumerate(self.story, 1)]
        return "\n".join([f"{self.wrong or 'nothing wrong'} ({self.states} states)", *lines])


def explore(
    start: S, steps: Callable[[S], Iterator[tuple[str, S]]], judge: Callable[[S], str], most: int
) -> Outcome[S]:
    """Every state from `start` on. `steps` gives what can happen next, in words, and what comes of it; `judge` says what is wrong with a
    state, or nothing.

    OverflowError where there are more than `most` states: a bounded model that was not gone through proves nothing.
    """
    came: dict[S, tuple[str, S] | None] = {start: None}
    ahead = deque([start])
    while ahead:
        state = ahead.popleft()
        wrong = judge(state)
        if wrong:
            return Outcome(len(came), wrong, _story(came, state))
        for words, after in steps(state):
            if after not in came:
                came[after] = (words, state)
                ahead.append(after)
        if len(came) > most:
            raise OverflowError(f"more than {most} states")
    return Outcome(len(came))


def _story(came: dict[S, tuple[str, S] | None], state: S) -> tuple[str, ...]:
    words = []
    before = came[state]
    while before is not None:
        words.append(before[0])
        before = came[before[1]]
    return tuple(reversed(words))
