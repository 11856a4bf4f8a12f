"""What people type who know other programs, and the verb that they are looking for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches

__all__ = ["hint", "words_with_hints"]

_EXPIRE = "safehold point expire RESOURCE@ID for single points, safehold point expire --keep-daily 7 by rules"
_POINTS = "safehold points"
_VERIFY = "safehold verify, or safehold key check"
_MEANT = {
    "": {
        "attach": "safehold volume attach NAME",
        "check": _VERIFY,
        "copy": "that is not there yet; a vault's directory may be copied with a tool for files while no backup runs",
        "create": "safehold backup SOURCE; a vault: safehold vault init PLACE; a volume: safehold volume create NAME",
        "delete": _EXPIRE,
        "dump": "safehold cat RESOURCE@WHEN:PATH",
        "expire": _EXPIRE,
        "extract": "safehold restore RESOURCE@WHEN[:PATH] --to DEST",
        "files": "safehold ls RESOURCE@WHEN",
        "forget": _EXPIRE,
        "history": _POINTS,
        "hold": "safehold point hold RESOURCE@WHEN",
        "info": "safehold vault info; of one point: safehold point show RESOURCE@WHEN",
        "init": "safehold vault init PLACE",
        "list": _POINTS,
        "mount": "there is no such verb yet; files: safehold ls, safehold find and safehold cat; "
        "a disk: safehold restore RESOURCE@WHEN --to volume:NAME, then safehold volume attach NAME --mount DIR",
        "prune": "safehold vault prune",
        "release": "safehold point release RESOURCE@WHEN",
        "remove": _EXPIRE,
        "repos": "safehold vault info",
        "rm": _EXPIRE,
        "run": "safehold service run",
        "serve": "safehold volume serve",
        "show": "safehold point show RESOURCE@WHEN; of the vault: safehold vault info",
        "snapshot": "safehold backup SOURCE; of a live volume: safehold volume snapshot NAME",
        "snapshots": _POINTS,
        "stats": "safehold vault info",
        "tag": "safehold point tag RESOURCE@WHEN K=V",
        "volumes": "safehold volume list",
    },
    "key": {
        "delete": "safehold key remove",
        "show": "safehold key list",
        "test": "safehold key check",
        "verify": "safehold key check",
    },
    "point": {
        "delete": _EXPIRE,
        "find": "safehold find RESOURCE@WHEN PATTERN",
        "forget": _EXPIRE,
        "info": "safehold point show RESOURCE@WHEN",
        "ls": "safehold points; the files in one: safehold ls RESOURCE@WHEN",
        "prune": f"{_EXPIRE}; then safehold vault prune gives the space back",
        "remove": _EXPIRE,
        "restore": "safehold restore RESOURCE@WHEN[:PATH] --to DEST",
        "rm": _EXPIRE,
        "verify": "safehold verify RESOURCE@WHEN",
    },
    "vault": {
        "check": "safehold verify; what the store promises: safehold vault check-store PLACE",
        "create": "safehold vault init PLACE",
        "delete": "no verb deletes a vault: delete its directory or bucket with the store's own tools",
        "list": "safehold points lists what is in a vault; safehold vault info says which one is meant",
        "show": "safehold vault info",
        "stats": "safehold vault info",
        "status": "safehold status, or safehold vault info",
        "verify": "safehold verify",
    },
    "volume": {"ls": "safehold volume list", "mount": "safehold volume attach NAME --mount DIR"}
    | dict.fromkeys(("remove", "rm"), "safehold volume delete NAME")
    | dict.fromkeys(("umount", "unmount"), "safehold volume detach NAME")
    | dict.fromkeys(("info", "status"), "safehold volume show NAME"),
}


def hint(group: str, word: str, verbs: Collection[str]) -> str:
    """What to say to somebody who asked for `word` in a group of `verbs`, `""` being the program itself."""
    meant = _MEANT.get(group, {}).get(word.lower())
    where = f"safehold {group}".rstrip()
    if meant is not None:
        return meant
    near = get_close_matches(word.lower(), verbs)
    if near:
        return "did you mean " + " or ".join(f"{where} {verb}" for verb in near) + "?"
    return f"see what there is: {where} --help"


def words_with_hints() -> Iterator[tuple[str, str]]:
    """Each group with each word that has a hint of its own in it."""
    for group, words in _MEANT.items():
        for word in words:
            yield group, word
