"""The files half of `make bench`: Safehold against restic and borg on trees of files, interleaved; writes docs/benchmarks-files.md.

python -m bench.trees [ROUNDS] [FILES] [MILLION]        MILLION: also an unchanged backup of so many files, Safehold alone
"""

from __future__ import annotations

import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import BORG, Measured, measure
from bench.peers import SAFEHOLD, settle

REPORT = Path(__file__).parent.parent / "docs/benchmarks-files.md"
PROGRAMS = ("safehold", "restic", "borg")
DEBIAN = 15_000
"""Files in the smallest useful Debian."""
JOBS = ("first backup", "unchanged again", "restore")


def small_files(directory: Path, count: int) -> None:
    """Files of 1 to 7 KiB of text, a hundred in a directory."""
    words = [path.name for path in sorted(Path("/usr").rglob("*"))[:20_000]]
    rng = random.Random(1)
    for n in range(count):
        place = directory / f"{n // 10_000:03}" / f"{n // 100 % 100:02}"
        if n % 100 == 0:
            place.mkdir(parents=True, exist_ok=True)
        text = " ".join(rng.choices(words, k=rng.randrange(80, 480)))
        (place / f"{n:07}.txt").write_text(text[: rng.randrange(1000, 7000)])


def some_of_usr(directory: Path, count: int) -> None:
    """Copies of so many files of /usr, evenly spread over it, where they are there."""
    files = sorted(path for path in Path("/usr").rglob("*") if path.is_file() and not path.is_symlink())
    for n in range(count):
        path = files[n * len(files) // count]
        target = directory / path.relative_to("/usr")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


class Trees:
    """The three programs over one working directory and one tree in it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.restores = 0
        self.environment = {
            "SAFEHOLD_HOME": str(work / "home"),
            "SAFEHOLD_VAULT": str(work / "safehold"),
            "SAFEHOLD_PASSPHRASE": "bench",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(work / "restic"),
            "RESTIC_CACHE_DIR": str(work / "restic-cache"),
            "BORG_PASSPHRASE": "bench",
            "BORG_BASE_DIR": str(work / "borg-base"),
        }

    def fresh(self) -> None:
        """New, empty repositories, and nothing remembered."""
        for name in (*PROGRAMS, "home", "restic-cache", "borg-base", "kit"):
            path = self.work / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        self._run([SAFEHOLD, "vault", "init", str(self.work / "safehold"), "--kit-file", str(self.work / "kit")])
        self._run(["restic", "init", "-q"])
        self._run([BORG, "init", "-e", "repokey-blake2", str(self.work / "borg")])

    def _run(self, command: list[str], directory: Path | None = None) -> Measured:
        return measure(command, self.environment, directory or self.work)

    def back_up(self, program: str) -> Measured:
        """The tree, with the program's own memory of the last time."""
        return self._run(
            {
                "safehold": [SAFEHOLD, "backup", "tree", "--name", "tree"],
                "restic": ["restic", "backup", "-q", "tree"],
                "borg": [BORG, "create", "-C", "zstd,1", f"{self.work / 'borg'}::{{now:%s%f}}", "tree"],
            }[program]
        )

    def restore(self, program: str) -> Measured:
        """All of it into an empty directory, compared with rsync."""
        # A new directory each time: where many files were deleted a moment ago, ext4 is slow to make new ones.
        self.restores += 1
        back = self.work / f"back{self.restores}"
        back.mkdir()
        settle()
        if program == "borg":
            listed = subprocess.run(
                [BORG, "list", "--short", "--last", "1", str(self.work / "borg")],
                env={"PATH": "/usr/bin:/bin", **self.environment},
                capture_output=True,
                text=True,
                check=True,
            )
            done = self._run([BORG, "extract", f"{self.work / 'borg'}::{listed.stdout.strip()}"], back)
            found = back / "tree"
        elif program == "restic":
            done = self._run(["restic", "restore", "-q", "latest", "--target", back.name])
            found = next(path for path in back.rglob("tree") if path.is_dir())
        else:
            done = self._run([SAFEHOLD, "restore", f"tree@latest:{self.work / 'tree'}", "--to", f"{back.name}/tree"])
            found = back / "tree"
        differences = subprocess.run(
            ["rsync", "-rlptgo", "-n", "-i", "--delete", f"{self.work / 'tree'}/", f"{found}/"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if differences:
            raise SystemExit(f"{program} restored something else:\n{differences[:500]}")
        return done


def compare(trees: Trees, rounds: int) -> dict[str, dict[str, list[Measured]]]:
    """Medians come from these: job → program → one measurement a round."""
    rows: dict[str, dict[str, list[Measured]]] = {job: {program: [] for program in PROGRAMS} for job in JOBS}
    for number in range(rounds):
        trees.fresh()
        order = PROGRAMS[number % 3 :] + PROGRAMS[: number % 3]
        for job in JOBS:
            for program in order:
                settle(trees.work / "tree")  # borg puts what it has read out of the page cache
                done = trees.restore(program) if job == "restore" else trees.back_up(program)
                rows[job][program].append(done)
                print(f"  {job:<16} {program:<9} {done.seconds:6.2f} s", flush=True)
    return rows


def table(rows: dict[str, dict[str, list[Measured]]]) -> str:
    out = "| job | safehold | restic | borg | restic ÷ safehold | borg ÷ safehold |\n|---|---|---|---|---|---|\n"
    for job, programs in rows.items():
        for what, of in (("", lambda m: m.seconds), (", processor", lambda m: m.processor)):
            ours, restic, borg = (statistics.median(map(of, programs[p])) for p in PROGRAMS)
            out += f"| {job}{what} | {ours:.2f} s | {restic:.2f} s | {borg:.2f} s "
            out += f"| {restic / ours:.1f} | {borg / ours:.1f} |\n"
    return out


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    million = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    text = "# Benchmarks: files\n\nWritten by `make bench`. "
    text += f"Linux {platform.release()}, Python {platform.python_version()}. Whole processes, key derivation included, in turn, input in the page cache, "
    text += f"rounds: {rounds}, medians; every restore was compared with rsync. Processor: seconds of user and system time, which other work on the "
    text += "machine moves less than the clock's. Ratios travel, seconds do not.\n"
    with tempfile.TemporaryDirectory(prefix="safehold-bench-") as folder:
        work = Path(folder)
        trees = Trees(work)
        peak = 0.0
        for title, make in (
            (f"{count:,} small files of text", lambda: small_files(work / "tree", count)),
            ("Files of a Debian system", lambda: some_of_usr(work / "tree", DEBIAN)),
        ):
            (work / "tree").mkdir()
            make()
            files = sum(1 for path in (work / "tree").rglob("*") if path.is_file())
            size = sum(path.stat().st_size for path in (work / "tree").rglob("*") if path.is_file()) >> 20
            print(f"{title}: {files} files, {size} MiB", flush=True)
            rows = compare(trees, rounds)
            peak = max(peak, *(m.anonymous for job in rows.values() for m in job["safehold"]))
            text += f"\n## {title}: {files:,} files, {size} MiB\n\n{table(rows)}"
            shutil.rmtree(work / "tree")
        text += f"\nPeak RssAnon of safehold over all of these: {peak:.0f} MiB.\n"
        REPORT.write_text(text)
        if million:
            (work / "tree").mkdir()
            small_files(work / "tree", million)
            trees.fresh()
            first = trees.back_up("safehold")
            again = trees.back_up("safehold")
            text += (
                f"\n## {million:,} small files, Safehold alone\n\n| job | time | processor | peak RssAnon |\n|---|---|---|---|\n"
                f"| first backup | {first.seconds:.1f} s | {first.processor:.1f} s | {first.anonymous:.0f} MiB |\n"
                f"| unchanged again | {again.seconds:.1f} s | {again.processor:.1f} s | {again.anonymous:.0f} MiB |\n"
            )
            REPORT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
