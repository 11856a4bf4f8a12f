"""Dedup domains that a prune leaves whole, as nobody can tell what all of their points need.

An exported writer chooses what lies under its own names. If an unreadable object there stopped the prune, a stolen credential could stop it for
good; if the object were passed over, the damage of an honest point would cost its data. So everything stays that a session of the domain stored:
each pack whose header names one of its writers. Headers stand in clear and are covered by the packs' names, so that nobody can take a pack out of
this rule afterwards, and only a pack that a member of the domain made itself is put into it by whoever else names it in a run.
"""

from __future__ import annotations

from collections.abc import Iterable

from safehold.model.errors import DamageError, ObjectNotFound, ShortRead
from safehold.vault.catalogue import Rejected
from safehold.vault.vault import Vault

__all__ = ["Spared"]


class Spared:
    """The domains that one listing of the points leaves whole, each with the reason."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.reasons: dict[bytes, DamageError] = {}

    def reject(self, rejected: Iterable[Rejected]) -> None:
        """Take in what lies under `points/` without being a point. DamageError for what an exported writer did not put there."""
        for one in rejected:
            if one.void or one.barred:
                continue
            certificate = self._vault.certificate(one.wid)
            error = DamageError(
                f"what an object under points/ needs is unknown ({one.reason.removesuffix(f': {one.name}')})",
                on=one.name,
                remedy=one.remedy,
            )
            if certificate is None:
                raise error
            self.add(certificate.domain, [error])

    def add(self, domain: bytes, lost: Iterable[DamageError]) -> None:
        """Something that points of the domain need is unknown or gone. DamageError where the owner's own writers are of that domain: their
        points are no attack, and the owner is to decide.
        """
        for error in lost:
            if not all(one.exported for one in self._vault.writers.values() if one.domain == domain):
                raise error
            self.reasons.setdefault(domain, error)

    def packs(self, candidates: Iterable[str]) -> frozenset[str]:
        """Those of the packs in which something of these domains may lie. One whose header cannot be read may be of any."""
        if not self.reasons:
            return frozenset()
        wids = {wid for wid, one in self._vault.writers.items() if one.domain in self.reasons}
        return frozenset(name for name in candidates if self._names_one_of(name, wids))

    def _names_one_of(self, pack: str, wids: set[bytes]) -> bool:
        try:
            header = self._vault.fetcher.read_header(pack)
        except (DamageError, ObjectNotFound, ShortRead):
            return True
        return any(key.wid in wids for key in header.sessions)
