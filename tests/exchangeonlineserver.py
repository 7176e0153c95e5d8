# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for Exchange Online as an SMTP next hop: it knows the client by its address and its TLS certificate."""

from __future__ import annotations

import re
import socketserver
import ssl
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Optional

from exchangeonline import DENIED, Tenant, answer

_PATH = re.compile(r"(?:FROM|TO):<(.*?)>( .*)?", re.IGNORECASE)


class Delivery(NamedTuple):
    """One recipient of one message. content: without the end's dot, "" where refused."""

    mail_from: str
    rcpt: str
    content: bytes = b""


@dataclass
class _Seen:
    taken: list[Delivery] = field(default_factory=list)
    refused: list[Delivery] = field(default_factory=list)


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self._names: list[str] = []
        self._mail_from, self._rcpts = "", [""]
        self._reply("220 tenant.example ESMTP")
        try:
            while self._command(self.rfile.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")):
                pass
        except OSError:
            pass  # the client has gone

    def _reply(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def _command(self, line: str) -> bool:
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb in ("", "QUIT"):
            return False
        if verb == "EHLO":
            tls = "250-STARTTLS\r\n" if self.server.tls and not self._names else ""
            self._reply(f"250-tenant.example\r\n{tls}250-8BITMIME\r\n250-SMTPUTF8\r\n250 DSN")
        elif verb == "STARTTLS" and self.server.tls:
            self._starttls(self.server.tls)
        elif verb == "MAIL":
            path = _PATH.fullmatch(argument)
            self._mail_from, self._rcpts = (path[1] if path else argument), []
            self._reply("250 2.1.0 Ok")
        elif verb == "RCPT":
            self._rcpt(argument)
        elif verb == "DATA":
            self._data()
        else:
            self._reply("250 2.0.0 Ok")
        return True

    def _starttls(self, context: ssl.SSLContext) -> None:
        self._reply("220 2.0.0 Ready")
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        certificate = self.connection.getpeercert() or {}
        subject = [value for names in certificate.get("subject", ()) for key, value in names if key == "commonName"]
        self._names = [*subject, *(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")]

    def _rcpt(self, argument: str) -> None:
        path = _PATH.fullmatch(argument)
        rcpt = path[1] if path else argument
        refusal = answer(self.server.tenant, self.client_address[0], self._names, self._mail_from, rcpt)
        if refusal:
            self.server.seen.refused.append(Delivery(self._mail_from, rcpt))
        else:
            self._rcpts.append(rcpt)
        self._reply(refusal or "250 2.1.5 Ok")

    def _data(self) -> None:
        if not self._rcpts:
            self._reply(DENIED)
            return
        self._reply("354 Go on")
        lines = list(iter(self.rfile.readline, b".\r\n"))
        self.server.seen.taken += [Delivery(self._mail_from, rcpt, b"".join(lines)) for rcpt in self._rcpts]
        self._reply("250 2.6.0 Queued mail for delivery")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100
    tenant: Tenant
    tls: Optional[ssl.SSLContext]
    seen: _Seen


class ExchangeOnline:
    """The next hop of a hub, a context manager. tls: offers STARTTLS, and asks for a certificate.

    taken, refused: what it has said to each RCPT, in order.
    """

    def __init__(self, tenant: Tenant, tls: Optional[ssl.SSLContext] = None) -> None:
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.tenant, self._server.tls, self._server.seen = tenant, tls, _Seen()
        self.taken, self.refused = self._server.seen.taken, self._server.seen.refused
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> ExchangeOnline:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
