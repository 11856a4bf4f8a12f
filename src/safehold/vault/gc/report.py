"""What a prune tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from safehold.model.errors import DamageError
from safehold.vault.gc.sessions import OpenSession

__all__ = ["PruneReport"]


@dataclass
class PruneReport:
    """What a prune found and did; sizes in bytes.

    `live` is needed by points, `condemned` is not and goes once no session can rely on it; `deleted` is gone; `moved` was copied out of packs
    that were mostly garbage. `waiting` are the sessions
    that have to end first, `fenced` those that were found dead. `spared` are the dedup domains of writers that were left whole, with the reason.
    """

    live: int = 0
    stored: int = 0
    condemned: int = 0
    condemned_packs: int = 0
    deleted: int = 0
    deleted_packs: int = 0
    absorbed: int = 0
    moved: int = 0
    waiting: list[OpenSession] = field(default_factory=list)
    fenced: list[OpenSession] = field(default_factory=list)
    spared: dict[bytes, DamageError] = field(default_factory=dict)
