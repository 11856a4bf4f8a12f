"""`make bench`: Safehold against restic and borg on one disk image, interleaved; prints a table and writes docs/benchmarks.md.

python -m bench.peers [ROUNDS] [SIZE_MIB]
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.store import S3Store

from bench.measure import BORG, Measured, clean_environment, measure
from safehold.testing.seaweed import start_s3

HERE = Path(__file__).parent.parent
SAFEHOLD = str(Path(sys.executable).parent / "safehold")
BLOCK = 512 * 1024
Row = dict[str, list[Measured]]


def fill(directory: Path, mib: int) -> None:
    """Copy files out of /usr, in order of name, until there are `mib` MiB of them."""
    left = mib * 1024 * 1024
    for source in sorted(Path("/usr").glob("*/*")):
        for path in sorted(
            p for p in (source.rglob("*") if source.is_dir() else [source]) if p.is_file() and not p.is_symlink()
        ):
            size = path.stat().st_size
            if size > left:
                continue
            target = directory / path.relative_to("/usr")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            left -= size
            if left < 1024 * 1024:
                return


def make_image(work: Path, mib: int) -> Path:
    """An ext4 image, a quarter empty, of real files."""
    files = work / "files"
    files.mkdir()
    fill(files, mib * 3 // 4)
    image = work / "disk.img"
    with image.open("wb") as file:
        file.truncate(mib * 1024 * 1024)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(files), str(image)], check=True)
    shutil.rmtree(files)
    return image


def settle(*warm: Path) -> None:
    """Let no command pay for the writes of the one before, nor for reading what the last one happened to leave in the page cache."""
    os.sync()
    for place in warm:
        for path in [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()):
            with path.open("rb", buffering=0) as file:
                while file.read(8 << 20):
                    pass
    time.sleep(0.5)


class Peers:
    """The three programs over one working directory."""

    def __init__(self, work: Path, image: Path) -> None:
        self.work, self.image = work, image
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
        self.commands = {
            "safehold": {
                "init": [SAFEHOLD, "vault", "init", str(work / "safehold"), "--kit-file", str(work / "kit")],
                "backup": [SAFEHOLD, "backup", "disk.img"],
                "restore": [SAFEHOLD, "restore", "disk@latest", "--to", "back/disk.img"],
            },
            "restic": {
                "init": ["restic", "init", "-q"],
                "backup": ["restic", "backup", "-q", "--force", "disk.img"],
                "restore": ["restic", "restore", "-q", "latest", "--target", "back"],
            },
            "borg": {
                "init": [BORG, "init", "-e", "repokey-blake2", str(work / "borg")],
                "backup": [
                    BORG,
                    "create",
                    "--chunker-params",
                    "fixed,4194304",
                    "-C",
                    "zstd,1",
                    "--files-cache=disabled",
                    f"{work / 'borg'}::{{now:%s%f}}",
                    "disk.img",
                ],
                "restore": [],
            },
        }

    def run(self, program: str, verb: str) -> Measured:
        """One verb of one program, from the working directory."""
        command = self.commands[program][verb]
        directory = self.work
        if verb == "restore":
            shutil.rmtree(self.work / "back", ignore_errors=True)
            (self.work / "back").mkdir()
            if program == "borg":
                listed = subprocess.run(
                    [BORG, "list", "--short", "--last", "1", str(self.work / "borg")],
                    env={**clean_environment(), **self.environment},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                command = [BORG, "extract", "--sparse", f"{self.work / 'borg'}::{listed.stdout.strip()}"]
                directory = self.work / "back"
        settle(self.image if verb == "backup" else self.work / program)
        done = measure(command, self.environment, directory)
        if verb == "restore":
            restored = next((self.work / "back").rglob("disk.img"))
            subprocess.run(["cmp", str(self.image), str(restored)], check=True)
        return done

    def fresh(self) -> None:
        """Empty repositories."""
        for name in ("safehold", "restic", "restic-cache", "borg", "borg-base", "home", "kit"):
            path = self.work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for program in self.commands:
            measure(self.commands[program]["init"], self.environment, self.work)


def compare(peers: Peers, rounds: int) -> dict[str, Row]:
    """Every job by every program in turn, `rounds` times."""
    rows: dict[str, Row] = {
        job: {p: [] for p in peers.commands} for job in ("first backup", "unchanged again", "restore")
    }
    for _ in range(rounds):
        peers.fresh()
        for job, verb in (("first backup", "backup"), ("unchanged again", "backup"), ("restore", "restore")):
            for program in peers.commands:
                rows[job][program].append(peers.run(program, verb))
    return rows


def read_time(image: Path) -> float:
    """Seconds to read the image's data with cat."""
    began = time.perf_counter()
    subprocess.run(["cat", str(image)], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def change(image: Path, share: float) -> int:
    """Overwrite that share of the image's blocks with random bytes; returns the bytes changed."""
    rng = random.Random(1)
    blocks = image.stat().st_size // BLOCK
    chosen = rng.sample(range(blocks), max(1, int(blocks * share)))
    with image.open("r+b") as file:
        for number in chosen:
            file.seek(number * BLOCK)
            file.write(rng.randbytes(BLOCK))
    return len(chosen) * BLOCK


def small_verbs(peers: Peers, points: int) -> dict[str, float]:
    """Seconds of the verbs that have to answer at once, the median of five."""
    environment = {
        **peers.environment,
        "SAFEHOLD_HOME": str(peers.work / "many-home"),
        "SAFEHOLD_VAULT": str(peers.work / "many"),
    }
    measure(
        [SAFEHOLD, "vault", "init", str(peers.work / "many"), "--kit-file", str(peers.work / "many-kit")],
        environment,
        peers.work,
    )
    tiny = peers.work / "tiny.img"
    tiny.write_bytes(b"x" * 4096)
    for _ in range(points // 50):
        measure([SAFEHOLD, "backup", *(["tiny.img"] * 50)], environment, peers.work)
    measure([SAFEHOLD, "points"], environment, peers.work)

    def median(arguments: list[str]) -> float:
        return statistics.median(measure([SAFEHOLD, *arguments], environment, peers.work).seconds for _ in range(5))

    return {
        "--version": median(["--version"]),
        f"points, {points} of them": median(["points"]),
        "key check (opens the vault)": median(["key", "check"]),
    }


def s3_ratio(peers: Peers, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of a backup to S3 and of plain parallel uploads of the same packs, in turn."""
    ours, plain = [], []
    with tempfile.TemporaryDirectory(dir=peers.work) as data, start_s3(Path(data)) as server:
        for number in range(rounds):
            place = f"s3://vaults/bench-{number}"
            environment = {
                **peers.environment,
                **server.environment,
                "SAFEHOLD_HOME": str(peers.work / f"s3-{number}"),
                "SAFEHOLD_VAULT": place,
            }
            measure(
                [SAFEHOLD, "vault", "init", place, "--kit-file", str(peers.work / f"s3-kit-{number}")],
                environment,
                peers.work,
            )
            settle(peers.image)
            done = measure([SAFEHOLD, "backup", "disk.img", "--json"], environment, peers.work)
            ours.append(json.loads(done.output[done.output.index("{") :])["points"][0]["seconds"])
            settle(peers.work / "safehold")
            plain.append(plain_uploads(server.environment, peers.work / "safehold", f"plain-{number}"))
    return ours, plain


def bucket_of(environment: dict[str, str], prefix: str) -> S3Store:
    """What lies below a prefix of the bench's server, without Safehold."""
    return S3Store(
        "vaults", prefix=prefix, endpoint=environment["AWS_ENDPOINT_URL"], region="us-east-1", access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"], client_options={"allow_http": True},
    )  # fmt: skip


def plain_uploads(environment: dict[str, str], vault: Path, prefix: str) -> float:
    """Upload the packs of a local vault with obstore, eight at a time."""
    bucket = bucket_of(environment, prefix)
    packs = [p.read_bytes() for folder in ("packs", "meta") for p in sorted((vault / folder).rglob("*")) if p.is_file()]
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: obstore.put(bucket, f"p/{n}", packs[n], mode="create", use_multipart=False), range(len(packs))
            )
        )
    return time.perf_counter() - began


def shown(command: list[str]) -> str:
    """A command as a person would type it: programs and places by their last name."""
    return " ".join(word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in command)


def median(samples: list[Measured]) -> float:
    return statistics.median(m.seconds for m in samples)


def version(command: list[str]) -> str:
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "?"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    mib = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    with tempfile.TemporaryDirectory(prefix="safehold-bench-") as folder:
        work = Path(folder)
        image = make_image(work, mib)
        peers = Peers(work, image)
        rows = compare(peers, rounds)
        reads = statistics.median(read_time(image) for _ in range(3))
        verify = [measure([SAFEHOLD, "verify", "--data", "--json"], peers.environment, work) for _ in range(rounds)]
        rates = [json.loads(v.output[v.output.index("{") :]) for v in verify]
        s3, plain = s3_ratio(peers, rounds)
        changed = change(image, 0.01)
        again = json.loads(measure([SAFEHOLD, "backup", "disk.img", "--json"], peers.environment, work).output)[
            "points"
        ][0]
        verbs = small_verbs(peers, 1000)
        data = image.stat().st_blocks * 512
    write(rows, reads, verify, rates, (s3, plain), (changed, again["stored"]), verbs, mib, data, peers.commands)


def write(
    rows: dict[str, Row],
    reads: float,
    verify: list[Measured],
    rates: list[dict[str, float]],
    s3: tuple[list[float], list[float]],
    changed: tuple[int, int],
    verbs: dict[str, float],
    mib: int,
    data: int,
    commands: dict[str, dict[str, list[str]]],
) -> None:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    out = [
        "# Benchmarks",
        "",
        f"Written by `make bench`. Machine: {os.cpu_count()} × {cpu}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}.",
        f"Input: an ext4 image of {mib} MiB filled from /usr, {data / 2**20:.0f} MiB of it data. Programs: restic {version(['restic', 'version'])}, "
        f"borg {version([BORG, '--version'])} (fixed 4 MiB chunks, zstd 1). Whole processes, key derivation included, in turn, their input in the page cache, "
        f"medians of {len(verify)} rounds; every restore was compared with cmp. Ratios travel, seconds do not.",
        "",
        "| job | safehold | restic | borg | restic ÷ safehold | borg ÷ safehold |",
        "|---|---|---|---|---|---|",
    ]
    for job, row in rows.items():
        ours, restic, borg = (median(row[p]) for p in ("safehold", "restic", "borg"))
        out.append(
            f"| {job} | {ours:.2f} s | {restic:.2f} s | {borg:.2f} s | {restic / ours:.1f} | {borg / ours:.1f} |"
        )
    unchanged = median(rows["unchanged again"]["safehold"])
    rate = statistics.median(r["logical_bytes"] / r["seconds"] for r in rates)
    fetched = statistics.median(r["checked"] * BLOCK / r["seconds"] for r in rates)
    ratios = [p / o for o, p in zip(*s3, strict=True)]
    memory = {job: max(m.anonymous for m in row["safehold"]) for job, row in rows.items()} | {
        "verify --data": max(v.anonymous for v in verify)
    }
    out += [
        "",
        "| measure | value |",
        "|---|---|",
        f"| unchanged disk again ÷ reading it with cat ({reads:.2f} s) | {unchanged / reads:.1f} |",
        f"| 1 % of blocks changed: stored ÷ changed bytes | {changed[1] / changed[0]:.3f} |",
        f"| `verify --data`, logical data | {rate / 1e9:.2f} GB/s |",
        f"| `verify --data`, data blocks only | {fetched / 1e9:.2f} GB/s |",
        f"| backup to a local S3 server: speed ÷ plain parallel uploads of the same packs | {statistics.median(ratios):.2f} |",
        *(f"| peak RssAnon, {job} | {value:.0f} MiB |" for job, value in memory.items()),
        *(f"| `safehold {name}` | {value * 1000:.0f} ms |" for name, value in verbs.items()),
        "",
    ]
    out += ["Commands, in one directory with the image, repositories emptied before each round:", ""]
    for program in commands.values():
        out += [f"    {shown(program[verb])}" for verb in ("init", "backup", "restore") if program[verb]]
    out += ["    borg extract --sparse borg::ARCHIVE", ""]
    text = "\n".join(out)
    print(text)
    (HERE / "docs" / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
