"""Every error a user can meet.

    SafeholdError
    ├── UsageError              2  the command or a setting is wrong
    ├── PartialError            3  something was saved or restored, not everything
    ├── DamageError             4  stored bytes are missing or are not what was written
    │   └── RollbackError       4  the vault is older than what this machine has seen
    ├── StoreError              5  the object store did not do what was asked
    │   ├── StoreUnavailable    5  … for now: worth retrying
    │   ├── ObjectNotFound      5
    │   ├── ObjectExists        5
    │   ├── StorePermission     5
    │   ├── StoreFull           5
    │   └── ShortRead           5  fewer bytes than asked for
    ├── VaultKeyError              6  no key, the wrong key, or a key that may not do this
    ├── ConsistencyError        7  quieter was asked for than could be reached
    │   └── StillHeldError      7  … and what was made quiet could not be let go of
    ├── OverdueError            8  a resource has no recent enough point
    └── FailedError             1  anything else that stops a run
        ├── SourceError         1  a resource could not be read
        ├── TargetError         1  a restore target could not be written
        ├── FencedError         1  another process ended this session
        ├── FormatError         1  the vault needs a newer program
        └── CancelledError      1  the user stopped the run

The number is the exit code. An error says what failed, on what, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "ConsistencyError",
    "DamageError",
    "FailedError",
    "FencedError",
    "FormatError",
    "ObjectExists",
    "ObjectNotFound",
    "OverdueError",
    "PartialError",
    "RollbackError",
    "SafeholdError",
    "ShortRead",
    "SourceError",
    "StillHeldError",
    "StoreError",
    "StoreFull",
    "StorePermission",
    "StoreUnavailable",
    "TargetError",
    "UsageError",
    "VaultKeyError",
]


class SafeholdError(Exception):
    """Base of all errors that reach a user.

    `what` says what failed, `on` names the object, path or resource, `remedy` says what to do next.
    `retryable` is true where the same call may succeed later without anybody changing anything.
    """

    exit_code: int = 1
    retryable: bool = False

    def __init__(self, what: str, *, on: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.on = on
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.on}" if self.on else self.what


class UsageError(SafeholdError):
    """The command line, a setting or a file given by the user is wrong."""

    exit_code = 2


class PartialError(SafeholdError):
    """Something was saved or restored, but not everything."""

    exit_code = 3


class DamageError(SafeholdError):
    """Stored bytes are missing, or are not what was written."""

    exit_code = 4


class RollbackError(DamageError):
    """The vault shows an older state than one this machine has already seen."""


class StoreError(SafeholdError):
    """The object store did not do what was asked."""

    exit_code = 5


class StoreUnavailable(StoreError):
    """The store cannot be reached or answered with a passing fault."""

    retryable = True


class ObjectNotFound(StoreError):
    """No object of that name."""


class ObjectExists(StoreError):
    """A create-only put met an object of that name."""


class StorePermission(StoreError):
    """The store refused the credentials or the file mode."""


class StoreFull(StoreError):
    """No space or quota left for the object."""


class ShortRead(StoreError):
    """Fewer bytes came back than were asked for."""


class VaultKeyError(SafeholdError):
    """No key, the wrong key, or a key that may not do this."""

    exit_code = 6


class ConsistencyError(SafeholdError):
    """The consistency that was asked for was not reached."""

    exit_code = 7


class StillHeldError(ConsistencyError):
    """Something was made quiet and could not be let go of; the watchdog keeps trying."""


class OverdueError(SafeholdError):
    """A resource has no point that is recent enough."""

    exit_code = 8


class FailedError(SafeholdError):
    """A run stopped for a reason outside the other families."""


class SourceError(FailedError):
    """A resource could not be read."""


class TargetError(FailedError):
    """A restore target could not be opened or written."""


class FencedError(FailedError):
    """Another process ended this session, so it can never commit."""


class FormatError(FailedError):
    """The vault uses a feature or version that this program does not have."""


class CancelledError(FailedError):
    """The user stopped the run."""
