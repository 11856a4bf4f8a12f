"""Sizes and spans of time on the command line."""

from __future__ import annotations

from safehold.model.errors import UsageError
from safehold.model.units import parse_size, parse_span

__all__ = ["size_of", "span_of"]


def size_of(text: str, on: str) -> int:
    """Bytes; UsageError, naming `on`, for what is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), on=on) from error


def span_of(text: str, on: str) -> float:
    """Seconds; UsageError, naming `on`, for what is no span."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise UsageError(str(error), on=on) from error
