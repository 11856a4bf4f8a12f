"""Looking at what lies below a directory, where that is not simply there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from safehold.adapters.files.view import open_view
from safehold.model.errors import TargetError
from safehold.ports.tree import Unreadable


def test_nothing_is_behind_links_and_files(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to("../outside")
    (top / "file").write_text("x")
    view = open_view(str(top))
    assert view.state(b"file") is not None
    assert view.leads_to(b"link") == b"../outside"
    for path in (b"link/file", b"file/below", b"missing/file"):
        assert view.state(path) is None
        assert view.attributes(path) == {}
        with pytest.raises(Unreadable), view.read(path):
            pass
    with pytest.raises(Unreadable), view.read(b"link"):
        pass
    assert open_view(str(tmp_path / "missing")).state(b"file") is None


@pytest.mark.parametrize(
    ("call", "look"), [("stat", "state"), ("open", "state"), ("readlink", "leads_to"), ("listxattr", "attributes")]
)
def test_what_may_not_be_looked_at_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, look: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to("somewhere")
    view = open_view(str(tmp_path))

    def refused(*words: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, call, refused)
    with pytest.raises(TargetError, match="cannot be looked at"):
        getattr(view, look)(b"in/link")
