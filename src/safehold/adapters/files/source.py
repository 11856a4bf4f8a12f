"""Trees of files as a source of backups."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safehold.adapters.files.mounts import expected_mounts, kernel_mounts, mount_points, still_mounts
from safehold.adapters.files.walk import FileTree, Rules
from safehold.adapters.linux.descriptors import many_descriptors
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, SourceError, UsageError
from safehold.model.remembered import keep
from safehold.model.resource import ResourceRef
from safehold.model.shown import printable
from safehold.model.topology import Topology
from safehold.ports.source import Interval

__all__ = ["FilesSource", "MountMemory", "TreeCapture"]

KIND = "tree"
_PREFIX = "tree:"


class MountMemory:
    """Remembers which mount points a tree had, so that one that lost its file system is not taken for an empty directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, name: str) -> Path:
        return self._directory / (hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32] + ".json")

    def load(self, name: str) -> set[bytes]:
        """Mount points of the tree at its last backup; empty where nothing is remembered."""
        try:
            found = json.loads(self._path(name).read_text())
            return {os.fsencode(str(path)) for path in found}
        except (OSError, ValueError, TypeError):
            return set()

    def store(self, name: str, mounts: set[bytes]) -> None:
        """Replace what is remembered. OSError where it cannot be."""
        keep(self._path(name), json.dumps(sorted(os.fsdecode(path) for path in mounts)).encode())


@dataclass(frozen=True)
class FilesSource:
    """Directories, or several paths that make one tree. `accept_unmounted` takes a tree as it lies there, whatever was mounted
    before.
    """

    rules: Rules
    memory: MountMemory
    accept_unmounted: bool = False

    def resolve(self, spec: str) -> ResourceRef | None:
        """A directory, or with `tree:` in front any file. See `ports.source.Source`."""
        forced = spec.startswith(_PREFIX)
        path = os.path.expanduser(spec.removeprefix(_PREFIX))
        if not os.path.lexists(path):
            if forced:
                raise UsageError("no such file or directory", on=path)
            return None
        if not forced and not os.path.isdir(path):
            return None
        real = os.path.realpath(path)
        return ResourceRef(KIND, printable(os.path.abspath(path).strip("/").replace("/", "-")) or "root", real)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[TreeCapture]:
        """See `ports.source.Source`. Files are read one after another: more than NONE is reached only on file systems that are
        mounted read-only.
        """
        roots = [os.fsencode(path) for path in (ref.location, *ref.more)]
        mounted = mount_points()
        self._check_mounts(ref, roots, mounted)
        still = _stillness(roots)
        if still < require:
            raise ConsistencyError(
                f"{ref.name} is a tree of files that can change while it is read; {require.label} consistency cannot be reached",
                on=ref.location,
                remedy="back up a snapshot that is mounted read-only, or accept what comes with --require none",
            )
        tree = FileTree(roots, replace(self.rules, hollow=self.rules.hollow | kernel_mounts()), ctx.clock)
        touched = {path for path in mounted if _touches(path, roots)}
        # One descriptor for each level of directories: a deep tree needs many.
        with many_descriptors():
            yield TreeCapture(ref, tree, roots, self.memory, touched, ctx)

    def _check_mounts(self, ref: ResourceRef, roots: list[bytes], mounted: set[bytes]) -> None:
        if self.accept_unmounted:
            return
        wanted = self.memory.load(ref.name) | expected_mounts()
        if self.rules.one_file_system:
            wanted = {path for path in wanted if any(_inside(root, path) for root in roots)}
        lost = sorted(path for path in wanted - mounted if path != b"/" and _touches(path, roots))
        if lost:
            raise SourceError(
                "no file system is mounted where one should be",
                on=", ".join(printable(path) for path in lost),
                remedy="mount it; or back up what lies there now, for good, with --adopt",
            )


def _inside(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _touches(mount: bytes, roots: list[bytes]) -> bool:
    """True for a mount point below a root, or that a root lies on."""
    return any(_inside(mount, root) or _inside(root, mount) for root in roots)


def _stillness(roots: list[bytes]) -> Consistency:
    still = still_mounts()
    for root in roots:
        on = max((path for path in still if _inside(root, path)), key=len)
        if not all(quiet for path, quiet in still.items() if path == on or _inside(path, root)):
            return Consistency.NONE
    return Consistency.FILESYSTEM


class TreeCapture:
    """Files as they are while they are read. See `ports.source.Capture`."""

    def __init__(
        self,
        ref: ResourceRef,
        content: FileTree,
        roots: list[bytes],
        memory: MountMemory,
        mounts: set[bytes],
        ctx: Context,
    ) -> None:
        self.resource = ref
        self.content = content
        self.topology: Topology | None = None
        self._roots = roots
        self._memory, self._mounts, self._ctx = memory, mounts, ctx
        self._start = ctx.clock.now()
        self._still = _stillness(roots)

    @property
    def achieved(self) -> Consistency:
        """See `ports.source.Capture`: a file system that is made writable while it is read is not still."""
        self._still = min(self._still, _stillness(self._roots))
        return self._still

    def committed(self) -> None:
        """Remember what was mounted, for the next time."""
        try:
            self._memory.store(self.resource.name, self._mounts)
        except OSError as error:
            self._ctx.progress.warn(f"which file systems were mounted cannot be remembered ({error.strerror})")

    @property
    def taken(self) -> Interval:
        """From the beginning of the walk until now."""
        return Interval(self._start, self._ctx.clock.now())
