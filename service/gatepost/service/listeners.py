# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets: opened once by the supervisor, shared by its workers."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

from gatepost.service.fields import Listen

UMASK = 0o117
"""Sockets are 0660: their folder's group, Postfix's, may connect and nobody else."""


class AddressTakenError(OSError):
    """Another program listens there."""


def open_listener(listen: Listen) -> socket.socket:
    """Return a non-blocking listening socket.

    Raises OSError, AddressTakenError where another program listens on *listen*; the text begins with *listen*.
    """
    try:
        return _open(listen)
    except OSError as error:
        raise refusal(str(listen), error) from error


def refusal(address: str, error: OSError) -> OSError:
    """Return what to raise where *error* has kept a daemon from listening on *address*."""
    if error.errno == errno.EADDRINUSE:
        return AddressTakenError(f"{address}: another program listens there")
    return OSError(f"{address}: cannot listen: {error.strerror or error}")


def _open(listen: Listen) -> socket.socket:
    if listen.path:
        clear_stale(listen.path)
        listener = socket.socket(socket.AF_UNIX)
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
    try:
        _bind(listener, listen)
    except OSError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, listen: Listen) -> None:
    if listen.path:
        with narrow_umask():
            listener.bind(listen.path)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it on Linux
        listener.bind((listen.host, listen.port))
    listener.listen(1024)
    listener.setblocking(False)


def clear_stale(path: str) -> None:
    """Remove the Unix socket that a dead process left at *path*.

    Raises OSError where a live one listens there, or where *path* is something else.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EEXIST, "exists and is no socket", path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # a live one with a full backlog
            pass
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there", path)


@contextlib.contextmanager
def narrow_umask() -> Iterator[None]:
    """Give sockets made in this block the mode 0660."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def remove(listen: Listen) -> None:
    """Remove the socket file of *listen*, if it has one."""
    if listen.path:
        with contextlib.suppress(OSError):
            os.unlink(listen.path)
