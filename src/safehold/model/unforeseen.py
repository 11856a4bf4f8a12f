"""Errors that no code foresaw, told like the others."""

from __future__ import annotations

import errno

from safehold.model.errors import FailedError, SafeholdError

__all__ = ["explain"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def explain(error: Exception) -> SafeholdError:
    """Any error as one that a user can read: of a machine without room or in trouble, else of a bug."""
    told: SafeholdError
    if isinstance(error, SafeholdError):
        return error
    where = str(getattr(error, "filename", None) or "")
    if isinstance(error, OSError) and error.errno in _FULL:
        told = FailedError(
            "no room left on this machine",
            on=where,
            remedy="make room where Safehold keeps state and cache, and for temporary files (TMPDIR)",
        )
    elif isinstance(error, OSError) and error.errno in _MACHINE:
        told = FailedError(f"this machine does not let it be done ({error.strerror})", on=where)
    elif isinstance(error, MemoryError):
        told = FailedError("out of memory", remedy="give the process more memory, or use a vault with smaller blocks")
    else:
        told = FailedError(
            f"internal error: {type(error).__name__}: {error}",
            remedy="this is a bug; what was committed before stays. Set SAFEHOLD_DEBUG=1 to see where it happened, and report it",
        )
    told.__cause__ = error
    return told
