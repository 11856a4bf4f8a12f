"""The recovery kit: a page of text that opens the vault by itself, whatever happened to the key slots.

Each secret is the 16-byte vault id, a generation number and that generation's seed, in Crockford's base 32 (no I, L,
O, U), with a checksum in its last group, so that a typing mistake is found at once and not after a failed restore.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from blake3 import blake3

from safehold.model.errors import VaultKeyError
from safehold.vault.records import Generation

__all__ = ["Kit", "looks_like_kit", "parse_kit", "render_kit"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PREFIX = "SHK1"
_GROUP = 5
_CHECK = 5
_BODY = 16 + 2 + 32
_SECRET = re.compile(rf"{_PREFIX}(?:-[0-9A-Z]{{1,{_GROUP}}})+")


@dataclass(frozen=True)
class Kit:
    """What a kit says: the vault and its owner's seeds."""

    vault: bytes
    generations: tuple[Generation, ...]


def looks_like_kit(text: str) -> bool:
    """True where the text carries a kit secret, so that it can be typed wherever a passphrase is asked for."""
    return _PREFIX + "-" in text.upper()


def _encode(vault: bytes, generation: Generation) -> str:
    body = vault + struct.pack(">H", generation.number) + generation.seed
    raw = body + blake3(body).digest(length=_CHECK)
    bits = int.from_bytes(raw, "big")
    length = len(raw) * 8 // 5
    text = "".join(_ALPHABET[bits >> 5 * (length - 1 - i) & 31] for i in range(length))
    return "-".join([_PREFIX, *(text[i : i + _GROUP] for i in range(0, length, _GROUP))])


def _decode(secret: str) -> tuple[bytes, Generation]:
    text = re.sub(r"[-\s]", "", secret.upper())[len(_PREFIX) :].translate(str.maketrans("ILO", "110"))
    wrong = VaultKeyError(
        "the recovery kit's secret is mistyped", remedy="compare it with the printed page, group by group"
    )
    if len(text) != (_BODY + _CHECK) * 8 // 5 or any(c not in _ALPHABET for c in text):
        raise wrong
    bits = 0
    for char in text:
        bits = bits << 5 | _ALPHABET.index(char)
    raw = bits.to_bytes(_BODY + _CHECK, "big")
    body, check = raw[:_BODY], raw[_BODY:]
    if blake3(body).digest(length=_CHECK) != check:
        raise wrong
    return body[:16], Generation(struct.unpack(">H", body[16:18])[0], body[18:])


def render_kit(url: str, kit: Kit, created: str) -> str:
    """The page to print."""
    lines = [
        "SAFEHOLD RECOVERY KIT",
        "",
        f"vault     {url}",
        f"vault id  {kit.vault.hex()}",
        f"made      {created}",
        "",
        "Whoever holds this page can read everything in the vault. Keep it on paper, away from the machine,",
        "and where somebody else finds it when you are not there.",
        "",
    ]
    for generation in reversed(kit.generations):
        lines += [f"secret {generation.number}", "", *_wrapped(_encode(kit.vault, generation)), ""]
    lines += [
        "To restore on an empty machine: install safehold, then",
        "",
        f"    safehold points --vault {url} --kit FILE",
        f"    safehold restore RESOURCE@latest --to TARGET --vault {url} --kit FILE",
        "",
        "FILE is this page as text. The secrets can also be typed where the passphrase is asked for.",
        "",
    ]
    return "\n".join(lines)


def _wrapped(secret: str) -> list[str]:
    groups = secret.split("-")
    first, rest = groups[: 1 + 6], groups[1 + 6 :]
    return ["    " + "-".join(first) + "-", "    " + "-".join(rest[:6]) + "-", "    " + "-".join(rest[6:])]


def parse_kit(text: str) -> Kit:
    """The kit in `text`: the whole page or only its secrets. VaultKeyError where a secret is missing or mistyped."""
    joined = re.sub(r"-\s*\n\s*", "-", text)
    found = [_decode(m.group(0)) for m in _SECRET.finditer(joined.upper())]
    if not found:
        raise VaultKeyError("no recovery kit secret found", remedy=f"it starts with {_PREFIX}- and has 18 groups")
    vaults = {vault for vault, _ in found}
    if len(vaults) > 1:
        raise VaultKeyError("the recovery kit's secrets are of different vaults", remedy="give the page of one vault")
    return Kit(vaults.pop(), tuple(sorted({g.number: g for _, g in found}.values(), key=lambda g: g.number)))
