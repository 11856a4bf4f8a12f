"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from safehold.model import errors

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "src/safehold").rglob("*.py"))
LIMIT = 400
REASONED = {"vault/session.py": "one session's state and its order of steps belong together"}


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 60


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "src/safehold")))
def test_modules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    name = str(path.relative_to(ROOT / "src/safehold"))
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert len(text.splitlines()) <= (800 if name in REASONED else LIMIT)
    assert ast.get_docstring(tree), "every module says what it is for"
    if path.name not in {"__init__.py", "__main__.py"}:
        names = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        assert "__all__" in names
        module = importlib.import_module("safehold." + name.removesuffix(".py").replace("/", "."))
        for public in module.__all__:
            assert hasattr(module, public)


def test_nothing_heavy_at_the_start_of_the_program() -> None:
    code = "import sys, safehold.cli.main; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "click" in loaded
    assert not {"obstore", "cryptography", "zstandard", "msgspec", "safehold.vault", "rich", "numpy"} & set(loaded)


def test_local_vaults_do_not_load_the_cloud_library() -> None:
    code = "import sys, safehold.cli.backup; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "safehold.vault.session" in loaded
    assert "obstore" not in loaded


def drawn() -> dict[str, tuple[str, int]]:
    """The tree on top of model/errors.py: name → (parent, exit code)."""
    found: dict[str, tuple[str, int]] = {}
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+)\s*(\d)?", line)
        if not match or not (match[3] or match[2] == "SafeholdError"):
            continue
        depth = len(match[1])
        parents[depth] = match[2]
        above = [parents[d] for d in sorted(parents) if d < depth]
        found[match[2]] = (above[-1] if above else "Exception", int(match[3] or 1))
    return found


def test_the_error_tree_is_drawn_as_it_is() -> None:
    classes = {c: getattr(errors, c) for c in errors.__all__}
    real = {name: (c.__base__.__name__, c.exit_code) for name, c in classes.items()}
    assert drawn() == real


def test_the_command_line_reference_is_current() -> None:
    subprocess.run([sys.executable, ROOT / "scripts/make-docs", "--check"], check=True)


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    for code in {c.exit_code for c in vars(errors).values() if isinstance(c, type)}:
        assert re.search(rf"\b{code} \w+", text)
