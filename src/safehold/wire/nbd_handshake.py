"""The server's part of the fixed newstyle negotiation, as bytes in and bytes out."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from safehold.ports.export import Export, ExportDirectory
from safehold.wire import nbd_protocol as nbd

__all__ = ["Agreed", "Handshake", "HangUp"]

_CONTEXT = 1
"""The id under which `base:allocation` appears in block status replies; the server's to pick."""
_CHANGES = nbd.FLAG_SEND_FUA | nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES | nbd.FLAG_SEND_FAST_ZERO
_ALWAYS = nbd.FLAG_HAS_FLAGS | nbd.FLAG_SEND_FLUSH | nbd.FLAG_CAN_MULTI_CONN | nbd.FLAG_SEND_CACHE


class HangUp(Exception):
    """The client is to be cut off: it left, broke the protocol, or asked for what only silence may answer."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a client negotiated: an export, which is to be released under `name`; whether reads are answered in chunks;
    and the id of the `base:allocation` context, None where the client may not ask for block status.
    """

    name: str
    export: Export
    structured: bool
    context: int | None


class Handshake:
    """One client's negotiation. Single thread. The caller moves the bytes:

    send `greeting`; read 4 bytes for `flags`; then, until `agreed` is set, read a header of OPTION.size for `header`, the
    body of the length that it returns for `option`, and send what that returns.
    """

    greeting = nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
    longest = 64 * 1024
    """No honest option is longer, in bytes."""

    def __init__(self, directory: ExportDirectory, refusal: str = "") -> None:
        """`refusal` is what a client that asks for an export is told instead of getting one, if it is not empty."""
        self.agreed: Agreed | None = None
        self._refusal = refusal
        self._directory = directory
        self._fixed = self._padding = True
        self._structured = False
        self._selected: str | None = None
        self._option = 0

    def flags(self, data: bytes) -> None:
        """The client's 32 bits of flags. HangUp where it sets one that the server did not offer."""
        flags = int.from_bytes(data, "big")
        if flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES):
            raise HangUp("a client with unknown handshake flags")
        self._fixed, self._padding = bool(flags & nbd.FLAG_FIXED_NEWSTYLE), not flags & nbd.FLAG_NO_ZEROES

    def header(self, data: bytes) -> int:
        """The length in bytes of the body that follows. HangUp for rubbish."""
        magic, self._option, length = nbd.OPTION.unpack(data)
        if magic != nbd.OPTION_MAGIC or length > self.longest:
            raise HangUp("no option of the protocol")
        if not self._fixed and self._option != nbd.OPT_EXPORT_NAME:
            raise HangUp("an option from a client that takes no replies to options")
        return int(length)

    def option(self, body: bytes) -> bytes:
        """Answer to the option whose header came last. HangUp where the answer is to close, after sending its `args[1]`
        if there is one.
        """
        match self._option:
            case nbd.OPT_EXPORT_NAME:
                return self._export_name(body)
            case nbd.OPT_ABORT:
                raise HangUp("the client gave up", self._reply(nbd.REP_ACK))
            case nbd.OPT_STARTTLS:
                return self._refuse(
                    nbd.REP_ERR_POLICY, "this server has no TLS; its socket is guarded by its file mode"
                )
            case nbd.OPT_LIST | nbd.OPT_STRUCTURED_REPLY if body:
                return self._refuse(nbd.REP_ERR_INVALID, "this option takes no data")
            case nbd.OPT_LIST:
                names = [name.encode() for name in self._directory.names()]
                listed = (self._reply(nbd.REP_SERVER, struct.pack(">I", len(name)) + name) for name in names)
                return b"".join(listed) + self._reply(nbd.REP_ACK)
            case nbd.OPT_STRUCTURED_REPLY:
                self._structured = True
                return self._reply(nbd.REP_ACK)
            case nbd.OPT_INFO | nbd.OPT_GO:
                return self._go(body)
            case nbd.OPT_LIST_META_CONTEXT | nbd.OPT_SET_META_CONTEXT:
                return self._contexts(body)
        return self._refuse(nbd.REP_ERR_UNSUP, "unknown option")

    # -- replies -----------------------------------------------------------------------------------------------------

    def _reply(self, kind: int, body: bytes = b"") -> bytes:
        return nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, self._option, kind, len(body)) + body

    def _refuse(self, kind: int, why: str) -> bytes:
        return self._reply(kind, why.encode())

    # -- choosing an export ------------------------------------------------------------------------------------------

    def _agree(self, name: str, export: Export) -> None:
        context = _CONTEXT if self._structured and self._selected == name else None
        self.agreed = Agreed(name, export, self._structured, context)

    def _transmission_flags(self, export: Export) -> int:
        flags = _ALWAYS | (nbd.FLAG_READ_ONLY if export.read_only else _CHANGES)
        return flags | (nbd.FLAG_SEND_DF if self._structured else 0)

    def _export_name(self, body: bytes) -> bytes:
        name = _text(body)
        export = None if name is None or self._refusal else self._directory.open(name)
        if name is None or export is None:
            raise HangUp("a client that asked for an export that it does not get")
        self._agree(name, export)
        described = struct.pack(">QH", export.size, self._transmission_flags(export))
        return described + bytes(124 if self._padding else 0)

    def _go(self, body: bytes) -> bytes:
        name, rest = _name(body)
        if name is None or len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2], "big"):
            return self._refuse(nbd.REP_ERR_INVALID, "malformed request for an export")
        if self._refusal:
            return self._refuse(nbd.REP_ERR_POLICY, self._refusal)
        export = self._directory.open(name)
        if export is None:
            return self._refuse(nbd.REP_ERR_UNKNOWN, f"no export {name!r}")
        try:
            answer = self._reply(
                nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, export.size, self._transmission_flags(export))
            )
            sizes = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, export.block_size, nbd.LARGEST_PAYLOAD)
            answer += self._reply(nbd.REP_INFO, sizes) + self._reply(nbd.REP_ACK)
            if self._option == nbd.OPT_GO:
                self._agree(name, export)
        finally:
            if self.agreed is None:
                self._directory.release(name)
        return answer

    # -- metadata contexts -------------------------------------------------------------------------------------------

    def _contexts(self, body: bytes) -> bytes:
        setting = self._option == nbd.OPT_SET_META_CONTEXT
        if setting:
            self._selected = None
        if not self._structured:
            return self._refuse(nbd.REP_ERR_INVALID, "structured replies come first")
        name, rest = _name(body)
        queries = _queries(rest)
        if name is None or queries is None:
            return self._refuse(nbd.REP_ERR_INVALID, "malformed metadata query")
        if self._directory.open(name) is None:
            return self._refuse(nbd.REP_ERR_UNKNOWN, f"no export {name!r}")
        self._directory.release(name)
        wanted = nbd.ALLOCATION_CONTEXT in queries
        if not setting:
            wanted = wanted or not queries or b"base:" in queries
        elif wanted:
            self._selected = name
        found = struct.pack(">I", _CONTEXT if setting else 0) + nbd.ALLOCATION_CONTEXT
        return (self._reply(nbd.REP_META_CONTEXT, found) if wanted else b"") + self._reply(nbd.REP_ACK)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _name(body: bytes) -> tuple[str | None, bytes]:
    """A string with its length before it, and what follows; None where it is malformed."""
    length = int.from_bytes(body[:4], "big")
    if len(body) < 4 + length:
        return None, b""
    return _text(body[4 : 4 + length]), body[4 + length :]


def _queries(data: bytes) -> list[bytes] | None:
    """Metadata queries, each with its length before it, after their number; None where they are malformed."""
    if len(data) < 4:
        return None
    number, at, found = int.from_bytes(data[:4], "big"), 4, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found if at == len(data) and len(found) == number else None
