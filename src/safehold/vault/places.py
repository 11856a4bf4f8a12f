"""Where a machine keeps what it knows of vaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

__all__ = ["OwnPlaces", "Places"]


@dataclass(frozen=True)
class Places:
    """Where this machine keeps what it remembers (`state`) and what it could compute again (`cache`)."""

    state: Path
    cache: Path

    def of(self, vault: bytes) -> OwnPlaces:
        """Those of one vault."""
        name = vault.hex()
        return OwnPlaces(
            self.cache / name,
            self.state / "reads" / name,
            self.state / "tried" / f"{name}.json",
            self.state / "findings" / f"{name}.json",
            self.state / "points" / name,
        )


@dataclass(frozen=True)
class OwnPlaces:
    """Of one vault: a directory for what could be computed again, and files that tell when which pack was read (`read_log`), when it was tried
    whether the vault's stores keep order (`tried_stores`), what the last verification found (`findings`), and which points there were (`known`).
    """

    cache: Path
    read_log: Path
    tried_stores: Path
    findings: Path
    known: Path

    def points(self, address: str) -> Path:
        """Where the points are remembered that were read at an address: a copy of the vault may have others."""
        return self.known / blake3(address.encode()).hexdigest()[:32]

    def scratch(self) -> Path:
        """A directory with room for what is too large for memory: not the system's one for temporary files, which often is memory itself."""
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.cache

    def tree(self, resource: str) -> Path:
        """Where the last backup of a tree is remembered."""
        return self.cache / "trees" / blake3(resource.encode()).hexdigest()[:32]
