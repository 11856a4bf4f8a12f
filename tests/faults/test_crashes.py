"""SIGKILL to the real program around every change of the store: nothing committed is lost, nothing half-done is visible."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safehold.app.keys import export_writer
from safehold.app.opening import Credentials, open_vault
from safehold.app.verify import Depth, verify_points
from safehold.compose.wiring import open_stores
from safehold.model.context import Context
from safehold.recovery.verify import verify_stored
from safehold.testing.program import Program
from safehold.vault.places import Places
from safehold.vault.slots import Passphrase
from safehold.vault.vault import Vault
from tests.disks import make_disk, same
from tests.struck import Struck
from tests.worlds import read_back

KILLED = -9
BLOCK = "4K"


@dataclass
class Scene:
    """A place for a vault and a program whose default it is."""

    program: Program
    place: str
    tmp: Path
    remote: bool
    struck: Struck
    contents: dict[str, bytes] = field(default_factory=dict)

    def disk(self, number: int) -> Path:
        """A small disk of content number `number`; some of it in every disk, some in this one alone."""
        path = self.tmp / "disk.img"
        data = random.Random(0).randbytes(24_000) + bytes(8192) + random.Random(number + 1).randbytes(24_100)
        path.write_bytes(data)
        self.contents[str(number)] = data
        return path

    def backup(self, number: int) -> list[object]:
        """The arguments that back that disk up."""
        return ["backup", self.disk(number), "--tag", f"content={number}"]

    def remember(self) -> Callable[[], None]:
        """Of a local vault: calling the result brings the vault and the home back to how they are now."""
        copies = [(self.program.home, self.tmp / "saved-home"), (Path(self.place), self.tmp / "saved-vault")]
        for source, copy in copies:
            shutil.copytree(source, copy)

        def back() -> None:
            for source, copy in copies:
                shutil.rmtree(source)
                shutil.copytree(copy, source)

        return back

    @contextlib.contextmanager
    def opened(self, passphrase: str = "correct horse") -> Iterator[Vault]:
        """The vault as its owner has it on a machine that knows nothing."""
        ctx = Context()
        with tempfile.TemporaryDirectory() as fresh:
            places = Places(Path(fresh), Path(fresh))
            yield open_vault(
                open_stores(self.place, ctx.clock), Credentials(unlocker=Passphrase(passphrase)), places, ctx
            )

    def settled(self, passphrase: str = "correct horse") -> int:
        """The vault opens on a machine that knows nothing, is clean, and every point is bit for bit right. Returns how many there are."""
        with self.opened(passphrase) as vault:
            assert verify_points(vault, None, Depth.DATA, [], vault.ctx).found == []
            assert verify_stored(vault.store, vault.ctx).found == []
            points, rejected = vault.points()
            assert rejected == []
            for point in points:
                assert read_back(vault, point) == self.contents[point.body.tags["content"]]
        return len(points)


@pytest.fixture(params=["local", "s3"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, struck: Struck) -> Scene:
    remote = request.param == "s3"
    place = str(request.getfixturevalue("s3")) if remote else str(tmp_path / "vault")
    program = Program(tmp_path / "home", {"SAFEHOLD_VAULT": place, "SAFEHOLD_NEW_PASSPHRASE": "new words"})
    return Scene(program, place, tmp_path, remote, struck)


def every_crash(scene: Scene, prepare: Callable[[], list[object]], check: Callable[[bool], None]) -> None:
    """Kill a command at each of its changes: before it, in the middle of it, and after the last. `check(finished)` follows each.

    `prepare` makes the scene ready for another run and gives the command line.
    """
    report = scene.tmp / "report"
    assert scene.program.crash(0, "before", report, *prepare()).returncode == 0
    changes = report.read_text().split()
    check(True)
    moments = [(n, "before") for n in range(1, len(changes) + 1)]
    moments += [(n, "during") for n, kind in enumerate(changes, 1) if kind == "parts"]
    killed = 0
    for number, when in [*moments, (len(changes), "after")]:
        code = scene.program.crash(number, when, report, *prepare()).returncode
        # Uploads run side by side, so a run may have some changes more or less than the first one had.
        assert code in (0, KILLED)
        killed += code == KILLED
        check(code == 0)
    scene.struck("crash points (SIGKILL)", killed)
    assert killed >= max(1, len(moments) - 4)


def test_init(scene: Scene) -> None:
    numbers = iter(range(10_000))
    base = scene.place

    def prepare() -> list[object]:
        scene.place = f"{base}/{next(numbers)}"
        scene.program.environment["SAFEHOLD_VAULT"] = scene.place
        return ["vault", "init", scene.place, "--block-size", BLOCK]

    def check(finished: bool) -> None:
        again = scene.program.run("vault", "init", scene.place, code=None)
        assert again.returncode == (2 if "there is a vault here already" in again.stderr else 0)
        assert scene.settled() == 0

    every_crash(scene, prepare, check)
    scene.program.run(*scene.backup(0))
    assert scene.settled() == 1


def test_backup(scene: Scene) -> None:
    scene.program.run("vault", "init", scene.place, "--block-size", BLOCK)
    scene.program.run(*scene.backup(0))
    numbers = iter(range(1, 10_000))
    committed = 1

    def check(finished: bool) -> None:
        nonlocal committed
        points = scene.settled()
        assert points in ((committed + 1,) if finished else (committed, committed + 1))
        committed = points

    every_crash(scene, lambda: scene.backup(next(numbers)), check)
    scene.program.run("restore", "disk@latest", "--to", scene.tmp / "back.img")
    assert (scene.tmp / "back.img").read_bytes() in scene.contents.values()


def test_rotate(scene: Scene) -> None:
    numbers = iter(range(10_000))
    refused = 0
    base, kit = scene.place, scene.tmp / "kit"
    back: Callable[[], None] = lambda: None  # noqa: E731

    def prepare() -> list[object]:
        nonlocal back
        kit.unlink(missing_ok=True)
        if scene.remote or not Path(scene.place).exists():
            scene.place = f"{base}/{next(numbers)}"
            scene.program.environment["SAFEHOLD_VAULT"] = scene.place
            scene.program.run("vault", "init", scene.place, "--block-size", BLOCK)
            scene.program.run(*scene.backup(0))
            if not scene.remote:
                back = scene.remember()
        else:
            back()
        return ["key", "rotate", "--yes", "--kit-file", kit]

    def check(finished: bool) -> None:
        def opens(passphrase: str) -> bool:
            return scene.program.run("key", "check", code=None, SAFEHOLD_PASSPHRASE=passphrase).returncode == 0

        works = [passphrase for passphrase in ("correct horse", "new words") if opens(passphrase)]
        assert works, "one of the passphrases opens the vault"
        assert not finished or works == ["new words"]
        for passphrase in works:
            done = scene.program.run(*scene.backup(1), code=None, SAFEHOLD_PASSPHRASE=passphrase)
            if done.returncode:
                # The new slot is there, and no record that puts its key in force. As long as that is so, the old passphrase works too.
                nonlocal refused
                refused += 1
                assert (done.returncode, works.index(passphrase)) == (4, 1)
                assert "a rotation was killed" in done.stderr
                kit.unlink(missing_ok=True)
                scene.program.run("key", "rotate", "--yes", "--kit-file", kit, SAFEHOLD_PASSPHRASE=passphrase)
                scene.program.run(*scene.backup(1), SAFEHOLD_PASSPHRASE=passphrase)
            scene.settled(passphrase)

    every_crash(scene, prepare, check)
    assert refused


def test_writer_and_slots(scene: Scene) -> None:
    scene.program.run("vault", "init", scene.place, "--block-size", BLOCK)
    scene.program.run(*scene.backup(0))
    credential = scene.tmp / "credential"

    def writer() -> list[object]:
        credential.unlink(missing_ok=True)
        return ["key", "writer", credential, "--resource", "x"]

    def check(finished: bool) -> None:
        assert scene.settled() == 1

    every_crash(scene, writer, check)
    every_crash(scene, lambda: ["key", "add", "--label", "second"], check)
    assert scene.settled("new words") == 1

    def remove() -> list[object]:
        scene.program.run("key", "add", "--label", "spare")
        slots = scene.program.json("key", "list")["slots"]
        return ["key", "remove", "--yes", next(slot["id"] for slot in slots if slot["label"] == "spare")]

    every_crash(scene, remove, check)


def test_revoke(scene: Scene) -> None:
    scene.program.run("vault", "init", scene.place, "--block-size", BLOCK)
    scene.program.run(*scene.backup(0))
    wid = b""

    def revoke() -> list[object]:
        nonlocal wid
        with scene.opened() as vault:
            wid = export_writer(vault, "lost", ("x",)).wid
        return ["key", "revoke", wid.hex()]

    def check(finished: bool) -> None:
        with scene.opened() as vault:
            assert not finished or wid in vault.notes().revocations()
        assert scene.settled() == 1

    every_crash(scene, revoke, check)


def test_export_and_check_of_the_kit(scene: Scene) -> None:
    kit, again = scene.tmp / "kit.txt", scene.tmp / "again.txt"
    scene.program.run("vault", "init", scene.place, "--block-size", BLOCK, "--kit-file", kit)
    scene.program.run(*scene.backup(0))
    # Changes nothing in the store.
    scene.program.run("key", "export", "--paper", "--kit-file", again)
    assert scene.settled() == 1
    assert "owner" in scene.program.run("key", "check", "--kit", again, SAFEHOLD_PASSPHRASE="").stdout

    def check() -> list[object]:
        # A kit that is known already is noted no second time.
        with scene.opened() as vault:
            for stamp in list(vault.store.list(f"notes/{vault.id.hex()}/")):
                vault.store.delete(stamp.name)
        return ["key", "check", "--kit", kit]

    def checked(finished: bool) -> None:
        with scene.opened() as vault:
            assert not finished or vault.notes().kit_known()
        assert scene.settled() == 1

    every_crash(scene, check, checked)


def test_a_killed_backup_is_reused(scene: Scene) -> None:
    """Killed when everything is uploaded and nothing committed: no point, and the next run uploads next to nothing."""
    scene.program.run("vault", "init", scene.place)
    disk = make_disk(scene.tmp / "disk.img", "".join(chr(0x4E00 + n) for n in range(192)))
    assert scene.program.crash("points/", "before", scene.tmp / "report", "backup", disk).returncode == KILLED
    assert scene.program.json("points")["points"] == []
    done = scene.program.json("backup", disk)["points"][0]
    assert done["new"] < disk.stat().st_size / 100
    scene.program.run("restore", "disk@latest", "--to", scene.tmp / "back.img")
    same(disk, scene.tmp / "back.img")


def test_a_backup_killed_half_way_is_reused(scene: Scene) -> None:
    """What the index knows of is not uploaded again. Packs and runs of the index go out side by side: the third may be there before the first."""
    scene.program.run("vault", "init", scene.place)
    disk = make_disk(scene.tmp / "disk.img", "".join(chr(0x4E00 + n) for n in range(320)))
    report = scene.tmp / "report"
    assert scene.program.crash("-000003", "after", report, "backup", disk).returncode == KILLED
    with scene.opened() as vault:
        runs = len(list(vault.store.list("index/")))
        known = 0.95 * vault.parameters.pack_size * runs
    assert runs
    done = scene.program.json("backup", disk)["points"][0]
    assert done["new"] < disk.stat().st_size - known


def test_full_disk(tmp_path: Path) -> None:
    """A vault on a file system that runs full: the run says so, and what was committed before stays whole."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", mounted], check=True)
    try:
        program = Program(tmp_path / "home")
        program.run("vault", "init", mounted / "vault")
        small, large = (
            make_disk(tmp_path / "small.img", "ab"),
            make_disk(tmp_path / "large.img", "".join(map(chr, range(0x4E00, 0x4E30)))),
        )
        program.run("backup", small)
        said = program.run("backup", large, code=5).stderr
        assert "the store is full" in said
        assert "make room" in said
        assert not list((mounted / "vault").rglob(".new-*")), "no temporary files stay behind"
        assert [p["members"][0]["name"] for p in program.json("points")["points"]] == ["small"]
        assert program.json("verify", "--data")["ok"]
        program.run("restore", "small@latest", "--to", tmp_path / "back.img")
        same(small, tmp_path / "back.img")
        for number in range(3):
            # Whatever is tried, what gives room back has some.
            other = make_disk(
                tmp_path / f"{number}.img", "".join(map(chr, range(0x5000 + 48 * number, 0x5030 + 48 * number)))
            )
            program.run("backup", other, code=5)
        before = shutil.disk_usage(mounted).free
        program.run("point", "expire", "small@latest", "--yes", "--even-last")
        assert "deleted" in program.run("vault", "prune").stdout
        assert shutil.disk_usage(mounted).free > before + 1_000_000
        with open(mounted / "of others", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert "could not be noted" in program.run("verify", "--data").stderr
        said = program.run("vault", "prune", code=5).stderr
        assert "giving space back takes a little of it" in said
        assert "free a few megabytes" in said
        assert "uploaded" not in said
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_no_permission(tmp_path: Path) -> None:
    program = Program(tmp_path / "home")
    program.run("vault", "init", tmp_path / "vault")
    disk = make_disk(tmp_path / "disk.img", "ab")
    target = tmp_path / "vault" / "sessions"
    target.write_text("in the way of a directory")
    said = program.run("backup", disk, code=5).stderr
    assert "in the way" in said
    assert str(target) in said
    target.unlink()
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", tmp_path / "vault", tmp_path / "vault"], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path / "vault"], check=True)
            said = program.run("backup", disk, code=5).stderr
            assert "refuses access" in said
            # What has an owner and a mode is named: the directory, not the object that is not there.
            told = re.search(r"refuses access \(.*?\): (.*)", said)
            assert told is not None
            assert Path(told[1]).is_dir()
        finally:
            subprocess.run(["umount", tmp_path / "vault"], check=True)
    program.run("backup", disk)
