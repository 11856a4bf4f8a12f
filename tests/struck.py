"""How many faults the tests caused: a fault test that strikes nothing proves nothing, so the numbers stand at the end of every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

_MARK = "struck: "
Struck = Callable[[str, int], None]


@pytest.fixture
def struck(record_property: Callable[[str, object], None]) -> Struck:
    """Tells how many faults of a kind a test caused; none is a failure."""

    def tell(kind: str, count: int) -> None:
        assert count > 0, f"no {kind}: this test proved nothing"
        # With the test's report, these come to the process that prints, whichever process ran the test.
        record_property(_MARK + kind, count)

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    faults, tests = Counter[str](), dict[str, set[str]]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, count in report.user_properties:
                    if name.startswith(_MARK):
                        faults[name.removeprefix(_MARK)] += count
                        tests.setdefault(name.removeprefix(_MARK), set()).add(report.nodeid)
    if faults:
        terminalreporter.section("faults struck")
        for kind, count in sorted(faults.items()):
            terminalreporter.line(f"{count:6} {kind} in {len(tests[kind])} tests")
