# SPDX-License-Identifier: GPL-3.0-or-later
"""What the supervisor needs to know of policyd: its sockets and how a worker runs."""

from __future__ import annotations

import contextlib
import socket

from gatepost.policyd.accepting import Shares
from gatepost.policyd.server import serve
from gatepost.service.config import Config
from gatepost.service.fields import Listen
from gatepost.service.listeners import AddressTakenError, open_listener, remove
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot


class Policyd:
    """The policy daemon, as `gatepost.service.supervisor` runs it."""

    name = "policyd"
    silence_s = 2.0  # Postfix asks the maps in series: a worker that hangs holds up all mail

    def __init__(self, config: Config) -> None:
        policyd = config.policyd
        self._listen = [
            *(("", listen) for listen in policyd.listen),
            *(("forward", listen) for listen in policyd.tcp_table_forward),
            *(("reverse", listen) for listen in policyd.tcp_table_reverse),
        ]
        self._sockets: list[tuple[str, socket.socket]] = []
        self._shares = Shares()

    def workers(self, config: Config) -> int:
        return config.policyd.workers

    def open(self) -> None:
        """Open the listening sockets. Raises OSError; those already open are then closed."""
        with contextlib.suppress(ImportError):
            import uvloop  # noqa: F401  here once: the workers share its memory, and each is ready sooner
        try:
            for tcp_table, listen in self._listen:
                self._sockets.append((tcp_table, _listener(tcp_table, listen)))
        except OSError:
            self.close()
            raise

    def release(self) -> None:
        """Close the sockets here; their files stay."""
        for _, sock in self._sockets:
            sock.close()

    def close(self) -> None:
        """Close the sockets and remove their files."""
        for (_, listen), (_, sock) in zip(self._listen, self._sockets):
            sock.close()
            remove(listen)
        self._sockets.clear()

    def serve(self, snapshot: Snapshot, series: Series, index: int) -> None:
        """Run one worker until SIGUSR1 has drained it."""
        serve(self._sockets, snapshot, series, index, self._shares)


def _listener(tcp_table: str, listen: Listen) -> socket.socket:
    """Return the listening socket. Raises OSError, which names the key of the configuration."""
    key = f"policyd.tcp_table_{tcp_table}" if tcp_table else "policyd.listen"
    try:
        return open_listener(listen)
    except AddressTakenError as error:
        hint = "; is postsrsd still running?" if tcp_table else ""
        raise AddressTakenError(f"{key}: {error}{hint}") from error
    except OSError as error:
        raise OSError(f"{key}: {error}") from error
