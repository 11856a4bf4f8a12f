"""How an error is told: in words on standard error, and as part of a JSON document."""

from __future__ import annotations

import contextlib
import sys

from safehold.model.errors import SafeholdError
from safehold.model.shown import printable

__all__ = ["as_document", "print_failure"]


def as_document(error: SafeholdError) -> dict[str, object]:
    """What stands under `error` in the JSON of a verb that failed."""
    return {
        "what": error.what,
        "on": error.on,
        "remedy": error.remedy,
        "retryable": error.retryable,
        "code": error.exit_code,
    }


def print_failure(error: SafeholdError) -> None:
    """What happened, on what, and what to do next."""
    # Where both go to one file, the closing sentence comes after the table that it closes.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"safehold: {printable(str(error))}", file=sys.stderr)
    if error.remedy:
        print(f"  → {printable(error.remedy)}", file=sys.stderr)
