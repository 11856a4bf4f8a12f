"""A real S3 server on loopback for tests: SeaweedFS out of its wheel."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

__all__ = ["BUCKET", "S3Identity", "S3Server", "start_s3"]

BUCKET = "vaults"
"""The one bucket: tests take a prefix each."""

_START = 60.0
_PR_SET_PDEATHSIG = 1
_KEY, _SECRET = "safehold-test", "safehold-test-secret"


@dataclass(frozen=True)
class S3Identity:
    """Somebody with access of his own: the name is his access key too, and `policy` (JSON) is all that he may do."""

    name: str
    policy: str

    @property
    def secret(self) -> str:
        """The secret access key."""
        return f"secret-of-{self.name}"


@dataclass(frozen=True)
class S3Server:
    """A running server: its endpoint and the environment that makes clients use it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The usual AWS variables, of whoever may do everything."""
        return self._environment(_KEY, _SECRET)

    def environment_of(self, who: S3Identity) -> dict[str, str]:
        """The usual AWS variables, of somebody else."""
        return self._environment(who.name, who.secret)

    def _environment(self, key: str, secret: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }


def _free_ports(count: int) -> list[int]:
    """Ports free now whose number plus 10,000 is free too, as the server puts its gRPC services there.

    All of them lie below the range that the kernel gives to outgoing connections.
    """
    found: list[int] = []
    port = 10_000 + os.getpid() % 97 * 100
    while len(found) < count:
        port += 1
        if all(_is_free(candidate) for candidate in (port, port + 10_000)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def start_s3(directory: Path, identities: Sequence[S3Identity] = ()) -> Iterator[S3Server]:
    """Run a server with its data in `directory` until the block ends; what an earlier one left there is served again. RuntimeError with its
    log where it does not come up.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        raise RuntimeError("the S3 server is missing: install the development requirements")
    s3, master, volume, filer, webdav, iceberg, lance, admin = _free_ports(8)
    log = directory / "weed.log"
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}
    command = [
        weed, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", f"-s3.port={s3}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-webdav.port={webdav}", "-webdav=false",
        f"-s3.port.iceberg={iceberg}", f"-s3.port.lance={lance}", f"-admin.port={admin}", f"-bucket={BUCKET}",
    ]  # fmt: skip
    if identities:
        access = directory / "access.json"
        access.write_text(_access(identities))
        command.append(f"-s3.config={access}")
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=_die_with_parent,
        )
        try:
            running = S3Server(f"http://127.0.0.1:{s3}")
            _await(server, running, log)
            yield running
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _access(identities: Sequence[S3Identity]) -> str:
    """The server's file of who may do what: once there is one, it has to name the administrator too."""
    everybody = [_identity(_KEY, _SECRET, actions=["Admin"])]
    everybody += [_identity(who.name, who.secret, actions=[], policyNames=[who.name]) for who in identities]
    return json.dumps(
        {"identities": everybody, "policies": [{"name": w.name, "content": w.policy} for w in identities]}
    )


def _identity(key: str, secret: str, **may: list[str]) -> dict[str, object]:
    return {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], **may}


def _await(server: subprocess.Popen[bytes], running: S3Server, log: Path) -> None:
    """Wait until the bucket takes an object."""
    deadline = time.monotonic() + _START
    bucket = S3Store(
        BUCKET,
        endpoint=running.endpoint,
        region="us-east-1",
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    while True:
        try:
            obstore.put(bucket, "probe", b"x")
            return
        except (BaseError, OSError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 server does not come up: {error}\n{tail}") from error
            time.sleep(0.2)
