"""The numbers of the Network Block Device protocol, by the names of its document (without NBD_).

Source: doc/proto.md of the reference implementation. All integers on the wire are big-endian.
"""

from __future__ import annotations

import struct

__all__ = [
    "ALLOCATION_CONTEXT",
    "CHUNK",
    "CHUNK_DATA_HEADER",
    "CHUNK_HOLE_BODY",
    "CMD_BLOCK_STATUS",
    "CMD_CACHE",
    "CMD_DISC",
    "CMD_FLAG_DF",
    "CMD_FLAG_FAST_ZERO",
    "CMD_FLAG_FUA",
    "CMD_FLAG_NO_HOLE",
    "CMD_FLAG_REQ_ONE",
    "CMD_FLUSH",
    "CMD_READ",
    "CMD_TRIM",
    "CMD_WRITE",
    "CMD_WRITE_ZEROES",
    "FLAG_CAN_MULTI_CONN",
    "FLAG_FIXED_NEWSTYLE",
    "FLAG_HAS_FLAGS",
    "FLAG_NO_ZEROES",
    "FLAG_READ_ONLY",
    "FLAG_SEND_CACHE",
    "FLAG_SEND_DF",
    "FLAG_SEND_FAST_ZERO",
    "FLAG_SEND_FLUSH",
    "FLAG_SEND_FUA",
    "FLAG_SEND_TRIM",
    "FLAG_SEND_WRITE_ZEROES",
    "GREETING",
    "INFO_BLOCK_SIZE",
    "INFO_EXPORT",
    "INIT_MAGIC",
    "LARGEST_PAYLOAD",
    "OPTION",
    "OPTION_MAGIC",
    "OPTION_REPLY",
    "OPTION_REPLY_MAGIC",
    "OPT_ABORT",
    "OPT_EXPORT_NAME",
    "OPT_GO",
    "OPT_INFO",
    "OPT_LIST",
    "OPT_LIST_META_CONTEXT",
    "OPT_SET_META_CONTEXT",
    "OPT_STARTTLS",
    "OPT_STRUCTURED_REPLY",
    "REPLY_FLAG_DONE",
    "REPLY_TYPE_BLOCK_STATUS",
    "REPLY_TYPE_ERROR",
    "REPLY_TYPE_ERROR_BIT",
    "REPLY_TYPE_NONE",
    "REPLY_TYPE_OFFSET_DATA",
    "REPLY_TYPE_OFFSET_HOLE",
    "REP_ACK",
    "REP_ERR_BIT",
    "REP_ERR_INVALID",
    "REP_ERR_POLICY",
    "REP_ERR_UNKNOWN",
    "REP_ERR_UNSUP",
    "REP_INFO",
    "REP_META_CONTEXT",
    "REP_SERVER",
    "REQUEST",
    "REQUEST_MAGIC",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "STATE_HOLE",
    "STATE_ZERO",
    "STRUCTURED_REPLY_MAGIC",
]

# -- layouts -----------------------------------------------------------------------------------------------------------

GREETING = struct.Struct(">QQH")
"""INIT_MAGIC, OPTION_MAGIC, handshake flags."""
OPTION = struct.Struct(">QII")
"""OPTION_MAGIC, option, length of the body."""
OPTION_REPLY = struct.Struct(">QIII")
"""OPTION_REPLY_MAGIC, option, kind of reply, length of the body."""
REQUEST = struct.Struct(">IHHQQI")
"""REQUEST_MAGIC, command flags, command, cookie, offset, length; a write's payload follows."""
SIMPLE_REPLY = struct.Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, error, cookie; a read's data follows."""
CHUNK = struct.Struct(">IHHQI")
"""STRUCTURED_REPLY_MAGIC, flags, type, cookie, length of the body."""
CHUNK_DATA_HEADER = struct.Struct(">IHHQIQ")
"""CHUNK and the offset that begins the body of REPLY_TYPE_OFFSET_DATA; the data follow."""
CHUNK_HOLE_BODY = struct.Struct(">QI")
"""Offset and length of a REPLY_TYPE_OFFSET_HOLE."""

INIT_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

LARGEST_PAYLOAD = 32 * 1024 * 1024
"""The longest read or write that every peer may count on, in bytes."""

# -- negotiation -------------------------------------------------------------------------------------------------------

FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1 << 0, 1 << 1

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERR_BIT = 1 << 31
REP_ERR_UNSUP = REP_ERR_BIT + 1
REP_ERR_POLICY = REP_ERR_BIT + 2
REP_ERR_INVALID = REP_ERR_BIT + 3
REP_ERR_UNKNOWN = REP_ERR_BIT + 6

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

ALLOCATION_CONTEXT = b"base:allocation"
"""The metadata context that tells holes and zeros from data."""

# -- transmission ------------------------------------------------------------------------------------------------------

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

REPLY_FLAG_DONE = 1
REPLY_TYPE_NONE = 0
REPLY_TYPE_OFFSET_DATA = 1
REPLY_TYPE_OFFSET_HOLE = 2
REPLY_TYPE_BLOCK_STATUS = 5
REPLY_TYPE_ERROR_BIT = 1 << 15
REPLY_TYPE_ERROR = REPLY_TYPE_ERROR_BIT + 1

STATE_HOLE, STATE_ZERO = 1, 2
