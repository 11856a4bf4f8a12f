"""What must not be in any world, whatever happened before."""

from __future__ import annotations

from tests.model.protocol import Protocol, names
from tests.model.rules import ENDED
from tests.model.state import Prune, Store, World

__all__ = ["Judge"]


class Judge:
    """Says what is wrong with worlds of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._freed: set[Store] = set()

    def __call__(self, world: World) -> str:
        """What is wrong with a world, or nothing."""
        store = world.store
        live = self._protocol.counting(store)
        if self.lost(store):
            return f"{names(live)} has lost the chunk"
        for reader in world.readers:
            if reader.at == "failed" and reader.point in live:
                return f"a reader of {reader.point} failed, and nobody expired it"
        for number, writer in enumerate(world.writers):
            if f"x{number + 1}" in store.fences and not writer.silent and writer.at not in ENDED:
                return f"x{number + 1} is alive and was taken for dead"
            if writer.at not in ENDED and not any(self._protocol.writer(world, number)):
                return f"x{number + 1} has to wait"
        if not self.frees(world):
            return "garbage stays, however often a prune runs"
        return ""

    def lost(self, store: Store) -> bool:
        """True where a point needs the chunk and it lies nowhere, or only in packs that anybody may delete."""
        return bool(self._protocol.counting(store)) and not store.packs - store.chain.dead

    def frees(self, world: World) -> bool:
        """Prunes that run to their end leave nothing that no point needs, once the writers of this world are dead and no put is under way.
        Others back up all the time meanwhile: whenever one of theirs ends, the next has begun.
        """
        store = world.store._replace(late=frozenset())
        number = len(world.prunes) - 1
        met = []
        for turn in range(12):
            if store in self._freed:
                break
            met.append(store)
            young = store._replace(sessions=store.sessions | {f"z{turn % 3}"})
            writers = tuple(writer._replace(silent=True) for writer in world.writers)
            # Rounds below zero: no name that it makes is one of this world's.
            alone = World(young, writers, (*world.prunes[:number], Prune(round=turn - 100)), (), 0)
            while alone.prunes[number].round == turn - 100:
                alone = next(self._protocol.prune(alone, number))[1]
            store = alone.store._replace(sessions=alone.store.sessions - {f"z{turn % 3}"})
            if self.lost(store):
                # A loss is no matter of garbage: it is told of where it happens.
                break
            if (
                len(store.packs) == bool(self._protocol.counting(store))
                and not store.chain.condemned
                and not store.sessions
            ):
                break
        else:
            return False
        self._freed.update(met)
        return True
