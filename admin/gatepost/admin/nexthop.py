# SPDX-License-Identifier: GPL-3.0-or-later
"""An SMTP server on loopback that stands in for the Internet: it keeps what it is given, byte for byte.

Not aiosmtpd: that refuses the DSN parameters in which Postfix hands on ORCPT, upper-cases all parameters and
normalises addresses, where the tests compare them exactly.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Callable, Optional

_EXTENSIONS = "".join(
    f"250-{word}\r\n"
    for word in ["nexthop.example", "PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"]
)
_PATH = re.compile(r"(?:FROM|TO):\s*<(.*)>((?: +[^ <>]+)*) *", re.IGNORECASE)


@dataclass
class Received:
    """One message: addresses and parameters in the client's spelling, *content* after dot-unstuffing."""

    peer: tuple[str, int]
    helo: str
    mail_from: str
    mail_options: list[str]
    rcpt_to: list[str] = field(default_factory=list)
    rcpt_options: list[list[str]] = field(default_factory=list)
    """One list a recipient, such as ["NOTIFY=SUCCESS", "ORCPT=rfc822;john.work@contoso.com"]."""
    content: bytes = b""


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    # Replies to pipelined commands would wait for the client's delayed acknowledgement, 40 ms each.
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self._helo = ""
        self._mail: Optional[Received] = None
        try:
            self._reply("220 nexthop.example ESMTP")
            while self._command(self.rfile.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")):
                pass
        except OSError:
            pass  # the client, or stop(), closed the connection

    def _reply(self, text: str) -> None:
        self.wfile.write(text.encode("utf-8", "surrogateescape") + b"\r\n")

    def _command(self, line: str) -> bool:
        """Answer one command; return whether the session goes on. An empty *line* is the connection's end."""
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb in ("", "QUIT"):
            self._reply("221 2.0.0 Bye")
            return False
        if verb in ("EHLO", "HELO"):
            self._helo, self._mail = argument, None
            extensions = _EXTENSIONS if verb == "EHLO" else ""
            self._reply(f"{extensions}250 HELP")
        elif verb == "MAIL":
            self._reply(self._mail_from(argument))
        elif verb == "RCPT":
            self._reply(self._rcpt_to(argument))
        elif verb == "DATA":
            self._data()
        elif verb in ("RSET", "NOOP"):
            self._mail = self._mail if verb == "NOOP" else None
            self._reply("250 2.0.0 Ok")
        else:
            self._reply("502 5.5.1 Command not implemented")
        return True

    def _mail_from(self, argument: str) -> str:
        path = _PATH.fullmatch(argument)
        if path is None:
            return "501 5.5.4 Syntax: MAIL FROM:<address>"
        self._mail = Received(self.client_address, self._helo, path[1], path[2].split())
        return "250 2.1.0 Ok"

    def _rcpt_to(self, argument: str) -> str:
        path = _PATH.fullmatch(argument)
        if path is None or self._mail is None:
            return "501 5.5.4 Syntax: RCPT TO:<address>, after MAIL"
        if path[1] in self.server.refuse:
            return self.server.refuse[path[1]]
        self._mail.rcpt_to.append(path[1])
        self._mail.rcpt_options.append(path[2].split())
        return "250 2.1.5 Ok"

    def _data(self) -> None:
        mail, self._mail = self._mail, None
        if mail is None or not mail.rcpt_to:
            self._reply("554 5.5.1 No valid recipients")
            return
        self._reply("354 End data with <CR><LF>.<CR><LF>")
        lines: list[bytes] = []
        for line in self.rfile:
            if line == b".\r\n":
                mail.content = b"".join(lines)
                self.server.keep(mail)
                self._reply("250 2.0.0 Ok")
                return
            lines.append(line[1:] if line.startswith(b".") else line)
        # The connection ended inside the message: it was not taken.


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def __init__(self, port: int, refuse: dict[str, str], keep: Callable[[Received], None]) -> None:
        self.refuse = refuse
        self.keep = keep
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Session)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all sessions: Postfix caches connections, and would be served after the end."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class NextHop:
    """The next hop as a context manager. port: a free one if None.

    refuse: the reply to RCPT, 4xx or 5xx, by recipient, as in {"john@example.com": "550 5.1.1 No such user"};
    the attribute may be changed while running.
    """

    def __init__(self, port: Optional[int] = None, refuse: Optional[Mapping[str, str]] = None) -> None:
        self.refuse = dict(refuse or {})
        self.messages: list[Received] = []
        """Every message taken so far, in order."""
        self._arrived = threading.Condition()
        self._server = _Server(port or 0, self.refuse, self._keep)
        self.address: tuple[str, int] = ("127.0.0.1", self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> NextHop:
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
        self._server.hang_up()
        self._thread.join()

    def _keep(self, mail: Received) -> None:
        with self._arrived:
            self.messages.append(mail)
            self._arrived.notify_all()

    def wait(self, predicate: Callable[[Received], bool], timeout_s: float = 20) -> Received:
        """Return the first message for which *predicate* holds, waiting for it.

        Raises TimeoutError, with what came instead.
        """
        with self._arrived:
            found = self._arrived.wait_for(lambda: next(filter(predicate, self.messages), None), timeout_s)
            if found is None:
                envelopes = [f"<{mail.mail_from}> to {mail.rcpt_to}" for mail in self.messages]
                raise TimeoutError(f"no such message within {timeout_s} s, but: {envelopes}")
            return found
