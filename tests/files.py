"""Trees of files for tests, and what they hold."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
from pathlib import Path


def everything(top: Path) -> None:
    """A tree with all that a file system can hold; needs root for devices, owners and capabilities."""
    top.mkdir()
    (top / "etc/empty").mkdir(parents=True)
    (top / "etc/passwd").write_text("root:x:0:0\n")
    os.link(top / "etc/passwd", top / "hard link")
    (top / "nothing").touch()
    (top / "small").write_bytes(b"\0" * 3000)
    (top / "middle").write_bytes(random.Random(1).randbytes(300_000))
    (top / "large").write_bytes(random.Random(2).randbytes(9_000_000))
    os.link(top / "large", top / "etc/large too")
    with (top / "sparse").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(20_000_000)
        file.write(b"in the middle")
    with (top / "many parts").open("wb") as file:
        for n in range(100):
            file.seek(n * 1_000_000)
            file.write(b"part %d" % n)
    os.symlink("nowhere/at/all", top / "dangling")
    os.symlink("/etc", top / "absolute")
    os.symlink(b"\xfe\xff", os.fsencode(top / "odd link"))
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(top)
        server.bind("socket")
        os.chdir(here)
    os.mknod(top / "character", 0o640 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top / "block", 0o640 | stat.S_IFBLK, os.makedev(7, 99))
    odd = os.fsencode(top) + b"/\xff\xfe\x80"
    os.makedirs(odd + b"/-rf *")
    for name in (b"new\nline", b"tab\t", b"\x1b[31mred", b"'\"\\", "späß".encode(), b" ", b"x" * 255, b"\x01"):
        with open(odd + b"/" + name, "wb") as file:
            file.write(name)
    os.setxattr(top / "small", "user.note", b"\0\xff")
    os.setxattr(top / "etc", "user.directory", b"yes")
    os.setxattr(top / "dangling", "trusted.on a link", b"1", follow_symlinks=False)
    subprocess.run(["setfacl", "-m", "u:12345:rw,g:999:r", top / "middle"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:12345:rwx", top / "etc"], check=True)
    subprocess.run(["setcap", "cap_net_raw+ep", top / "nothing"], check=True)
    os.chown(top / "large", 12345, 54321)
    os.chown(top / "dangling", 1, 2, follow_symlinks=False)
    os.chmod(top / "middle", 0o4751)
    os.chmod(top / "etc/empty", 0o1777)
    os.chmod(top / "etc/passwd", 0o000)
    os.utime(top / "small", ns=(1, 1_000_000_000_123_456_789))
    os.utime(top / "large", ns=(1, -5_000_000_001))
    os.utime(top / "dangling", ns=(1, 987_654_321), follow_symlinks=False)
    os.utime(top / "etc/empty", ns=(1, 123_456_789))


def deep(top: Path) -> None:
    """Directories in directories: a path of 8,000 bytes, twice as long as any call takes."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(40):
        os.mkdir(b"d" * 200, dir_fd=at)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    file = os.open(b"at the bottom", os.O_CREAT | os.O_WRONLY, dir_fd=at)
    os.write(file, b"here")
    os.close(file)
    os.close(at)


def tar_listing(top: Path) -> bytes:
    """All names, modes, owners and times below `top`, and the content of files, as tar packs them."""
    return subprocess.run(
        ["tar", "-c", "--sort=name", "--format=pax", "--pax-option=delete=atime,delete=ctime", "."],
        cwd=top,
        capture_output=True,
        check=True,
    ).stdout


def rsync_differences(left: Path, right: Path) -> str:
    """What rsync would change in `right` to make it equal to `left`: content, owners, modes, times, links, ACLs, attributes, devices."""
    done = subprocess.run(
        ["rsync", "-aHAXS", "-n", "-i", "-c", "--delete", f"{left}/", f"{right}/"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def attributes(top: Path) -> str:
    """ACLs, extended attributes and capabilities as the system's own tools tell them."""
    out = ""
    for command in (
        ["getfattr", "-R", "-d", "-h", "-m", "-", "-e", "hex", "."],
        ["getfacl", "-R", "-P", "-n", "."],
        ["getcap", "-r", "."],
    ):
        out += subprocess.run(command, cwd=top, capture_output=True, check=True).stdout.decode(errors="surrogateescape")
    return out


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, owner, device, time, attributes (ACLs and capabilities among them), other names and content of everything below `top`, by
    path.
    """
    out: dict[str, tuple[object, ...]] = {}
    names: dict[tuple[int, int], set[str]] = {}
    for where, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(where) / name
            info = path.lstat()
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            one = str(path.relative_to(top))
            same = names.setdefault((info.st_dev, info.st_ino), set()) if not path.is_dir() else set()
            same.add(one)
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
            }
            owner = (info.st_uid, info.st_gid, info.st_rdev)
            out[one] = (info.st_mode, owner, info.st_mtime_ns, attributes, same, content)
    return out
