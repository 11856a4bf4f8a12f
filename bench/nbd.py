"""Safehold's NBD server against `nbdkit file`: the same file system, fio over a unix socket, interleaved; prints medians and ratios.

python -m bench.nbd [ROUNDS] [SECONDS] [DIRECTORY]
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safehold.blocks.server import NbdServer
from safehold.testing.file_export import FileExport, FixedDirectory

SIZE = 512 * 1024 * 1024
WORKLOADS = {
    "4 KiB random read": ("randread", "4k"),
    "4 KiB random write": ("randwrite", "4k"),
    "256 KiB read": ("read", "256k"),
    "256 KiB write": ("write", "256k"),
}


class KnownFile(FileExport):
    """A file without holes that knows it: asking tmpfs for the next hole walks every page, which a live volume's map does not."""

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        yield length, False, False


def serve(image: str, address: str) -> None:
    """What the child process does: serve the image until it is told to end."""
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    with NbdServer(address, FixedDirectory({"": KnownFile(image)})):
        done.wait()


@contextmanager
def running(command: list[str], address: Path) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            if address.exists():
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def run(address: Path, pattern: str, block: str, seconds: float) -> float:
    """Requests a second that fio had."""
    command = [
        "fio",
        "--name=x",
        "--ioengine=nbd",
        f"--uri=nbd+unix:///?socket={address}",
        f"--rw={pattern}",
        f"--bs={block}",
    ]
    command += [
        "--iodepth=16",
        f"--size={SIZE}",
        f"--runtime={seconds}",
        "--time_based",
        "--ramp_time=0.3",
        "--output-format=json",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    return float(job["write" if "write" in pattern else "read"]["iops"])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as folder:
        work = Path(folder)
        images = {name: work / f"{name}.img" for name in ("safehold", "nbdkit")}
        for image in images.values():
            with image.open("wb") as file:
                for _ in range(SIZE >> 20):
                    file.write(b"\x5a" * (1 << 20))
        ours, theirs = work / "safehold.sock", work / "nbdkit.sock"
        servers = {
            "safehold": ([sys.executable, "-m", "bench.nbd", "serve", str(images["safehold"]), str(ours)], ours),
            "nbdkit": (["nbdkit", "-f", "-U", str(theirs), "file", str(images["nbdkit"])], theirs),
        }
        found: dict[tuple[str, str], list[float]] = {}
        with running(*servers["safehold"]), running(*servers["nbdkit"]):
            for _ in range(rounds):
                for work_name, (pattern, block) in WORKLOADS.items():
                    for server, (_, address) in servers.items():
                        found.setdefault((work_name, server), []).append(run(address, pattern, block, seconds))
        print(
            f"{'':20} {'safehold':>10} {'nbdkit':>10}  ratio   (requests a second, depth 16, {rounds} rounds of {seconds:g} s)"
        )
        for name in WORKLOADS:
            ratios = [a / b for a, b in zip(found[name, "safehold"], found[name, "nbdkit"], strict=True)]
            mine, other = (statistics.median(found[name, server]) for server in servers)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name:20} {mine:10.0f} {other:10.0f}  {statistics.median(ratios):5.2f}   ({spread})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:4])
    else:
        main()
