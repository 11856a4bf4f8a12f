"""Anything done to a tree of files, backed up in any interleaving with crashes and lost memories, restores to what the tree was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.adapters.files.destination import open_directory
from safehold.adapters.files.source import FilesSource, MountMemory
from safehold.adapters.files.walk import Rules
from safehold.app.backup import BackupOptions, BackupOutcome, back_up
from safehold.app.host import Host
from safehold.app.verify import Depth, verify_points
from safehold.model.clock import SystemClock
from safehold.model.context import Context
from safehold.recovery.tree import FileLosses, Selection, write_tree
from safehold.testing.fault_store import FaultStore, Killed
from safehold.vault.catalogue import Point
from safehold.vault.vault import Vault
from tests.files import attributes, rsync_differences, snapshot
from tests.worlds import World

NAMES = ["a", "b", "dir", "dir/a", "dir/b", "dir/sub", "dir/sub/a", "dir-", "dir-/a", "z\udcff"]

steps = st.one_of(
    st.tuples(
        st.just("write"), st.sampled_from(NAMES), st.sampled_from([0, 1, 5000, 140_000, 1_500_000]), st.integers(0, 3)
    ),
    st.tuples(st.just("append"), st.sampled_from(NAMES), st.sampled_from([1, 5000, 200_000]), st.integers(0, 3)),
    st.tuples(st.just("sparse"), st.sampled_from(NAMES), st.sampled_from([1, 300_000]), st.just(0)),
    st.tuples(st.just("mkdir"), st.sampled_from(NAMES), st.just(0), st.just(0)),
    st.tuples(st.just("many"), st.sampled_from(NAMES), st.sampled_from([3, 400]), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just(0), st.just(0)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.integers(0, len(NAMES) - 1), st.just(0)),
    st.tuples(st.just("link"), st.sampled_from(NAMES), st.integers(0, len(NAMES) - 1), st.just(0)),
    st.tuples(st.just("symlink"), st.sampled_from(NAMES), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("chmod"), st.sampled_from(NAMES), st.sampled_from([0o600, 0o644, 0o755]), st.just(0)),
    st.tuples(st.just("chown"), st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("attribute"), st.sampled_from(NAMES), st.integers(0, 5), st.integers(0, 300)),
    st.tuples(st.just("acl"), st.sampled_from(NAMES), st.integers(1, 3), st.integers(0, 7)),
    st.tuples(st.just("capability"), st.sampled_from(NAMES), st.just(0), st.just(0)),
    st.tuples(st.just("node"), st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 200)),
    st.tuples(st.just("time"), st.sampled_from(NAMES), st.integers(-(2**33), 2**33), st.integers(0, 999_999_999)),
    st.tuples(st.just("backup"), st.just(""), st.just(0), st.just(0)),
    st.tuples(st.just("backup"), st.just(""), st.just(0), st.just(0)),
    st.tuples(st.just("crash"), st.just(""), st.integers(1, 8), st.integers(0, 1)),
    st.tuples(st.just("forget"), st.just(""), st.just(0), st.just(0)),
)
Step = tuple[str, str, int, int]


class Later(SystemClock):
    """So far ahead of the files' times that they are believed to have come to rest."""

    def now(self) -> float:
        return time.time() + 3600


@dataclass
class Files:
    """A tree, a vault, and what the tree held at each point."""

    folder: Path
    expected: dict[str, dict[str, tuple[object, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.top = self.folder / "top"
        self.top.mkdir()
        self.ctx = Context(clock=Later())
        self.world = World(self.folder / "world", ctx=self.ctx)
        self.source = FilesSource(Rules(), MountMemory(self.folder / "mounts"))

    def change(self, verb: str, name: str, a: int, b: int) -> None:
        path = self.top / name
        if verb in ("write", "append", "sparse") and path.exists() and not path.is_file():
            # Whoever opens a FIFO waits for its other end.
            return
        with contextlib.suppress(OSError):
            if verb == "write":
                path.write_bytes(random.Random(b).randbytes(a))
            elif verb == "append":
                with path.open("ab") as file:
                    file.write(random.Random(b).randbytes(a))
            elif verb == "sparse":
                with path.open("r+b") as file:
                    file.truncate(8_000_000)
                    file.seek(4_000_000)
                    file.write(b"x" * a)
            elif verb == "mkdir":
                path.mkdir()
            elif verb == "many":
                path.mkdir(exist_ok=True)
                for n in range(a):
                    (path / f"f{n}").write_bytes(b"%d" % b * (n % 300))
            elif verb == "remove":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            elif verb == "rename":
                path.rename(self.top / NAMES[a])
            elif verb == "link":
                os.link(path, self.top / NAMES[a])
            elif verb == "symlink":
                path.symlink_to("x" * a)
            elif verb == "chmod":
                path.chmod(a)
            elif verb == "chown":
                os.chown(path, a, b, follow_symlinks=False)
            elif verb == "attribute":
                os.setxattr(path, f"user.{a}", random.Random(b).randbytes(b))
            elif verb == "acl":
                subprocess.run(["setfacl", "-m", f"u:{a}:{b}", path], capture_output=True, check=False)
            elif verb == "capability":
                subprocess.run(["setcap", "cap_net_raw+ep", path], capture_output=True, check=False)
            elif verb == "node":
                kind = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)[a]
                os.mknod(path, kind | 0o640, os.makedev(b, a) if a in (1, 2) else 0)
            elif verb == "time":
                os.utime(path, ns=(0, a * 1_000_000_000 + b), follow_symlinks=False)

    def back_up(self, vault: Vault | None = None) -> BackupOutcome:
        # File times have a granularity: what happens before and after a look at a file must not share one.
        time.sleep(0.012)
        ref = self.source.resolve(str(self.top))
        assert ref is not None
        host = Host("host", "id", "boot")
        return back_up(vault or self.world.open(), self.source, ref, host, BackupOptions(), self.ctx)

    def crash(self, nth: int, lost: bool) -> None:
        faulty = FaultStore(self.world.store)
        faulty.fail("put", nth=nth, lost=lost, error=Killed)
        with contextlib.suppress(Killed):
            self.back_up(self.world.open(faulty))
        now = snapshot(self.top)
        for point in self.world.fresh().points()[0]:
            self.expected.setdefault(point.id, now)

    def restored(self, vault: Vault, point: Point, number: int) -> Path:
        out = self.folder / f"out{number}"
        member = point.body.members[0]
        base = os.fsencode(str(self.top)).strip(b"/")
        with open_directory(str(out), existing=False) as target:
            write_tree(
                vault.tree(point, member),
                vault.chunks(point),
                Selection(base),
                target,
                FileLosses(False),
                self.ctx,
                compare=False,
            )
            assert target.problems == []
        return out


@contextlib.contextmanager
def files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory() as folder:
        yield Files(Path(folder))


def play(history: list[Step]) -> None:
    with files() as tree:
        for verb, name, a, b in [*history, ("backup", "", 0, 0)]:
            if verb == "backup":
                outcome = tree.back_up()
                assert outcome.partial == ()
                tree.expected[outcome.point] = snapshot(tree.top)
            elif verb == "crash":
                tree.crash(a, bool(b))
            elif verb == "forget":
                shutil.rmtree(tree.folder / "world/home/cache", ignore_errors=True)
            else:
                tree.change(verb, name, a, b)
        again = tree.back_up()
        assert again.read == 0
        tree.expected[again.point] = snapshot(tree.top)
        vault = tree.world.fresh()
        points, rejected = vault.points()
        assert rejected == []
        assert {p.id for p in points} == set(tree.expected)
        for n, point in enumerate(points):
            restored = tree.restored(vault, point, n)
            assert snapshot(restored) == tree.expected[point.id]
            if point.id == again.point:
                assert rsync_differences(tree.top, restored) == ""
                assert attributes(restored) == attributes(tree.top)
        assert verify_points(vault, None, Depth.DATA, [], tree.ctx).found == []


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=4, max_size=16))
def test_histories(history: list[Step]) -> None:
    play(history)


@pytest.mark.soak
@settings(max_examples=2000, deadline=None)
@given(st.lists(steps, min_size=4, max_size=40))
def test_long_histories(history: list[Step]) -> None:
    play(history)


def test_bundles_of_few_files_that_are_left_are_stored_anew() -> None:
    with files() as tree:
        tree.change("many", "dir", 400, 1)
        tree.back_up()
        for n in range(400):
            if n % 10:
                (tree.top / f"dir/f{n}").unlink()
        assert tree.back_up().read == 0
        second = tree.back_up()
        assert second.read == sum(n % 300 for n in range(0, 400, 10))
        assert tree.back_up().read == 0


def test_what_vanishes_or_changes_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is disturbed between the look at it and the reading."""
    from safehold.adapters.files import walk

    with files() as tree:
        tree.change("many", "dir", 3, 1)
        for name in ("gone", "changing", "growing"):
            (tree.top / name).write_bytes(b"x" * 100)
        (tree.top / "became a fifo").write_bytes(b"x")
        (tree.top / "large").write_bytes(b"x" * 2_000_000)
        listing = walk.DirectoryListing
        read_small, read_into = listing.read_small, walk.OpenFd.read_into

        def disturb(self: walk.DirectoryListing, position: int) -> None:
            name = self.names[position]
            path = os.path.join(b"/" + self.parent, name)
            if name == b"gone":
                os.unlink(path)
            elif name == b"changing":
                with open(path, "r+b") as file:
                    file.write(os.urandom(8))
            elif name == b"growing" and os.path.getsize(path) < 120_000:
                with open(path, "ab") as file:
                    file.write(b"y" * 60_000)
            elif name == b"became a fifo" and not os.path.exists(path + b"2"):
                os.rename(path, path + b"2")
                os.mkfifo(path)

        def small(self: walk.DirectoryListing, position: int, buf: memoryview) -> object:
            disturb(self, position)
            done = read_small(self, position, buf)
            disturb(self, position) if self.names[position] == b"changing" else None
            return done

        def large(self: walk.OpenFd, offset: int, buf: memoryview) -> int:
            time.sleep(0.012)
            with (tree.top / "large").open("r+b") as file:
                file.write(os.urandom(8))
            return read_into(self, offset, buf)

        monkeypatch.setattr(listing, "read_small", small)
        monkeypatch.setattr(walk.OpenFd, "read_into", large)
        outcome = tree.back_up()
        told = {line.partition(": ")[0].rpartition("/")[2]: line.partition(": ")[2] for line in outcome.partial}
        assert set(told) == {"gone", "changing", "large", "became a fifo"}
        assert told["gone"] == "vanished"
        assert "changed while it was read" in told["changing"]
        monkeypatch.undo()
        vault = tree.world.fresh()
        (point,) = vault.points()[0]
        assert len(point.body.members[0].partial) == 4
        assert verify_points(vault, None, Depth.DATA, [], tree.ctx).found == []
        out = tree.restored(vault, point, 0)
        assert (out / "dir/f2").read_bytes() == (tree.top / "dir/f2").read_bytes()
        assert not (out / "gone").exists()
        # Twice it grew before it was read, then it stayed as it was.
        assert (out / "growing").read_bytes() == (tree.top / "growing").read_bytes()
