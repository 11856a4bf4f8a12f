"""Text as people see it."""

from __future__ import annotations

import os

__all__ = ["in_words", "printable"]


def in_words(error: Exception) -> str:
    """Why something failed, for people: of an error of the operating system neither its number nor the path, which the message has already."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def printable(path: bytes | str) -> str:
    """A path for people: bytes that are no text and characters that a terminal would obey are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
