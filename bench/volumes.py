"""Live volumes, measured: Safehold's volume service against `nbdkit file` under fio; snapshots, restores and memory. Writes docs/benchmarks-volumes.md.

python -m bench.volumes [ROUNDS] [SECONDS] [DATA]        DATA: MiB in the point that volumes are made of. Needs root for the attach.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.delay import further_away
from bench.measure import clean_environment
from bench.nbd import WORKLOADS, running
from bench.peers import SAFEHOLD, bucket_of, fill
from safehold.testing.seaweed import S3Server, start_s3
from safehold.wire.control import ask

HERE = Path(__file__).parent.parent
SIZE = 512 << 20
TIB = 1 << 40
_AWAY = 0.015
"""Seconds until a cloud in the same region usually answers."""


class Service:
    """A home with a vault, and the volume service that its verbs start."""

    def __init__(self, home: Path, vault: str = "", environment: Mapping[str, str] | None = None) -> None:
        """`environment` is what opens a vault elsewhere."""
        self.home = home
        mine = {"SAFEHOLD_HOME": str(home), "SAFEHOLD_PASSPHRASE": "bench"}
        self.environment = {**clean_environment(), **(environment or {}), **mine}
        self.run("vault", "init", vault or home / "vault", "--kit-file", home / "kit")

    def run(self, *words: object) -> str:
        command = [SAFEHOLD, *map(str, words)]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def json(self, *words: object) -> Any:
        return json.loads(self.run(*words, "--json"))

    def address(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.home / 'run/volumes.nbd'}"

    def wait(self, name: str) -> None:
        while self.ask("show", name=name)["missing"]:
            time.sleep(0.03)

    def ask(self, verb: str, **more: object) -> Any:
        """What the verbs ask, without the processor time that a program of its own takes to start."""
        return ask(self.home / "run/volumes.control", {"verb": verb, **more}, 5)["result"]

    def anonymous(self) -> float:
        """RssAnon of the service in MiB."""
        pid = self.ask("ping")["pid"]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no RssAnon")


def fio(uri: str, pattern: str, block: str, seconds: float, *more: str) -> dict[str, Any]:
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={pattern}", f"--bs={block}", *more]
    command += ["--iodepth=16", f"--size={SIZE}", f"--runtime={seconds}", "--time_based", "--ramp_time=0.3"]
    command += ["--output-format=json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job: dict[str, Any] = json.loads(printed[printed.index("{") :])["jobs"][0]
    return job["write" if "write" in pattern else "read"]  # type: ignore[no-any-return]


def against_nbdkit(service: Service, work: Path, rounds: int, seconds: float) -> str:
    """Requests a second, idle and while a snapshot is on its way, against nbdkit in the same minute."""
    image, theirs = work / "nbdkit.img", work / "nbdkit.sock"
    image.write_bytes(b"\x5a" * SIZE)
    service.run("volume", "create", "data", "--size", SIZE)
    convert = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), service.address("data")]
    subprocess.run(convert, check=True)
    service.run("volume", "snapshot", "data", "--wait")
    found: dict[tuple[str, str], list[float]] = {}
    with running(["nbdkit", "-f", "-U", str(theirs), "file", str(image)], theirs):
        for _ in range(rounds):
            for name, (pattern, block) in WORKLOADS.items():
                other = fio(f"nbd+unix:///?socket={theirs}", pattern, block, seconds)["iops"]
                idle = fio(service.address("data"), pattern, block, seconds)["iops"]
                # What fio wrote a moment ago is what the snapshot brings to the vault meanwhile.
                fio(service.address("data"), "randwrite", "4k", 0.5)
                service.run("volume", "snapshot", "data")
                busy = fio(service.address("data"), pattern, block, seconds)["iops"]
                service.run("volume", "snapshot", "data", "--wait")
                for kind, value in (("nbdkit", other), ("idle", idle), ("busy", busy)):
                    found.setdefault((name, kind), []).append(value)
    text = "| fio, depth 16 | nbdkit file | volume | ÷ nbdkit | volume, snapshot on its way | ÷ nbdkit |\n|---|---|---|---|---|---|\n"
    for name in WORKLOADS:
        other, idle, busy = (statistics.median(found[name, kind]) for kind in ("nbdkit", "idle", "busy"))
        text += (
            f"| {name} | {other:,.0f}/s | {idle:,.0f}/s | {idle / other:.2f} | {busy:,.0f}/s | {busy / other:.2f} |\n"
        )
    return text


def pauses(service: Service, seconds: float) -> str:
    """How long writes wait for seals at 20,000 a second."""
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={service.address('data')}", "--rw=randwrite", "--bs=4k"]
    command += ["--iodepth=4", f"--size={SIZE}", "--rate_iops=20000", f"--runtime={seconds}", "--time_based"]
    command += ["--output-format=json"]
    writing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    gates, calls, commands = [], [], []
    time.sleep(0.5)
    while writing.poll() is None and len(gates) < 20:
        began = time.perf_counter()
        gates.append(service.json("volume", "snapshot", "data")["pause"])
        commands.append(time.perf_counter() - began)
        service.run("volume", "snapshot", "data", "--wait")
        began = time.perf_counter()
        gates.append(service.ask("snapshot", names=["data"], asked={"data": "crash"}, tags={})["pause"])
        calls.append(time.perf_counter() - began)
        service.run("volume", "snapshot", "data", "--wait")
    printed = writing.communicate()[0]
    latency = json.loads(printed[printed.index("{") :])["jobs"][0]["write"]["clat_ns"]["percentile"]
    return (
        f"{len(gates)} snapshots under 20,000 writes a second (4 KiB): gate closed for {max(gates) * 1000:.2f} ms at most, the service's "
        f"answer after {statistics.median(calls) * 1000:.0f} ms, the whole command {statistics.median(commands) * 1000:.0f} ms; write latency p99 {latency['99.000000'] / 1e6:.1f} ms, p99.9 {latency['99.900000'] / 1e6:.1f} ms.\n"
    )


def instant(service: Service, work: Path, data: int) -> str:
    """A volume of 1 TiB made of a point: until it is mounted, until it is all here, against a plain restore."""
    image, tree = work / "big.img", work / "tree"
    tree.mkdir()
    fill(tree, data)
    with image.open("wb") as file:
        file.truncate(TIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(tree), str(image)], check=True)
    size = service.json("backup", image, "--name", "big")["points"][0]["read"]
    image.unlink()
    began = time.perf_counter()
    restored = service.json("restore", "big@latest", "--to", work / "restored.img")
    plain = restored["written"] / (time.perf_counter() - began)
    (work / "restored.img").unlink()
    place = work / "mnt"
    place.mkdir()
    began = time.perf_counter()
    service.run("volume", "create", "big", "--from", "big@latest")
    created = time.perf_counter() - began
    mounted = 0.0
    if os.geteuid() == 0:
        service.run("volume", "attach", "big", "--mount", place)
        mounted = time.perf_counter() - began
        os.listdir(place)
    service.wait("big")
    if mounted:
        service.run("volume", "detach", "big")
    began = time.perf_counter()
    service.run("volume", "create", "filled", "--from", "big@latest")
    service.wait("filled")
    filled = restored["written"] / (time.perf_counter() - began)
    meanwhile, after = reads_meanwhile(service, size)
    return (
        f"A volume of 1 TiB with {size >> 20:,} MiB of data made of a point: created in {created:.2f} s"
        + (f", attached and mounted after {mounted:.2f} s" if mounted else "")
        + f"; another is filled in at {filled / 1e6:,.0f} MB/s, the command that makes it included, a plain restore runs at {plain / 1e6:,.0f} MB/s "
        f"(ratio {filled / plain:.2f}). Random reads of 4 KiB one after another within the data, while it is filled in: p50 {meanwhile[0]:.2f} ms, "
        f"p99 {meanwhile[1]:.1f} ms, mean {meanwhile[2]:.2f} ms; once all is here: {after[0]:.2f}, {after[1]:.1f}, {after[2]:.2f} ms.\n"
    )


def reads_meanwhile(service: Service, data: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Milliseconds of reads of another volume of the same point, nearly all of them first touches, and of the same reads afterwards: p50, p99, mean."""

    def read() -> tuple[float, ...]:
        command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={service.address('cold')}", "--rw=randread", "--bs=4k"]
        command += ["--iodepth=1", f"--size={data}", "--number_ios=300", "--output-format=json"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        latency = json.loads(printed[printed.index("{") :])["jobs"][0]["read"]["clat_ns"]
        percentile = latency["percentile"]
        return percentile["50.000000"] / 1e6, percentile["99.000000"] / 1e6, latency["mean"] / 1e6

    service.run("volume", "create", "cold", "--from", "big@latest")
    meanwhile = read()
    service.wait("cold")
    return meanwhile, read()


def first_touches(work: Path) -> str:
    """Reads of blocks that are not here yet, of a vault on an S3 server, against that server's answers to requests for as many bytes: where it shares
    the processors with nothing in between, and where its answers come from further away, as those of a cloud do.
    """
    with tempfile.TemporaryDirectory(dir=work) as data, start_s3(Path(data)) as server:
        image, tree = work / "touch.img", work / "touch"
        tree.mkdir()
        fill(tree, 1000)
        with image.open("wb") as file:
            file.truncate(4 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(tree), str(image)], check=True)
        near = first_touch(work / "near", image, server)
        port = int(server.endpoint.rpartition(":")[2])
        with further_away(port, _AWAY) as other:
            far = first_touch(work / "far", image, S3Server(f"http://127.0.0.1:{other}"))
    told = "; ".join(
        f"{where}: p50 {touch:.1f} ms, the server's own answer to a request for as many bytes p50 {own:.1f} ms (ratio {touch / own:.2f})"
        for where, (touch, own) in (
            ("a local S3 server", near),
            (f"the same with answers {_AWAY * 1000:.0f} ms later", far),
        )
    )
    return f"First touch of blocks of a volume that is being filled in: {told}.\n"


def first_touch(home: Path, image: Path, server: S3Server) -> tuple[float, float]:
    """Milliseconds, p50, of a first touch, and of the server's own answers."""
    home.mkdir()
    service = Service(home, f"s3://vaults/{home.name}", server.environment)
    try:
        point = service.json("backup", image, "--name", "touch")["points"][0]
        blocks = -(-point["read"] // (512 << 10))
        own = plain_requests(server, home.name, point["stored"] // blocks)
        service.run("volume", "create", "touch", "--from", "touch@latest")
        command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={service.address('touch')}", "--rw=randread"]
        command += ["--bs=4k", "--iodepth=1", f"--size={point['read']}", "--number_ios=200", "--output-format=json"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        latency = json.loads(printed[printed.index("{") :])["jobs"][0]["read"]["clat_ns"]["percentile"]
        return latency["50.000000"] / 1e6, own
    finally:
        service.run("volume", "stop")


def plain_requests(server: S3Server, prefix: str, length: int) -> float:
    """Milliseconds, p50, of reading `length` bytes of packs at random places, one request after another."""
    bucket = bucket_of(server.environment, prefix)
    packs = [one for page in bucket.list("packs/") for one in page if one["size"] > length]
    rng, seconds = random.Random(1), []
    for _ in range(200):
        one = rng.choice(packs)
        began = time.perf_counter()
        bucket.get_range(one["path"], start=rng.randrange(one["size"] - length), length=length)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def memory(service: Service) -> str:
    for number in range(20):
        service.run("volume", "create", f"v{number}", "--size", TIB)
        subprocess.run(
            ["qemu-io", "-f", "raw", "-c", f"write {number}G 64M", service.address(f"v{number}")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return (
        f"RssAnon of the service with 20 volumes of 1 TiB, all of the above behind it: {service.anonymous():.0f} MiB.\n"
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3
    data = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    text = "# Benchmarks: live volumes\n\nWritten by `make bench`. "
    text += f"Linux {platform.release()}, Python {platform.python_version()}. Server and client share the processors, and the vault lies on the same "
    text += f"disk. Medians of {rounds} interleaved rounds of {seconds:g} s; ratios travel, seconds do not.\n\n"
    with ExitStack() as stack:
        # A short path: the sockets are in it.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shb", dir="/tmp")))
        service = Service(work)
        try:
            for part in (
                lambda: against_nbdkit(service, work, rounds, seconds),
                lambda: pauses(service, 10),
                lambda: instant(service, work, data),
                lambda: first_touches(work),
                lambda: memory(service),
            ):
                text += part() + "\n"
                print(text, flush=True)
        finally:
            service.run("volume", "stop")
    (HERE / "docs/benchmarks-volumes.md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
