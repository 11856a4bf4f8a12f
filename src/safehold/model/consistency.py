"""How still a resource was held while a capture of it was created."""

from __future__ import annotations

import enum

__all__ = ["Consistency"]


class Consistency(enum.IntEnum):
    """Ordered levels: a higher level includes what the lower ones promise.

    APPLICATION  the application wrote everything it had acknowledged and said so
    FILESYSTEM   the file system was frozen or unmounted: no journal replay is needed
    CRASH        one instant of the device, as if the power had failed then
    NONE         the bytes were read while something could be writing them
    """

    NONE = 0
    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3

    @property
    def label(self) -> str:
        """The lower-case word used on the command line and in JSON."""
        return self.name.lower()

    @classmethod
    def parse(cls, word: str) -> Consistency:
        """The level called `word`; ValueError for any other word."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"{word!r} is not one of {', '.join(c.label for c in cls)}") from None
