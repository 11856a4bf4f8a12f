"""Debian's own kernel, unpacked beside the machine's: for guests that need what the running kernel lacks."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DebianKernel", "debian_kernel"]

_PACKAGES = {"x86_64": "linux-image-amd64", "aarch64": "linux-image-arm64"}
"""By `uname -m`. Debian's small `cloud` kernels have no 9p."""

_DOWNLOAD = 300.0
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class DebianKernel:
    """An unpacked package: the image to boot, and the folder that a guest sees as `/lib/modules`."""

    image: Path
    modules: Path

    def in_order(self, wanted: Iterable[str]) -> list[Path]:
        """The files of modules and of all that they need, each after what it needs; what is built in has none.

        RuntimeError for a name that the kernel does not have.
        """
        version = next(self.modules.iterdir())
        files = {_name(path): path for path in version.rglob("*.ko")}
        built_in = {_name(Path(line)) for line in (version / "modules.builtin").read_text().split()}
        ordered: dict[str, Path] = {}

        def take(name: str) -> None:
            name = name.replace("-", "_")
            if name in ordered or name in built_in:
                return
            if name not in files:
                raise RuntimeError(f"{version.name} has no module {name}")
            for needed in _needs(files[name]):
                take(needed)
            ordered[name] = files[name]

        for name in wanted:
            take(name)
        return list(ordered.values())


def debian_kernel() -> DebianKernel:
    """The current one for this processor; downloaded once, and kept in the user's cache folder.

    RuntimeError where apt cannot get it, or the processor is another.
    """
    meta = _PACKAGES.get(platform.machine())
    if meta is None:
        raise RuntimeError(f"no kernel is known for {platform.machine()}: {', '.join(_PACKAGES)} can be guests")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safehold-tests"
    try:
        package = _real_package(meta)
    except RuntimeError:
        # Images of containers come without apt's lists.
        _apt("apt-get", "update", "-qq")
        package = _real_package(meta)
    root = cache / package
    if not root.exists():
        _unpack(package, root)
    return DebianKernel(next(root.glob("boot/vmlinuz-*")), root / "lib" / "modules")


def _name(path: Path) -> str:
    return path.stem.replace("-", "_")


def _needs(module: Path) -> Iterator[str]:
    found = _DEPENDS.search(module.read_bytes())
    if found:
        yield from filter(None, found[1].decode().split(","))


def _apt(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_DOWNLOAD, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _real_package(meta: str) -> str:
    """The package of the newest kernel: the meta-package only depends on it."""
    found = re.search(r"^  Depends: (linux-image-\S+)$", _apt("apt-cache", "depends", meta), re.MULTILINE)
    if not found:
        raise RuntimeError(f"{meta} names no kernel: run apt-get update")
    return found[1]


def _unpack(package: str, root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        _apt("apt-get", "download", "-qq", package, cwd=Path(scratch))
        unpacked = Path(scratch) / "root"
        _apt("dpkg-deb", "-x", str(next(Path(scratch).glob("*.deb"))), str(unpacked))
        _apt("depmod", "-b", str(unpacked), next((unpacked / "lib" / "modules").iterdir()).name)
        try:
            unpacked.rename(root)
        except OSError:
            # Another process was quicker, with the same.
            if not root.exists():
                raise
            shutil.rmtree(unpacked)
