"""Threads of one process that open a vault with a passphrase at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_OPEN = """
import sys, threading
from pathlib import Path
from safehold.app.opening import Credentials, Stores, open_vault
from safehold.model.context import Context
from safehold.objects.memory import MemoryStore
from safehold.vault.create import create_vault
from safehold.vault.places import Places
from safehold.vault.records import Parameters
from safehold.vault.slots import Passphrase

store, ctx, root = MemoryStore(), Context(), Path(sys.argv[1])
create_vault(store, Passphrase("right"), Parameters(), "test", ctx)
together, opened = threading.Barrier(8), []


def begin(number):
    together.wait()
    places = Places(root / f"state-{number}", root / f"cache-{number}")
    opened.append(open_vault(Stores(store, store, "memory"), Credentials(Passphrase("right")), places, ctx))


threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(opened))
"""


def test_threads_that_open_a_vault_at_once_all_have_it(tmp_path: Path) -> None:
    """In a process of its own: threads that wait in the library for each other end with nothing less."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
