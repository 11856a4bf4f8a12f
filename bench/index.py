"""The chunk index of a large vault in 512 MiB of memory: look-ups, taking in rows, and the mark phase; writes docs/benchmarks-index.md.

python -m bench.index [ROWS] [DIRECTORY]        ROWS: of the largest index, 100 million unless told; DIRECTORY: for about 150 bytes a row

Every step runs in a process of its own, in a control group of 512 MiB without swap, and so takes root. All files are written by the product's
own code: base runs as a prune writes them, sealed and signed; from them the local tables, as a machine that has none reads them.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bench.limits import memory_group
from safehold.model.context import Context
from safehold.objects.local import LocalStore
from safehold.vault.access import unlock
from safehold.vault.create import create_vault
from safehold.vault.gc.mark import Chosen, IdSorter, choose
from safehold.vault.gc.runs import write_base
from safehold.vault.index.rows import Location
from safehold.vault.index.view import ChunkIndex
from safehold.vault.locate import Locator
from safehold.vault.places import Places
from safehold.vault.records import Parameters
from safehold.vault.slots import Identity, Recipient
from safehold.vault.vault import Vault

HERE = Path(__file__).parent.parent
LIMIT = 512 << 20
FULL = 100_000_000
SMALL = 1_000_000
MERGED = 1_000_000
PER_PACK = 256
"""Chunks in a pack: 64 MiB of chunks of 256 KiB."""
CHUNK = 256 << 10
PRUNED = 10_000
"""Packs whose rows a prune makes into base runs: about 600 GiB."""
BATCH = 256
SAMPLE = 20_000
"""Chunks that are looked up, and as many that are absent: as many that their pages have room in the group's memory."""
ROUNDS = 5
_WORD = 1 << 32
_POLL = 0.05
_FAR = 2_654_435_761
"""A prime: multiples of it, divided by less, leave every remainder."""


@dataclass(frozen=True)
class Step:
    """Seconds of wall time and of processor time, and peak anonymous memory in MiB; `count` is of rows or of look-ups."""

    name: str
    rows: int
    count: int
    seconds: float
    processor: float
    anonymous: float


def identity_of(rows: int, number: int, seed: bytes) -> bytes:
    """Ids ascend with their numbers, are spread evenly, and random from the fifth byte on."""
    return (number * _WORD // rows).to_bytes(4, "big") + blake2b(
        number.to_bytes(8, "big"), digest_size=28, key=seed
    ).digest()


def packs_of(rows: int, seed: bytes) -> list[str]:
    """The names of the packs that so many chunks lie in."""
    digests = (
        blake2b(n.to_bytes(8, "big"), digest_size=32, key=seed).hexdigest() for n in range(max(1, rows // PER_PACK))
    )
    return [f"packs/hot/{digest[:2]}/{digest}" for digest in digests]


def located(rows: int, seed: bytes, packs: list[str], some: range) -> Iterator[tuple[bytes, Location]]:
    """Rows of some packs as a prune has them, ascending; neighbours lie in packs far from each other."""
    # Chunk n lies in pack n times `_FAR`, modulo the packs: these are the numbers that give one of them.
    back = pow(_FAR, -1, len(packs)) if len(packs) > 1 else 0
    for number in sorted(n for pack in some for n in range(pack * back % len(packs), rows, len(packs))):
        pack = packs[number * _FAR % len(packs)]
        yield identity_of(rows, number, seed), Location(pack, number % PER_PACK * CHUNK, CHUNK, CHUNK, 0)


class Bench:
    """A vault in a directory, whose index is large and which has no packs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        key = directory / "identity"
        store = LocalStore(directory / "vault")
        if not key.exists():
            private = X25519PrivateKey.generate()
            create_vault(store, Recipient(private.public_key().public_bytes_raw()), Parameters(), "bench", Context())
            key.write_bytes(private.private_bytes_raw())
        unlocked = unlock(store, Identity(X25519PrivateKey.from_private_bytes(key.read_bytes())))
        self.vault = Vault.for_owner(
            store, store, unlocked, Places(directory / "state", directory / "cache"), Context()
        )
        self.vault.writer()

    def locator(self) -> tuple[Locator, bytes]:
        domain = next(iter(self.vault.writers.values())).domain
        locator, index_key, _ = self.vault.domain(domain)
        return locator, index_key

    def write(self, rows: int, seed: bytes) -> int:
        """Base runs of so many rows, as prunes leave them that each made those of a few days into some."""
        locator, index_key = self.locator()
        packs = packs_of(rows, seed)
        for first in range(0, len(packs), PRUNED):
            some = range(first, min(first + PRUNED, len(packs)))
            sizes = {packs[number]: PER_PACK * CHUNK for number in some}
            write_base(
                locator, located(rows, seed, packs, some), sizes, self.vault.owner_key, index_key, self.directory
            )
        return rows

    def view(self) -> ChunkIndex:
        return self.locator()[0].reader_view()

    def mark(self, rows: int) -> int:
        """What a prune does with the ids that its points name and all rows: each id is needed, and found."""
        index = self.view()
        chosen = Chosen()
        present = dict.fromkeys(packs_of(rows, b"old"), PER_PACK * CHUNK)
        with IdSorter(self.directory) as live:
            batch: list[bytes] = []
            for number in range(rows):
                # Points name chunks in the order of their data, not of their ids.
                batch.append(identity_of(rows, number * _FAR % rows, b"old"))
                if len(batch) == 4096:
                    live.add(batch)
                    batch.clear()
            live.add(batch)
            choose(live, index.rows(), present, frozenset(), lambda identity, at: True, chosen)
        if chosen.missing or sum(chosen.packs.values()) != rows * CHUNK:
            raise SystemExit(f"the mark phase missed {len(chosen.missing)} chunks")
        return rows


def measured(name: str, rows: int, job: Callable[[], int]) -> None:
    """Run `job` and print the step as a line of JSON."""
    peak = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, processor = time.perf_counter(), time.process_time()
    try:
        count = job()
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
    finally:
        done.set()
        watcher.join()
    print(json.dumps(asdict(Step(name, rows, count, seconds, processor, max(peak, _anonymous())))), flush=True)


def _anonymous() -> float:
    """MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def look_up(bench: Bench, rows: int) -> None:
    """Half of what is asked for is there."""
    index = bench.view()
    rng = random.Random(1)
    there = {identity_of(rows, number, b"old") for number in rng.sample(range(rows), min(SAMPLE, rows))}
    asked = [*there, *(rng.randbytes(32) for _ in there)]
    rng.shuffle(asked)
    batches = [asked[at : at + BATCH] for at in range(0, len(asked), BATCH)]

    def all_of_them() -> int:
        for batch in batches:
            for identity, found in zip(batch, index.find_many(batch), strict=True):
                if (found is not None) != (identity in there):
                    raise SystemExit(f"{identity.hex()} is {'not ' if identity in there else ''}found")
        return len(asked)

    for path in (bench.directory / "cache").rglob("*.table"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    measured("look up, cold", rows, all_of_them)
    measured("look up, warm", rows, lambda: sum(all_of_them() for _ in range(ROUNDS)))


def inside(step: str, directory: Path, rows: int, group: Path) -> None:
    """One step, in the control group."""
    (group / "cgroup.procs").write_text("0")
    bench = Bench(directory)
    if step == "write":
        measured("write base runs", rows, lambda: bench.write(rows, b"old"))
    elif step == "open":
        measured("read them on a machine without a cache", rows, lambda: (bench.view(), rows)[1])
        measured("open again", rows, lambda: (bench.view(), 1)[1])
    elif step == "look up":
        look_up(bench, rows)
    elif step == "mark":
        measured("mark", rows, lambda: bench.mark(rows))
    else:
        bench.write(MERGED, b"more")
        measured("take in 1 M more rows", rows, lambda: (bench.view(), MERGED)[1])


STEPS = ("write", "open", "look up", "mark", "merge")


def run(rows: int, directory: Path) -> list[Step]:
    """All steps at one size; SystemExit where one fails, such as for want of memory."""
    steps = []
    for step in STEPS:
        with memory_group(LIMIT) as group:
            command = [sys.executable, "-m", "bench.index", "--inside", step, str(directory), str(rows), str(group)]
            done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(
                f"{step} at {rows:,} rows ended with {done.returncode}"
                + (": out of memory" if done.returncode == -9 else "")
            )
        for line in done.stdout.splitlines():
            steps.append(Step(**json.loads(line)))
            one = steps[-1]
            print(
                f"  {rows:>11,} {one.name:<40} {one.seconds:8.2f} s {one.processor:8.2f} s {one.anonymous:6.0f} MiB",
                flush=True,
            )
    return steps


def report(sizes: list[list[Step]]) -> str:
    text = f"# Benchmarks: the chunk index\n\nWritten by `python -m bench.index`. Linux {platform.release()}, Python {platform.python_version()}. "
    text += f"Every step is a process of its own in a control group of {LIMIT >> 20} MiB, page cache included, without swap. "
    text += f"Look-ups come in batches of {BATCH}, half of them absent; warm are {SAMPLE:,} chunks and as many absent ones asked for again, whose pages "
    text += "have room in that memory. Per second is of wall time, and in brackets of processor time. The mark phase is the sorting of what points name and the "
    text += "choice of a place for each; the walk over the nodes is not in it.\n\n"
    text += "| step | rows | time | per second | peak RssAnon |\n|---|---|---|---|---|\n"
    for steps in zip(*sizes, strict=True):
        for one in steps:
            text += f"| {one.name} | {one.rows:,} | {one.seconds:.2f} s | {one.count / one.seconds:,.0f} ({one.count / max(one.processor, 1e-6):,.0f}) | {one.anonymous:.0f} MiB |\n"
    if len(sizes) > 1:
        first, last = sizes[0], sizes[-1]
        text += f"\nFrom {first[0].rows:,} to {last[0].rows:,} rows, {last[0].rows / first[0].rows:.0f} times as many:\n\n| step | time | memory |\n|---|---|---|\n"
        for a, b in zip(first, last, strict=True):
            text += f"| {a.name} | × {b.seconds / a.seconds:.1f} | × {b.anonymous / a.anonymous:.1f} |\n"
    return text


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
        return
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else FULL
    place = sys.argv[2] if len(sys.argv) > 2 else None
    sizes = []
    for rows in dict.fromkeys((min(SMALL, largest), largest)):
        with tempfile.TemporaryDirectory(prefix="safehold-bench-", dir=place) as folder:
            sizes.append(run(rows, Path(folder)))
            shutil.rmtree(Path(folder) / "vault")
    text = report(sizes)
    (HERE / "docs/benchmarks-index.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
