"""A store around a store that tries again what may pass, and knows whether an ambiguous create was its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from safehold.model.clock import Clock
from safehold.model.errors import ObjectExists, ObjectNotFound, StoreUnavailable
from safehold.ports.store import Capabilities, Stamp, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RetryPolicy", "RetryStore"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on. The wait before attempt n is random between 0 and min(`cap`, `first`·2ⁿ) seconds ("full
    jitter").
    """

    attempts: int = 8
    """Eight attempts span about a minute on average: longer than a fail-over of a storage service, shorter than a
    user's patience.
    """

    first: float = 0.5
    """The first wait is of the order of a slow request."""

    cap: float = 20.0
    """No single wait is longer, so that a store that came back is noticed soon."""


class RetryStore:
    """Retries StoreUnavailable. A create that met its own earlier, unacknowledged attempt counts as done."""

    def __init__(
        self, inner: Store, clock: Clock, policy: RetryPolicy | None = None, rng: random.Random | None = None
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._policy = policy or RetryPolicy()
        self._random = rng or random.Random()

    @property
    def url(self) -> str:
        """The inner store's."""
        return self._inner.url

    @property
    def caps(self) -> Capabilities:
        """The inner store's."""
        return self._inner.caps

    def _again(self, attempt: int, error: StoreUnavailable) -> None:
        """Wait before the next attempt, or give up."""
        if attempt + 1 >= self._policy.attempts:
            raise error
        self._clock.sleep(self._random.uniform(0, min(self._policy.cap, self._policy.first * 2**attempt)))

    def _retry(self, call: Callable[[], _T]) -> _T:
        attempt = 0
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                self._again(attempt, error)
                attempt += 1

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """Create-only: on any doubt the object is read back. Equal bytes are success, other bytes ObjectExists, none
        another attempt.
        """
        if not create_only:
            return self._retry(lambda: self._inner.put(name, parts, create_only=False))
        attempt = 0
        while True:
            try:
                return self._inner.put(name, parts)
            except ObjectExists:
                same = self._same(name, parts)
                if same is False:
                    raise
                if same:
                    return self._retry(lambda: self._inner.head(name))
                error = StoreUnavailable(
                    "object exists and is not there at once",
                    on=name,
                    remedy="check the store: safehold vault check-store",
                )
            except StoreUnavailable as failed:
                error = failed
                # The request may have been carried out although its answer was lost.
                same = self._same(name, parts)
                if same is False:
                    raise ObjectExists("object exists already, with other bytes", on=name) from failed
                if same:
                    return self._retry(lambda: self._inner.head(name))
            self._again(attempt, error)
            attempt += 1

    def _same(self, name: str, parts: Sequence[Buffer]) -> bool | None:
        """Whether the object holds exactly these bytes; None where there is none, or that cannot be told now."""
        try:
            there = memoryview(self._inner.get(name))
        except (ObjectNotFound, StoreUnavailable):
            return None
        for part in parts:
            view = memoryview(part).cast("B")
            if there[: len(view)] != view:
                return False
            there = there[len(view) :]
        return not there

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        self._retry(lambda: self._inner.read_into(name, offset, buf))

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        return self._retry(lambda: self._inner.get(name))

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        return self._retry(lambda: self._inner.head(name))

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """A listing that breaks off goes on after the last name it gave."""
        attempt = 0
        while True:
            try:
                for stamp in self._inner.list(prefix, after):
                    attempt, after = 0, stamp.name
                    yield stamp
            except StoreUnavailable as error:
                self._again(attempt, error)
                attempt += 1
            else:
                return

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        self._retry(lambda: self._inner.delete(name, version))
