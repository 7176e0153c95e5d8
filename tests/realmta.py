# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands beside a real Postfix: filters that it gives mail to by SMTP, a provider, another policy service."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Optional

TIMEOUT_S = 30


@dataclass(frozen=True)
class Seen:
    """One message that has passed: the envelope's commands as the client wrote them, XFORWARD's included."""

    xforward: tuple[str, ...]
    mail: str
    rcpt: tuple[str, ...]
    content: bytes


class Listener:
    """A server on a port of loopback, each of whose connections is a session in a thread. A context manager."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), self._session)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _session(self, client: socket.socket) -> None:
        raise NotImplementedError


class PolicyService(Listener):
    """A policy service that has no objection to anything, such as postgrey once it knows everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, str]] = []
        """The attributes of each request, in order."""

    def _session(self, client: socket.socket) -> None:
        request: dict[str, str] = {}
        for line in client.makefile("r", encoding="utf-8", errors="surrogateescape"):
            name, equals, value = line.rstrip("\n").partition("=")
            if equals:
                request[name] = value
            else:
                self.asked.append(request)
                request = {}
                client.sendall(b"action=DUNNO\n\n")


class SmtpFilter(Listener):
    """Passes each SMTP session on to *target*, as filters before and behind the queue do.

    header: lines that it puts on top of each message, such as b"X-Virus-Scanned: yes".
    """

    def __init__(self, target: tuple[str, int], header: bytes = b"") -> None:
        super().__init__()
        self.target = target
        self.header = header
        self.seen: list[Seen] = []
        """Every message that *target* took, in order."""

    def _session(self, client: socket.socket) -> None:
        with socket.create_connection(self.target, TIMEOUT_S) as target:
            _Relay(self, client, target).run()


class Provider(SmtpFilter):
    """A smarthost in front of *target* that wants TLS and then a user's name and password before it takes mail."""

    def __init__(self, target: tuple[str, int], context: ssl.SSLContext, user: str, password: str) -> None:
        super().__init__(target)
        self._context = context
        self._credentials = f"\0{user}\0{password}".encode()
        self.logins = 0

    def _session(self, client: socket.socket) -> None:
        with socket.create_connection(self.target, TIMEOUT_S) as target:
            relay = _Relay(self, client, target)
            relay.pass_reply()
            encrypted = authenticated = False
            for line in relay.commands():
                verb = line.split()[0].upper() if line.split() else b""
                if verb == b"EHLO":
                    offers = b"AUTH PLAIN" if encrypted else b"STARTTLS"
                    relay.answer(b"250-provider.example\r\n250-%s\r\n250-DSN\r\n250 8BITMIME" % offers)
                    relay.ask(line)
                elif verb == b"STARTTLS" and not encrypted:
                    relay.answer(b"220 2.0.0 Go ahead")
                    relay.encrypt(self._context)
                    encrypted = True
                elif verb == b"AUTH" and encrypted:
                    authenticated = base64.b64decode(line.split()[2]) == self._credentials
                    self.logins += authenticated
                    relay.answer(b"235 2.7.0 Welcome" if authenticated else b"535 5.7.8 Wrong password")
                elif verb == b"MAIL" and not authenticated:
                    relay.answer(b"530 5.7.0 Authentication required")
                else:
                    relay.command(line)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], session: Callable[[socket.socket], None]) -> None:
        self._session = session
        super().__init__(address, socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # either side has hung up
            self._session(request)


class _Relay:
    """One session: what the client says goes to the target, what that answers goes back."""

    def __init__(self, owner: SmtpFilter, client: socket.socket, target: socket.socket) -> None:
        self._owner = owner
        self._client = client
        self._from_client = client.makefile("rb")
        self._target = target
        self._from_target = target.makefile("rb")
        self._xforward: list[str] = []
        self._mail = ""
        self._rcpt: list[str] = []

    def run(self) -> None:
        self.pass_reply()
        for line in self.commands():
            self.command(line)

    def commands(self) -> Iterator[bytes]:
        """Yield the client's lines."""
        return iter(lambda: self._from_client.readline(), b"")

    def encrypt(self, context: ssl.SSLContext) -> None:
        self._client = context.wrap_socket(self._client, server_side=True)
        self._from_client = self._client.makefile("rb")

    def answer(self, reply: bytes) -> None:
        self._client.sendall(reply + b"\r\n")

    def pass_reply(self) -> bytes:
        """Give the target's next reply to the client, and return it."""
        reply = self._reply()
        self._client.sendall(reply)
        return reply

    def ask(self, line: bytes) -> bytes:
        """Return the target's reply to a command, which the client is not told."""
        self._target.sendall(line)
        return self._reply()

    def command(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        self._target.sendall(line)
        reply = self.pass_reply()
        if text.upper().startswith("XFORWARD"):
            self._xforward.append(text)
        elif text.upper().startswith("MAIL"):
            self._mail, self._rcpt = text, []
        elif text.upper().startswith("RCPT") and reply.startswith(b"2"):
            self._rcpt.append(text)
        elif reply.startswith(b"354"):
            self._data()

    def _data(self) -> None:
        lines = [self._owner.header + b"\r\n"] if self._owner.header else []
        for line in self.commands():
            lines.append(line)
            if line == b".\r\n":
                break
        self._target.sendall(b"".join(lines))
        if self.pass_reply().startswith(b"2"):
            content = b"".join(re.sub(rb"^\.", b"", line) for line in lines[:-1])
            self._owner.seen.append(Seen(tuple(self._xforward), self._mail, tuple(self._rcpt), content))

    def _reply(self) -> bytes:
        lines: list[bytes] = []
        while not lines or lines[-1][3:4] == b"-":
            line = self._from_target.readline()
            if not line:
                raise ConnectionError("the target has hung up")
            lines.append(line)
        return b"".join(lines)
