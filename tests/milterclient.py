# SPDX-License-Identifier: GPL-3.0-or-later
"""The MTA's side of the milter protocol (version 6), as Postfix speaks it.

Macros go out before each event, also one that the milter does not want, as far as they are defined and asked for
at that stage. Stages without an answer are not waited for. Every message ends with an abort. Octets that come
unasked are an error.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional, Union

NOBODY, NOHDRS, NOEOH, NR_HDR, NOUNKNOWN, NODATA = 0x10, 0x20, 0x40, 0x80, 0x100, 0x200
NR_CONN, NR_HELO, NR_MAIL, NR_DATA, NR_EOH = 0x1000, 0x2000, 0x4000, 0x10000, 0x40000
ALL_PROTOCOL = 0x1FFFFF
ADDRCPT, DELRCPT, CHGFROM, SETSYMLIST = 0x04, 0x08, 0x40, 0x100
ALL_ACTIONS = 0x1FF

TIMEOUT_S = 10.0
_NOT_WANTED = {b"C": 1, b"H": 2, b"M": 4, b"R": 8, b"B": NOBODY, b"L": NOHDRS, b"N": NOEOH, b"T": NODATA}
_NO_ANSWER = {
    b"C": NR_CONN,
    b"H": NR_HELO,
    b"M": NR_MAIL,
    b"R": 0x8000,
    b"B": 0x80000,
    b"L": NR_HDR,
    b"N": NR_EOH,
    b"T": NR_DATA,
}
STAGES = ("connect", "helo", "mail", "rcpt", "data", "eom", "eoh")
_STAGE_OF = {b"C": 0, b"H": 1, b"M": 2, b"R": 3, b"T": 4, b"E": 5, b"N": 6}
_WORDS = {b"c": "continue", b"a": "accept", b"t": "tempfail", b"r": "reject", b"d": "discard", b"s": "skip"}

Address = Union[str, tuple[str, int]]


class MilterError(Exception):
    """The milter did what the protocol does not allow, or closed the connection."""


@dataclass
class Outcome:
    """What became of a message: "continue", "tempfail" or the SMTP reply, stage by stage; None: not reached.

    data: of a message that goes no further. senders, added, deleted: what the milter has set as P1, and recipients that
    it has added and deleted, each in order.
    """

    rcpt: list[str] = field(default_factory=list)
    data: Optional[str] = None
    eoh: Optional[str] = None
    eom: Optional[str] = None
    senders: list[bytes] = field(default_factory=list)
    added: list[bytes] = field(default_factory=list)
    deleted: list[bytes] = field(default_factory=list)


class MilterClient:
    """One connection to the milter at *address*: a path, or host and port.

    macros: name to value; what is asked for and not in there is undefined. asked: what macros the milter wants at each
    stage. protocol, actions: what is offered, afterwards what was taken.
    """

    def __init__(
        self,
        address: Address,
        *,
        protocol: int = ALL_PROTOCOL,
        actions: int = ALL_ACTIONS,
        macros: Optional[Mapping[str, bytes]] = None,
    ) -> None:
        self.macros = {"j": b"mail.contoso.com", "{daemon_name}": b"mail.contoso.com", **(macros or {})}
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(address)
        self.packet(b"O", struct.pack(">III", 6, actions, protocol))
        kind, octets = self._receive()
        if kind != b"O":
            raise MilterError(f"{kind!r} in answer to option negotiation")
        self.version, self.actions, self.protocol = struct.unpack(">III", octets[:12])
        self.asked = _macro_lists(octets[12:])

    def __enter__(self) -> MilterClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def packet(self, command: bytes, octets: bytes = b"") -> None:
        """Send one packet as it is."""
        self.socket.sendall(struct.pack(">I", len(octets) + 1) + command + octets)

    def connect(self, ip: str = "192.0.2.1", port: int = 40001, name: bytes = b"unknown") -> str:
        family = b"6" if ":" in ip else b"4"
        return self._event(b"C", name + b"\0" + family + struct.pack(">H", port) + ip.encode() + b"\0")

    def connect_unknown(self) -> str:
        """Connect as a client whose address the MTA does not know."""
        return self._event(b"C", b"unknown\0U")

    def helo(self, name: bytes = b"client.example.net") -> str:
        return self._event(b"H", name + b"\0")

    def mail(self, path: bytes, *parameters: bytes) -> str:
        self.macros["{mail_addr}"] = self.macros.get("{mail_addr}") or path.strip(b"<>")
        return self._event(b"M", _strings(path, *parameters))

    def rcpt(self, path: bytes, *parameters: bytes) -> str:
        return self._event(b"R", _strings(path, *parameters))

    def data(self) -> str:
        self.macros.setdefault("i", b"4CgSNs5Q9s")  # an MTA has one from the first recipient on
        return self._event(b"T")

    def header(self, name: bytes, value: bytes) -> str:
        return self._event(b"L", _strings(name, value))

    def end_of_headers(self) -> str:
        return self._event(b"N")

    def end_of_message(self, outcome: Optional[Outcome] = None) -> str:
        """End the message; the changes that the milter asks for are added to *outcome*."""
        changed = outcome or Outcome()
        self._macros(b"E")
        self.packet(b"E")
        changes = {b"e": changed.senders, b"+": changed.added, b"-": changed.deleted}
        while True:
            kind, octets = self._receive()
            if kind not in changes:
                return _reply(kind, octets)
            changes[kind].append(octets.split(b"\0")[0])

    def abort(self) -> None:
        self.packet(b"A")

    def quit(self) -> None:
        """End the connection. Raises MilterError where the milter has sent what nobody waited for."""
        self.packet(b"Q")
        rest = self.rest()
        self.socket.close()
        if rest:
            raise MilterError(f"{rest!r} came without having been asked for")

    def rest(self) -> bytes:
        """Wait for the milter to close the connection; return what came until then."""
        return self._octets(None)

    def open(self, ip: str = "192.0.2.1", port: int = 40001) -> MilterClient:
        """Go as far as HELO."""
        self.connect(ip, port)
        self.helo()
        return self

    def send(
        self,
        reverse_path: bytes,
        rcpts: Sequence[Union[bytes, tuple[bytes, ...]]],
        headers: Sequence[tuple[bytes, bytes]] = ((b"From", b"app@vendor.example"), (b"Subject", b"Invoice")),
    ) -> Outcome:
        """Bring one message as far as the milter lets it go. *rcpts*: a path each, or one with its parameters."""
        outcome = Outcome()
        self.macros.pop("{mail_addr}", None)
        self.mail(reverse_path)
        self._transmit(rcpts, headers, outcome)
        self.abort()
        return outcome

    def _transmit(
        self,
        rcpts: Sequence[Union[bytes, tuple[bytes, ...]]],
        headers: Sequence[tuple[bytes, bytes]],
        outcome: Outcome,
    ) -> None:
        for rcpt in rcpts:
            outcome.rcpt.append(self.rcpt(*((rcpt,) if isinstance(rcpt, bytes) else rcpt)))
        if "continue" not in outcome.rcpt:
            return
        data = self.data()
        if data != "continue":
            outcome.data = data
            return
        for name, value in headers:
            self.header(name, value)
        outcome.eoh = self.end_of_headers()
        if outcome.eoh == "continue":
            outcome.eom = self.end_of_message(outcome)

    def _event(self, command: bytes, octets: bytes = b"") -> str:
        self._macros(command)
        if self.protocol & _NOT_WANTED[command]:
            return "continue"
        self.packet(command, octets)
        if self.protocol & _NO_ANSWER[command]:
            return "continue"
        return _reply(*self._receive())

    def _macros(self, command: bytes) -> None:
        if command not in _STAGE_OF:
            return
        names = self.asked.get(STAGES[_STAGE_OF[command]], "").split()
        pairs = [name.encode() + b"\0" + self.macros[name] + b"\0" for name in names if name in self.macros]
        if pairs:
            self.packet(b"D", command + b"".join(pairs))

    def _receive(self) -> tuple[bytes, bytes]:
        (length,) = struct.unpack(">I", self._octets(4))
        packet = self._octets(length)
        return packet[:1], packet[1:]

    def _octets(self, count: Optional[int]) -> bytes:
        """Read *count* octets, or (None) all to the end."""
        found = b""
        while count is None or len(found) < count:
            try:
                piece = self.socket.recv(65536 if count is None else count - len(found))
            except ConnectionResetError:
                piece = b""
            if not piece and count is not None:
                raise MilterError("the milter has closed the connection")
            if not piece:
                break
            found += piece
        return found


def _strings(*values: bytes) -> bytes:
    return b"".join(value + b"\0" for value in values)


def _reply(kind: bytes, octets: bytes) -> str:
    if kind == b"y":
        return octets.rstrip(b"\0").decode()
    if kind not in _WORDS:
        raise MilterError(f"{kind!r} is no answer to this command")
    return _WORDS[kind]


def _macro_lists(octets: bytes) -> dict[str, str]:
    lists = {}
    while octets:
        (stage,) = struct.unpack(">I", octets[:4])
        names, _, octets = octets[4:].partition(b"\0")
        lists[STAGES[stage]] = names.decode()
    return lists
