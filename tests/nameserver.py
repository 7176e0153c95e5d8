# SPDX-License-Identifier: GPL-3.0-or-later
"""An authoritative name server for tests, on loopback, over UDP and TCP."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Optional

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Records = Mapping[str, Mapping[str, Sequence[str]]]


class NameServer:
    """Serves *records*, {"fabrikam.com": {"TXT": ['"v=spf1 -all"'], "A": ["192.0.2.1"]}}, as zone files write them.

    Another name does not exist. What is asked below a name of *failing* gets SERVFAIL, below one of *silent* no
    answer. *questions*: all that was asked, as "fabrikam.com TXT". While *open* is clear, answers wait. port: any
    that is free, unless given.
    """

    def __init__(
        self,
        records: Records,
        failing: Sequence[str] = (),
        silent: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.records = records
        self.failing = failing
        self.silent = silent
        self.questions: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self._asked = threading.Condition()
        self._udp, self._tcp = _servers(host, port)
        self._udp.nameserver = self._tcp.nameserver = self
        self.address: tuple[str, int] = (host, self._udp.server_address[1])

    def __enter__(self) -> NameServer:
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.open.set()
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def wait_for_questions(self, count: int, timeout_s: float = 10) -> None:
        """Return when *count* questions have come in all. Raises TimeoutError."""
        with self._asked:
            if not self._asked.wait_for(lambda: len(self.questions) >= count, timeout_s):
                raise TimeoutError(f"{len(self.questions)} questions, not {count}: {self.questions}")

    def answer(self, octets: bytes, max_octets: Optional[int] = None) -> Optional[bytes]:
        """Return the answer to the query *octets*, shortened to what its sender takes where *max_octets* is given."""
        query = dns.message.from_wire(octets)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        with self._asked:
            self.questions.append(f"{name} {dns.rdatatype.to_text(question.rdtype)}")
            self._asked.notify_all()
        self.open.wait()
        if _below(name, self.silent):
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        if _below(name, self.failing):
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            self._fill(response, name, question.rdtype)
        try:
            return response.to_wire(max_size=max(512, query.payload) if max_octets else 65535)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _fill(self, response: dns.message.Message, name: str, rdata_type: dns.rdatatype.RdataType) -> None:
        if not any(_below(known, [name]) for known in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
            return
        mine = self.records.get(name, {})
        for kind in {dns.rdatatype.to_text(rdata_type), "CNAME"} & set(mine):
            response.answer.append(dns.rrset.from_text_list(name + ".", 60, "IN", kind, mine[kind]))
            if kind == "CNAME":
                self._fill(response, mine[kind][0].rstrip("."), rdata_type)


def _servers(host: str, port: int) -> tuple[_Udp, _Tcp]:
    while True:
        udp = _Udp((host, port), _Datagram)
        try:
            return udp, _Tcp(udp.server_address, _Stream)
        except OSError:  # the port is taken for TCP
            udp.server_close()
            if port:
                raise


def _below(name: str, tops: Sequence[str]) -> bool:
    return any(name == top or name.endswith("." + top) for top in tops)


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True
    nameserver: NameServer


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    nameserver: NameServer


class _Datagram(socketserver.BaseRequestHandler):
    request: tuple[bytes, socket.socket]
    server: Any

    def handle(self) -> None:
        octets, sender = self.request
        answer = self.server.nameserver.answer(octets, 512)
        if answer is not None:
            sender.sendto(answer, self.client_address)


class _Stream(socketserver.StreamRequestHandler):
    server: Any

    def handle(self) -> None:
        header = self.rfile.read(2)
        if len(header) == 2:
            answer = self.server.nameserver.answer(self.rfile.read(struct.unpack(">H", header)[0]))
            if answer is not None:
                self.wfile.write(struct.pack(">H", len(answer)) + answer)
