"""Orders to a service over its control socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from safehold.wire.control import ControlServer, ask


def test_whoever_asks_for_the_end_gets_an_answer(tmp_path: Path) -> None:
    """It ends while the answer is on its way: the answer is waited for."""
    asked, found = threading.Event(), []

    def answer(question: Mapping[str, object]) -> Mapping[str, object]:
        asked.set()
        time.sleep(0.3)
        return {"result": question["verb"]}

    server = ControlServer(tmp_path / "socket", answer, lambda error: None)
    asker = threading.Thread(target=lambda: found.append(ask(tmp_path / "socket", {"verb": "stop"}, 5)))
    asker.start()
    asked.wait()
    server.close()
    assert server.answering == 0
    asker.join()
    assert found == [{"result": "stop"}]
