"""Picks stores, sources and targets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from safehold.adapters.files.destination import check_directory, open_directory
from safehold.adapters.files.patterns import compile_patterns
from safehold.adapters.files.source import FilesSource, MountMemory
from safehold.adapters.files.stream import StreamSource
from safehold.adapters.files.view import open_view
from safehold.adapters.files.walk import Rules
from safehold.adapters.image.lvm import DiskSource
from safehold.adapters.image.target import check_existing, check_new, open_existing, open_new
from safehold.app.opening import Stores
from safehold.app.restore import RestoreMode, RestorePlan
from safehold.compose.paths import Paths
from safehold.compose.plugins import installed_sources
from safehold.model.clock import Clock
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.objects.limit import ByteSemaphore, LimitStore
from safehold.objects.location import UPLOAD_BUDGET, full_address, local_place, open_store
from safehold.objects.retry import RetryStore
from safehold.ports.blocks import MutableBlocks
from safehold.ports.source import Source
from safehold.ports.tree import TreeTarget, TreeView
from safehold.vault.places import Places

__all__ = [
    "Sources",
    "TreeOptions",
    "check_target",
    "look_below",
    "open_stores",
    "open_target",
    "open_tree_target",
    "path_matcher",
    "places",
    "record_default_vault",
    "vault_address",
]


_UPLOADS = ByteSemaphore(UPLOAD_BUDGET)
"""One for the process: a service has several vaults open, and memory is common to them."""


def open_stores(url: str, clock: Clock) -> Stores:
    """The store at that address: once with and once without retries. All of a process's stores share one bound on the bytes under way."""
    direct = LimitStore(open_store(url), _UPLOADS)
    return Stores(RetryStore(direct, clock), direct, full_address(direct.url))


def places(paths: Paths) -> Places:
    """Where an open vault keeps its own things on this machine."""
    return Places(paths.state, paths.cache)


def vault_address(option: str | None, environment: os._Environ[str], paths: Paths) -> str:
    """From `--vault`, `SAFEHOLD_VAULT`, or what `vault init` recorded; UsageError where there is none."""
    if option:
        return option
    if environment.get("SAFEHOLD_VAULT"):
        return environment["SAFEHOLD_VAULT"]
    try:
        return paths.default_vault.read_text().strip()
    except OSError:
        raise UsageError(
            "which vault?", remedy="give --vault, set SAFEHOLD_VAULT, or make one: safehold vault init PLACE"
        ) from None


def record_default_vault(paths: Paths, url: str) -> bool:
    """Make `url` the default unless there is one already; true where it was recorded."""
    if paths.default_vault.exists():
        return False
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.default_vault.write_text(url + "\n")
    return True


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
        exclude = path_matcher(options.exclude, "--exclude")
        own = [paths.cache, paths.state, *local_place(vault)]
        never = frozenset(os.path.realpath(os.fsencode(path)) for path in own)
        rules = Rules(exclude, options.caches, options.one_file_system, never)
        self._files = FilesSource(rules, MountMemory(paths.state / "mounts"), options.accept_unmounted)
        self._all: tuple[Source, ...] = (StreamSource(), self._files, DiskSource())

    def resolve(self, spec: str) -> tuple[Source, ResourceRef]:
        """The source that takes `spec`; UsageError where none does."""
        for source in self._all:
            ref = source.resolve(spec)
            if ref is not None:
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
            remedy="give a directory, a raw or qcow2 image, a block device, or - for standard input",
        )

    def join(self, specs: Sequence[str], name: str) -> tuple[Source, ResourceRef]:
        """One tree of several files and directories."""
        refs = []
        for spec in specs:
            source, ref = self.resolve(spec)
            if source is not self._files:
                forced = None if spec == "-" else self._files.resolve(f"tree:{spec}")
                if forced is None:
                    raise UsageError("only files and directories go together under one name", on=spec)
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


def open_target(path: str, size: int, mode: RestoreMode) -> AbstractContextManager[MutableBlocks]:
    """A new file, or an existing file or device, as the mode says. A block device is never new: it needs the mode
    said.
    """
    if mode is RestoreMode.NEW:
        return open_new(path, size)
    return open_existing(path, size)


def check_target(plan: RestorePlan) -> None:
    """TargetError where the plan's target would be refused as it is now; nothing is written."""
    if plan.kind == "tree" and not plan.single:
        check_directory(plan.target, existing=plan.mode is not RestoreMode.NEW)
    elif plan.mode is RestoreMode.NEW:
        check_new(plan.target)
    elif not plan.single:
        check_existing(plan.target)


def open_tree_target(path: str, mode: RestoreMode) -> AbstractContextManager[TreeTarget]:
    """A directory to restore files into: an empty or new one, unless the mode says otherwise."""
    return open_directory(path, existing=mode is not RestoreMode.NEW)


def look_below(path: str) -> TreeView:
    """What lies below a directory that files would be restored into."""
    return open_view(path)


def path_matcher(patterns: Sequence[str], option: str) -> Callable[[bytes], bool] | None:
    """Tells whether a path fits one of the shell patterns that `option` gave; None for none. UsageError."""
    try:
        return compile_patterns(patterns)
    except ValueError as error:
        raise UsageError(str(error), on=option) from error
