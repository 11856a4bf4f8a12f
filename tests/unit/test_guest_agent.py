"""What a guest's agent can answer and a healthy one does not: a server in its place says it. A real one is frozen in tests/e2e."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from safehold.adapters.linux.guest_agent import GuestAgent
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.quiesce.guard import Terms, arm
from safehold.quiesce.holding import capture_quietly

TERMS = Terms(30, 30)
Answer = Callable[["Invented", str], Any]


@dataclass
class Invented:
    """An agent of our own, one client at a time; `answers` are looked at before it answers as a healthy one does."""

    path: str
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    frozen: int = 0
    left_over: bytes = b""

    def serve(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.sendall(self.left_over)
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        for raw in client.makefile("rb"):
            text = raw.rpartition(b"\xff")[2]
            message = json.loads(text)
            command = message["execute"]
            if command == "guest-sync-delimited":
                token = message["arguments"]["id"]
                client.sendall(b"\xff" + json.dumps({"return": token}).encode() + b"\n")
                continue
            self.asked.append(command)
            answer = self.answers.get(command, Invented._healthy)(self, command)
            if answer is None:
                return
            client.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    def _healthy(self, command: str) -> Any:
        before = self.frozen
        match command:
            case "guest-fsfreeze-status":
                return {"return": "frozen" if before else "thawed"}
            case "guest-fsfreeze-freeze":
                self.frozen = 2
                return {"return": 2}
        self.frozen = 0
        return {"return": before}


@pytest.fixture
def agent() -> Iterator[Invented]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        path = f"{directory}/agent"
        server.bind(path)
        server.listen()
        invented = Invented(path)
        thread = threading.Thread(target=invented.serve, args=(server,))
        thread.start()
        yield invented
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def capture(agent: Invented, create: Callable[[], None] = lambda: None, seconds: float = 20) -> Consistency:
    _, level, _ = capture_quietly([GuestAgent(agent.path, seconds)], create, TERMS, Consistency.FILESYSTEM, Context())
    return level


def test_frozen_around_a_capture(agent: Invented) -> None:
    # What an earlier client did not wait for is on its way still, cut and with a sentinel of its own.
    agent.left_over = b'{"return": 7}\n\xff{"return": 12345}\n{"ret'
    seen: list[int] = []
    assert capture(agent, lambda: seen.append(agent.frozen)) is Consistency.FILESYSTEM
    assert (seen, agent.frozen) == ([2], 0)


def test_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "none"):
        with pytest.raises(UsageError, match="no such socket"):
            GuestAgent(str(tmp_path / name), 1)


def test_nobody_listens() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{directory}/agent")
        with pytest.raises(ConsistencyError, match="cannot be reached"):
            GuestAgent(f"{directory}/agent", 5).prepare()


def test_no_agent_in_the_guest() -> None:
    """The socket is the virtual machine's: it takes a client although nobody in the guest answers."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{directory}/agent")
        server.listen()
        with pytest.raises(ConsistencyError, match="does not answer in time") as caught:
            GuestAgent(f"{directory}/agent", 0.5).prepare()
        assert "qemu-guest-agent" in caught.value.remedy


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"error": {"class": "GenericError", "desc": "failed to freeze /srv"}}, "failed to freeze /srv"),
        ({"return": 0}, "froze nothing"),
        ({"return": "two"}, "with no number"),
        ({"return": True}, "with no number"),
        (b"rubbish\n", "with something else"),
        (b"x" * (2 << 20), "talks without end"),
        (None, "hung up"),
    ],
    ids=["no", "nothing", "word", "truth", "rubbish", "flood", "hangup"],
)
def test_a_freeze_that_fails_is_let_go_of(agent: Invented, answer: Any, told: str) -> None:
    agent.answers["guest-fsfreeze-freeze"] = lambda self, command: answer
    with pytest.raises(ConsistencyError, match=told):
        capture(agent)
    assert agent.asked[-1] == "guest-fsfreeze-thaw"


def test_somebody_elses_freeze_is_left_alone(agent: Invented) -> None:
    agent.frozen = 1
    with pytest.raises(ConsistencyError, match="already, for somebody else"):
        capture(agent)
    assert agent.frozen == 1
    assert "guest-fsfreeze-thaw" not in agent.asked


def test_thawed_by_somebody_else_in_between(agent: Invented) -> None:
    def create() -> None:
        agent.frozen = 0

    with pytest.raises(ConsistencyError, match="go on in between"):
        capture(agent, create)


def test_a_guest_that_the_watchdog_let_go_on_is_no_failure_where_less_was_asked_for(agent: Invented) -> None:
    def create() -> None:
        _wait(lambda: not agent.frozen)

    brackets = [GuestAgent(agent.path, 20)]
    _, level, record = capture_quietly(brackets, create, Terms(3, 3), Consistency.CRASH, Context())
    assert (level, [one.achieved for one in record]) == (Consistency.NONE, ["none"])


def test_what_does_not_thaw_at_once_the_watchdog_thaws(agent: Invented) -> None:
    failures = iter([{"error": {"desc": "busy"}}] * 3)
    agent.answers["guest-fsfreeze-thaw"] = lambda self, command: next(failures, None) or self._healthy(command)
    with pytest.raises(StillHeldError, match="busy"):
        capture(agent)
    _wait(lambda: not agent.frozen)


OWNER = """
import sys, time
from safehold.adapters.linux.guest_agent import GuestAgent
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.quiesce.guard import Terms
from safehold.quiesce.holding import capture_quietly
def create():
    print("frozen", flush=True)
    time.sleep(1000)
capture_quietly([GuestAgent(sys.argv[1], 20)], create, Terms(2, 600), Consistency.FILESYSTEM, Context())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_owner_that_dies_or_stops(agent: Invented, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, agent.path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "frozen\n"
        assert agent.frozen
        owner.send_signal(number)
        _wait(lambda: not agent.frozen)
        owner.kill()


def test_an_owner_that_is_killed_in_the_middle_of_the_freeze(agent: Invented) -> None:
    """The agent is at it still when nobody waits for its answer any more."""
    reached = threading.Event()

    def slow(self: Invented, command: str) -> Any:
        reached.set()
        time.sleep(1)
        return self._healthy(command)

    agent.answers["guest-fsfreeze-freeze"] = slow
    with subprocess.Popen([sys.executable, "-c", OWNER, agent.path], stdout=subprocess.DEVNULL) as owner:
        assert reached.wait(60)
        owner.kill()
    _wait(lambda: "guest-fsfreeze-thaw" in agent.asked and not agent.frozen)


def test_a_watchdog_that_is_alone_with_an_agent(agent: Invented) -> None:
    guard = arm([{"kind": "agent", "path": agent.path, "seconds": 20}], TERMS)
    guard.enter(0)
    agent.frozen = 2
    os.kill(guard.process, signal.SIGTERM)
    _wait(lambda: not agent.frozen)
    guard.close()


def _wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
