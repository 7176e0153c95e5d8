# SPDX-License-Identifier: GPL-3.0-or-later
"""Take connections from listening sockets that the workers share, so that each worker has about as many.

Postfix's processes keep theirs for long. The server of an event loop takes all that is there as soon as it wakes: eight
connections that came together were often one worker's, and the other idle.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable

WORKERS = 64
"""As many as [policyd] may have."""
BACKLOG = 1024
"""As many connections as can wait in a listening socket."""
ASIDE_S = 0.002
"""How long a worker leaves a connection to one that has fewer, which may be dead or busy."""
WITHOUT_DESCRIPTORS_S = 1.0
_AHEAD = 3
"""How many more than another one a worker may have; where each request has its own connection, that varies."""
_COUNT_BITS = 32
_COUNT = (1 << _COUNT_BITS) - 1


class Shares:
    """How many connections each worker has: in memory that all see, a word with process and number for each.

    Made before the workers are forked. A worker whose successor has begun to use the word writes no more to it.
    """

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, WORKERS * 8)).cast("Q")
        self._index = 0
        self._own = 0
        self._connections: set[object] = set()
        self._passed_over: set[int] = set()

    def join(self, index: int) -> None:
        """Take part as worker *index*, counted from 0."""
        self._index = index % WORKERS
        self._own = self._words[self._index] = os.getpid() << _COUNT_BITS

    def leave(self) -> None:
        """Take part no more."""
        if self._words[self._index] == self._own:
            self._words[self._index] = 0

    def taken(self, connection: object) -> None:
        """Count a connection as this worker's."""
        self._connections.add(connection)
        self._show()

    def left(self, connection: object) -> None:
        """Count it no more."""
        self._connections.discard(connection)
        self._show()

    def _show(self) -> None:
        if self._words[self._index] == self._own:
            self._own = self._words[self._index] = self._own & ~_COUNT | len(self._connections)

    @property
    def count(self) -> int:
        """The number of this worker's connections."""
        return len(self._connections)

    def others(self) -> set[int]:
        """Return the words of the other workers."""
        return {word for word in self._words.tolist() if word and word != self._own}

    def too_many(self) -> bool:
        """Tell whether another worker has so few that this one should leave it the next connection."""
        return any(self.count > (word & _COUNT) + _AHEAD for word in self.others() - self._passed_over)

    def pass_over(self, before: set[int]) -> None:
        """Leave nothing to workers whose words are still as *before*, until these change: dead ones, or busy."""
        self._passed_over = before & self.others()


class Acceptor:
    """Takes connections from *listener*, one at a time, and gives each to a new *protocol*, until it is closed.

    Who speaks *protocol* calls shares.left() when the connection is lost. complain: is told what goes wrong.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        shares: Shares,
        complain: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._shares = shares
        self._complain = complain
        self._loop = asyncio.get_running_loop()
        self._arriving: dict[asyncio.Task[object], asyncio.Protocol] = {}
        self._closed = False
        self._loop.add_reader(listener, self._come)

    def close(self) -> None:
        """Take no more, but what waits already where no other worker is left to take it; close the socket here."""
        self._closed = True
        self._loop.remove_reader(self._listener)
        if not self._shares.others():
            for _ in range(BACKLOG):
                if not self._take():
                    break
        self._listener.close()

    def _come(self) -> None:
        if self._shares.too_many():
            self._pause(ASIDE_S)
        else:
            self._take()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._resume, self._shares.others())

    def _resume(self, others_before: set[int]) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._come)
            if self._take():  # it was nobody's all the while
                self._shares.pass_over(others_before)

    def _take(self) -> bool:
        """Take a connection, if one is there."""
        try:
            taken, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._complain(f"no connection can be taken: {error.strerror or error}")
            self._pause(WITHOUT_DESCRIPTORS_S)
            return False
        taken.setblocking(False)
        connection = self._protocol()
        self._shares.taken(connection)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, taken))
        self._arriving[task] = connection
        task.add_done_callback(self._arrived)
        return True

    def _arrived(self, task: asyncio.Task[object]) -> None:
        connection = self._arriving.pop(task)
        if not task.cancelled() and task.exception() is not None:  # the client has gone meanwhile
            self._shares.left(connection)
            self._complain(f"a connection was lost at once: {task.exception()}")
