# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse Postfix's policy delegation, socketmap and tcp_table protocols: octets in, requests out, no I/O.

`parser_for()` picks the parser of the first two by the first octet that a client sends; then `feed()` takes octets as
they arrive and returns the requests that they complete. ProtocolError means that the peer is broken and its
connection of no use any more; any other exception is a bug here.
"""

from __future__ import annotations

import re
from typing import Union
from urllib.parse import unquote_to_bytes

MAX_POLICY_OCTETS = 65536
"""Length of a policy request. Postfix's own come to some 700 octets and two addresses."""
MAX_POLICY_LINES = 256
MAX_SOCKETMAP_OCTETS = 10000
"""Length of a socketmap request, map name and key together."""

MAX_TCP_TABLE_OCTETS = 4096
"""Length of a tcp_table request or answer, with its end (tcp_table(5))."""

_SIZE_DIGITS = len(str(MAX_SOCKETMAP_OCTETS))
_COMMA, _ZERO = b",0"


class ProtocolError(Exception):
    """The peer does not speak the protocol."""


class PolicyParser:
    """Requests of SMTPD_POLICY_README: lines `name=value`, an empty line at the end."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether the beginning of a request waits for its rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[dict[bytes, bytes]]:
        """Return the attributes of each request that *data* completes. Raises ProtocolError."""
        buffer = self._buffer
        unseen = max(len(buffer) - 1, 0)
        buffer += data
        requests = []
        start = 0
        end = buffer.find(b"\n\n", unseen)
        while end >= 0:
            requests.append(_attributes(bytes(buffer[start:end])))
            start = end + 2
            end = buffer.find(b"\n\n", start)
        del buffer[:start]
        if len(buffer) > MAX_POLICY_OCTETS + 1:  # a request of the greatest length and half of its end
            raise ProtocolError(f"policy request longer than {MAX_POLICY_OCTETS} octets")
        return requests


def _attributes(request: bytes) -> dict[bytes, bytes]:
    if len(request) > MAX_POLICY_OCTETS:
        raise ProtocolError(f"policy request longer than {MAX_POLICY_OCTETS} octets")
    if b"\0" in request:
        raise ProtocolError("NUL in a policy request")
    lines = request.split(b"\n")
    if len(lines) > MAX_POLICY_LINES:
        raise ProtocolError(f"policy request of more than {MAX_POLICY_LINES} lines")
    try:
        attributes = dict([line.split(b"=", 1) for line in lines])
    except ValueError:
        raise ProtocolError("line without = in a policy request") from None
    if len(attributes) != len(lines):
        raise ProtocolError("attribute given twice in a policy request")
    if attributes.get(b"request") != b"smtpd_access_policy":
        raise ProtocolError("policy request without request=smtpd_access_policy")
    return attributes


class SocketmapParser:
    """Requests of socketmap_table(5): netstrings that hold the map's name, a space and the key."""

    def __init__(self) -> None:
        self._begun = b""

    @property
    def unfinished(self) -> bool:
        """Whether the beginning of a request waits for its rest."""
        return bool(self._begun)

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Return map name and key of each request that *data* completes. Raises ProtocolError."""
        if self._begun:
            data = self._begun + data
        requests = []
        start = 0
        while start < len(data):
            colon = data.find(b":", start, start + _SIZE_DIGITS + 1)
            size = _size(data[start : colon if colon >= 0 else start + _SIZE_DIGITS + 1])
            end = colon + 1 + size
            if colon < 0 or len(data) <= end:
                break
            if data[end] != _COMMA:
                raise ProtocolError("netstring without its comma")
            map_name, space, key = data[colon + 1 : end].partition(b" ")
            if not space:
                raise ProtocolError("socketmap request without a key")
            requests.append((map_name, key))
            start = end + 1
        self._begun = data[start:]
        return requests


def _size(digits: bytes) -> int:
    """Return the number that *digits*, the beginning or the whole of a netstring's length, stand for."""
    if not digits.isdigit() or (len(digits) > 1 and digits[0] == _ZERO):
        raise ProtocolError("netstring without its length")
    size = int(digits)
    if size > MAX_SOCKETMAP_OCTETS:
        raise ProtocolError(f"socketmap request longer than {MAX_SOCKETMAP_OCTETS} octets")
    return size


class TcpTableParser:
    """Requests of tcp_table(5): a line each, `get` and the key, in which %XX stands for an octet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether the beginning of a request waits for its rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the key of each request that *data* completes. Raises ProtocolError."""
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        if max(map(len, (*lines, rest))) >= MAX_TCP_TABLE_OCTETS:
            raise ProtocolError(f"tcp_table request longer than {MAX_TCP_TABLE_OCTETS} octets")
        self._buffer[:] = rest
        if not all(line.startswith(b"get ") for line in lines):
            raise ProtocolError("tcp_table request other than get")
        return [unquote_to_bytes(line[4:]) for line in lines]


def parser_for(data: bytes) -> Union[PolicyParser, SocketmapParser]:
    """Return the parser for a connection that begins with *data*.

    A netstring begins with a digit, a policy request with a letter. Raises ProtocolError.
    """
    first = data[:1]
    if first.isdigit():
        return SocketmapParser()
    if first.isalpha():
        return PolicyParser()
    raise ProtocolError("neither a policy nor a socketmap request")


def netstring(text: bytes) -> bytes:
    """Return *text* as a netstring."""
    return b"%d:%b," % (len(text), text)


def policy_reply(action: bytes) -> bytes:
    """Return the answer to a policy request."""
    return b"action=%b\n\n" % action


def tcp_table_reply(code: int, text: bytes) -> bytes:
    """Return the answer to a tcp_table request: 200 with the value, 500 for none, 400 for a temporary failure."""
    return b"%d %b\n" % (code, _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], text))


_UNSAFE = re.compile(rb"[^!-$&-~]")
