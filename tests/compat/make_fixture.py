"""Makes tests/compat/vault-v1.tar.xz. Run once for each format version and then never again: the file is what the past wrote.

python -m tests.compat.make_fixture
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from safehold.testing.program import Program
from tests.compat.contents import FIRST, SECOND

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        program = Program(work / "home", {"SAFEHOLD_PASSPHRASE": "compat"})
        program.run("vault", "init", work / "vault", "--block-size", "4K", "--kit-file", work / "kit.txt")
        for number, content in enumerate((FIRST, SECOND)):
            (work / "disk.img").write_bytes(content)
            program.run("backup", work / "disk.img", "--tag", f"number={number}")
        program.run("key", "writer", work / "writer.json", "--resource", "web*")
        program.run("backup", work / "disk.img", "--name", "web", "--writer", work / "writer.json")
        (work / "points.json").write_text(program.run("points", "--json").stdout)
        (work / "disk.img").unlink()
        with tarfile.open(HERE / "vault-v1.tar.xz", "w:xz") as archive:
            for name in ("vault", "kit.txt", "points.json", "writer.json"):
                archive.add(work / name, name, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
