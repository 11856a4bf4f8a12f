"""Sources that other packages bring, by the entry point group `safehold.sources`."""

from __future__ import annotations

from collections.abc import Iterator

from safehold.model.errors import UsageError
from safehold.ports.source import Source

__all__ = ["SOURCES", "installed_sources"]

SOURCES = "safehold.sources"
"""Each entry point of the group names a class that is made without arguments and is a `ports.source.Source`."""


def installed_sources() -> Iterator[Source]:
    """Each of them, by name, loaded when it is its turn. UsageError for one that cannot be loaded."""
    # Costs more than all of a small backup, and only whoever has such a package needs it.
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=SOURCES), key=lambda point: point.name):
        try:
            source: Source = point.load()()
        # What goes wrong in somebody else's module can be anything, and is not ours to explain.
        except Exception as error:
            raise UsageError(
                f"the source {point.name!r} cannot be loaded ({type(error).__name__}: {error})",
                on=point.value,
                remedy="reinstall or remove the package that brings it",
            ) from error
        yield source
