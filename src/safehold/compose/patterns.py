"""Shell patterns of the user."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safehold.adapters.files.patterns import compile_patterns
from safehold.model.errors import UsageError

__all__ = ["path_matcher"]


def path_matcher(patterns: Sequence[str], option: str) -> Callable[[bytes], bool] | None:
    """Tells whether a path fits one of the shell patterns that `option` gave; None for none. UsageError."""
    try:
        return compile_patterns(patterns)
    except ValueError as error:
        raise UsageError(str(error), on=option) from error
