"""Picks the source of what is backed up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safehold.adapters.files.command import CommandSource
from safehold.adapters.files.source import FilesSource, MountMemory
from safehold.adapters.files.stream import StreamSource
from safehold.adapters.files.walk import Rules
from safehold.adapters.image.lvm import DiskSource
from safehold.compose.paths import Paths
from safehold.compose.patterns import path_matcher
from safehold.compose.plugins import installed_sources
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.objects.location import identities, local_place, within
from safehold.ports.source import Source

__all__ = ["Sources", "TreeOptions"]


@dataclass(frozen=True)
class TreeOptions:
    """What the user wants left out of trees of files: shell patterns, the content of tagged cache directories, other file systems.
    `accept_unmounted` takes a tree although something that was mounted in it no longer is.
    """

    exclude: tuple[str, ...] = ()
    caches: bool = False
    one_file_system: bool = False
    accept_unmounted: bool = False


class Sources:
    """Finds the source for what the user names: one of ours, else one that another package brings."""

    def __init__(self, options: TreeOptions, paths: Paths, vault: str) -> None:
        """`vault` is the vault's address: a tree that holds the vault does not go into it. UsageError for a broken pattern."""
        self._vault = vault
        exclude = path_matcher(options.exclude, "--exclude")
        own = [paths.cache, paths.state, *local_place(vault)]
        never = frozenset(os.path.realpath(os.fsencode(path)) for path in own)
        rules = Rules(exclude, options.caches, options.one_file_system, never, identities(map(str, own)))
        self._files = FilesSource(rules, MountMemory(paths.state / "mounts"), options.accept_unmounted)
        self._all: tuple[Source, ...] = (StreamSource(), CommandSource(), self._files, DiskSource())

    def resolve(self, spec: str) -> tuple[Source, ResourceRef]:
        """The source that takes `spec`; UsageError where none does, and for the vault itself."""
        for source in self._all:
            ref = source.resolve(spec)
            if ref is None:
                continue
            if ref.kind != "stream" and within(ref.location, self._vault):
                raise UsageError(
                    "this is the vault itself, which would grow with every backup of it",
                    on=spec,
                    remedy="for a second copy, copy its directory with a tool for files while no backup runs",
                )
            return source, ref
        # Looked up only here: what everybody backs up does not wait for it.
        for source in installed_sources():
            ref = source.resolve(spec)
            if ref is not None:
                return source, _known(ref)
        there = Path(spec).exists()
        raise UsageError(
            "this kind of thing cannot be backed up" if there else "no such file, directory or device",
            on=spec,
            remedy="give a directory, a raw or qcow2 image, a block device, - for standard input, or command:PROGRAM",
        )

    def join(self, specs: Sequence[str], name: str) -> tuple[Source, ResourceRef]:
        """One tree of several files and directories."""
        refs = []
        for spec in specs:
            source, ref = self.resolve(spec)
            if source is not self._files:
                forced = None if ref.kind == "stream" else self._files.resolve(f"tree:{spec}")
                if forced is None:
                    raise UsageError(
                        "only files and directories go together under one name",
                        on=spec,
                        remedy="give this a name of its own; a command is one word: 'command:pg_dump orders'",
                    )
                ref = forced
            refs.append(ref)
        return self._files, ResourceRef(refs[0].kind, name, refs[0].location, tuple(r.location for r in refs[1:]))


def _known(ref: ResourceRef) -> ResourceRef:
    """The resource of another package's source; UsageError where nothing could restore a point of it."""
    if ref.kind not in ("volume", "tree", "stream"):
        raise UsageError(
            f"its source gives it the kind {ref.kind!r}, which cannot be restored",
            on=ref.location,
            remedy="the source has to give a volume, a tree or a stream",
        )
    return ref
