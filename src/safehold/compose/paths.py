"""Where this machine keeps what belongs to Safehold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Paths", "find_paths"]


@dataclass(frozen=True)
class Paths:
    """Directories for settings, state that is remembered, what can be computed again, and what a reboot clears away."""

    config: Path
    state: Path
    cache: Path
    run: Path

    @property
    def volumes(self) -> Path:
        """The directory of the volumes that this machine serves."""
        return self.state / "volumes"

    @property
    def volume_control(self) -> Path:
        """The socket on which the volume service takes orders."""
        return self.run / "volumes.control"

    @property
    def volume_switch(self) -> Path:
        """Where a switch of volumes that is under way is on record."""
        return self.run / "switch"

    @property
    def volume_exports(self) -> Path:
        """The socket on which the volume service speaks NBD."""
        return self.run / "volumes.nbd"

    @property
    def attached(self) -> Path:
        """The directory of the records of volumes that are devices of this machine."""
        return self.run / "attached"

    @property
    def default_vault(self) -> Path:
        """The file that holds the default vault's address."""
        return self.config / "default-vault"


def find_paths(environment: Mapping[str, str], user: int) -> Paths:
    """`SAFEHOLD_HOME` overrides all; root has the system's places, everybody else the XDG ones. Absolute, wherever this process goes."""
    home = environment.get("SAFEHOLD_HOME")
    if home:
        base = _absolute(home)
        return Paths(base / "config", base / "state", base / "cache", base / "run")
    if user == 0:
        return Paths(
            Path("/etc/safehold"), Path("/var/lib/safehold"), Path("/var/cache/safehold"), Path("/run/safehold")
        )

    def place(variable: str, fallback: str) -> Path:
        given = environment.get(variable)
        return _absolute(given or Path(environment.get("HOME") or os.path.expanduser("~")) / fallback) / "safehold"

    state = place("XDG_STATE_HOME", ".local/state")
    run = place("XDG_RUNTIME_DIR", "") if environment.get("XDG_RUNTIME_DIR") else state / "run"
    return Paths(place("XDG_CONFIG_HOME", ".config"), state, place("XDG_CACHE_HOME", ".cache"), run)


def _absolute(given: str | Path) -> Path:
    path = Path(given).expanduser()
    # The path of a socket has to be short.
    return path if path.is_absolute() else path.resolve()
