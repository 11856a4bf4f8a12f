"""Spreads work over a few threads and stops all of them at the first failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["spread"]

_T = TypeVar("_T")


def spread(items: Iterator[_T], work: Callable[[Iterator[_T]], None], threads: int) -> None:
    """Run `work` in `threads` threads at once, each over its share of `items`; return when all items are done.

    Every thread draws from the same iterator, so a slow item holds up nobody. The first exception, of an item or of
    the iterator itself, stops the drawing and is raised here after all threads have ended.
    """
    lock = threading.Lock()
    failures: list[BaseException] = []

    def share() -> Iterator[_T]:
        while True:
            with lock:
                if failures:
                    return
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def run() -> None:
        try:
            work(share())
        except BaseException as error:
            with lock:
                failures.append(error)

    workers = [threading.Thread(target=run, name=f"work-{n}") for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
