# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP forwarder for tests, between a client and a server that are to lose sight of each other."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Optional


class Forwarder:
    """Forward connections to *port* of loopback from a port of its own; a context manager.

    swallow: octets; the connection whose client sends them next is cut once the server has answered, and the client
    never gets that answer.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.swallow: Optional[bytes] = None
        self.swallowed = 0
        self._away = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, and each that comes, until `restore`."""
        with self._lock:
            self._away = True
            for end in self._sockets:
                _end(end)
            self._sockets.clear()

    def restore(self) -> None:
        self._away = False

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                try:
                    if self._away:
                        raise OSError("cut off")
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
            cut = threading.Event()
            for source, target in ((client, server), (server, client)):
                arguments = (source, target, source is client, cut)
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, of_client: bool, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                if of_client and self.swallow and self.swallow in octets:
                    self.swallow = None
                    cut.set()
                elif not of_client and cut.is_set():
                    self.swallowed += 1
                    break
                target.sendall(octets)
        _end(source)
        _end(target)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
