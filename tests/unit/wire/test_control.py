"""Orders to a service over its control socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from safehold.model.errors import FailedError
from safehold.wire.control import ControlServer, ServiceLost, ask


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


def test_one_listens_at_a_time(tmp_path: Path) -> None:
    """A second one leaves the first alone; what one that was killed has left is replaced."""
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(place))
        killed.listen(1)
    first = ControlServer(place, lambda question: {"result": "first"}, lambda error: None)
    with pytest.raises(FailedError, match="another program listens here"):
        ControlServer(place, lambda question: {"result": "second"}, lambda error: None)
    assert ask(place, {"verb": "who"}, 5) == {"result": "first"}
    first.close()
    second = ControlServer(place, lambda question: {"result": "second"}, lambda error: None)
    assert ask(place, {"verb": "who"}, 5) == {"result": "second"}
    second.close()


@pytest.mark.parametrize("ending", ["closes", "breaks off", "says nothing"])
def test_who_ends_before_he_answers_is_lost_and_who_says_nothing_may_hang(tmp_path: Path, ending: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(100)
                if ending == "breaks off":
                    client.sendall(b'{"result"')
                if ending == "says nothing":
                    client.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(FailedError) as caught:
            ask(tmp_path / "s", {"verb": "list"}, 1.0)
        thread.join()
    assert isinstance(caught.value, ServiceLost) is (ending != "says nothing")


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"\xff\x00", b"{", b"", b"[]", b"1" * 5000, b"null"], ids=lambda line: line[:2].hex()
)
def test_rubbish_is_answered_and_nothing_unforeseen(tmp_path: Path, line: bytes) -> None:
    unforeseen: list[Exception] = []
    server = ControlServer(tmp_path / "socket", lambda question: {"result": 1}, unforeseen.append)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(tmp_path / "socket"))
        connection.sendall(line + b"\n")
        answer = json.loads(connection.makefile().readline())
    server.close()
    assert answer["error"]["kind"] == "UsageError"
    assert answer["error"]["remedy"]
    assert unforeseen == []
