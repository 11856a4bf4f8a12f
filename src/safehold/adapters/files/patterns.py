"""Which names to leave out, or to take."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

__all__ = ["compile_patterns", "pattern_regex"]


def pattern_regex(pattern: str) -> str:
    """A shell pattern as a regular expression over whole paths that start with a slash.

    Without a slash it matches a name at any depth; with one it starts at the top, or below any directory after `**/`. `*` and `?` stay
    within a name, `**` goes across them, a trailing slash is ignored.
    """
    text = pattern.rstrip("/") or "/"
    anchored = "/" in text
    out = "" if text.startswith(("/", "**/")) else "/"
    at = 0
    behind: str | None = None
    """What follows the last star within a name; None where there is none yet."""

    def name_ends() -> str:
        return "" if behind is None else f"[^/]*{behind}"

    while at < len(text):
        if text.startswith("**", at):
            out, behind = out + name_ends(), None
            if text.startswith("**/", at):
                out += "(?:.*/)?" if at and text[at - 1] == "/" else "(?:/|/.*/)"
                at += 3
            else:
                out += ".*"
                at += 2
        elif text[at] == "*":
            # Between two stars the first place that fits is as good as any: tried once, or a pattern of many stars would take for ever.
            out += "" if behind is None else f"(?>[^/]*?{behind})"
            behind = ""
            at += 1
        else:
            piece, end = _token(text, at)
            if piece == "/":
                out, behind = out + name_ends(), None
            if behind is None:
                out += piece
            else:
                behind += piece
            at = end
    out += name_ends()
    return out if anchored else "(?:.*)" + out


def _token(text: str, at: int) -> tuple[str, int]:
    char = text[at]
    if char == "?":
        return "[^/]", at + 1
    if char == "[":
        end = text.find("]", at + 2)
        if end > 0:
            inner = text[at + 1 : end].replace("\\", "\\\\")
            inner = "^" + inner[1:] if inner.startswith("!") else inner
            return f"[{inner}]", end + 1
    return re.escape(char), at + 1


def compile_patterns(patterns: Sequence[str]) -> Callable[[bytes], bool] | None:
    """Tells whether a path, without its leading slash, fits one of the patterns. None for no patterns. ValueError for a broken one."""
    if not patterns:
        return None
    try:
        regex = re.compile(
            "|".join(f"(?:{pattern_regex(p)})" for p in patterns).encode(errors="surrogateescape"), re.DOTALL
        )
    except re.error as error:
        raise ValueError(f"not a pattern ({error}): {', '.join(patterns)}") from error
    return lambda path: regex.fullmatch(b"/" + path) is not None
