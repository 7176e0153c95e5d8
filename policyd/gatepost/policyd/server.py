# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve both protocols of policyd on sockets that the supervisor opened: one event loop a worker process.

Each connection speaks the protocol that its first octet announces, policy delegation or socketmap. A peer
that breaks it loses its connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import Any, Optional, Union, cast

from gatepost.policyd import decisions
from gatepost.policyd.decisions import Found, Transaction
from gatepost.policyd.wire import (
    PolicyParser,
    ProtocolError,
    SocketmapParser,
    netstring,
    parser_for,
    policy_reply,
)
from gatepost.service import flow, log
from gatepost.service.metrics import DECISIONS, ERRORS, MAP_LOOKUPS, POLICY_REQUESTS, SRS_REVERSALS, STAGE_DURATION
from gatepost.service.reference import new_reference
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot

MAX_CONNECTIONS = 5000
"""Of one worker; one more is closed at once."""
HALF_SENT_S = 30.0
"""How long a request may take from its first octet to its last."""
DRAIN_S = 5.0
BACKLOG = 1024
_TICK_S = 0.25
_GRACE_S = 0.05
_COMPLAIN_S = 1.0
_STATES = frozenset(("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN"))


class Worker:
    """What the connections of one process share. *half_sent*: since when which connection owes a rest."""

    def __init__(self, snapshot: Snapshot, series: Series) -> None:
        self.snapshot = snapshot
        self.series = series
        self.connections: set[Connection] = set()
        self.half_sent: dict[Connection, float] = {}
        self.draining = False
        self._complain_at = 0.0
        self._not_logged = 0

    def complain(self, kind: str, text: str) -> None:
        """Count a connection that was closed in the middle, and log it, at most one a second."""
        self.series.add(ERRORS, ("policyd", kind))
        now = time.monotonic()
        if now < self._complain_at:
            self._not_logged += 1
            return
        more = f" ({self._not_logged} more before)" if self._not_logged else ""
        log.warning(f"{text}, connection closed{more}")
        self._complain_at = now + _COMPLAIN_S
        self._not_logged = 0

    def fault(self, kind: str, text: str, error: Optional[BaseException]) -> None:
        """Count and log a fault of gatepost's own, or of its surroundings."""
        self.series.add(ERRORS, ("policyd", kind))
        if error is None:
            log.error(text)
        else:
            log.fault(text, error)

    def tick(self, now: float) -> None:
        """Show that this process is alive; cut off what has been half sent for too long."""
        self.series.beat(now)
        for connection in [item for item, since in self.half_sent.items() if now - since > HALF_SENT_S]:
            connection.break_off(f"request unfinished after {HALF_SENT_S:.0f} s")

    def drain(self) -> None:
        """Close every connection that waits for nothing; the others close after their answer."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def cut_off(self) -> None:
        """Close all that is left, complete or not."""
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client, of either protocol."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._parser: Union[PolicyParser, SocketmapParser, None] = None
        self._transaction = Transaction()
        self._failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._worker.connections) >= MAX_CONNECTIONS:
            self._worker.complain("connections", f"more than {MAX_CONNECTIONS} connections in one worker")
            self._transport.abort()
            return
        self._worker.connections.add(self)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._worker.connections.discard(self)
        self._worker.half_sent.pop(self, None)

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        worker = self._worker
        try:
            if self._parser is None:
                self._parser = parser_for(data)
            if isinstance(self._parser, PolicyParser):
                replies = self._answer_policy(self._parser.feed(data))
            else:
                replies = self._answer_socketmap(self._parser.feed(data))
        except ProtocolError as error:
            self.break_off(str(error))
            return
        if replies:
            self._transport.write(b"".join(replies))
        if self._failed:
            self._transport.close()
        elif not self._parser.unfinished:
            worker.half_sent.pop(self, None)
            if worker.draining:
                self.close_if_idle()
        elif replies or self not in worker.half_sent:
            worker.half_sent[self] = time.monotonic()

    def break_off(self, text: str) -> None:
        """Close without an answer."""
        peer = self._transport.get_extra_info("peername") or "a Unix socket"
        self._worker.complain("protocol", f"{text}, from {peer}")
        self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def close_if_idle(self) -> None:
        """Close unless a request is under way, half sent or not read yet."""
        transport = self._transport
        if self not in self._worker.half_sent and not transport.is_closing() and not _unread(transport):
            transport.close()

    def _answer_policy(self, requests: Sequence[dict[bytes, bytes]]) -> list[bytes]:
        """Return the answers.

        After a fault there is none: Postfix tries once more, then takes smtpd_policy_service_default_action.
        """
        now = int(time.time())
        replies: list[bytes] = []
        for request in requests:
            began = time.perf_counter()
            try:
                replies.append(policy_reply(self._decide(request, now)))
                self._worker.series.observe(STAGE_DURATION, ("policy",), time.perf_counter() - began)
            except Exception as error:  # noqa: BLE001  the outermost shell
                self._worker.fault("policy", "internal error in a policy request", error)
                self._failed = True
                break
        return replies

    def _decide(self, request: dict[bytes, bytes], now: int) -> bytes:
        worker, series = self._worker, self._worker.series
        answer, self._transaction = decisions.decide(worker.snapshot, request, self._transaction, now, new_reference)
        state = request.get(b"protocol_state", b"").decode("ascii", "replace")
        series.add(POLICY_REQUESTS, (state if state in _STATES else "other", answer.action.value))
        if answer.bounce is not None:
            series.add(SRS_REVERSALS, (answer.bounce.value,))
        if answer.verdict is not None:
            series.add(DECISIONS, flow.labels(answer.verdict))
        if answer.log:
            log.info(answer.log)
        return answer.text.encode("utf-8", "surrogateescape")

    def _answer_socketmap(self, requests: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        now = int(time.time())
        replies = []
        for map_name, key in requests:
            began = time.perf_counter()
            try:
                replies.append(netstring(self._look_up(map_name, key, now)))
                self._worker.series.observe(STAGE_DURATION, ("map",), time.perf_counter() - began)
            except Exception as error:  # noqa: BLE001  the outermost shell
                self._worker.fault("socketmap", "internal error in a map look-up", error)
                replies.append(netstring(b"TEMP gatepost: internal error"))
        return replies

    def _look_up(self, map_name: bytes, key: bytes, now: int) -> bytes:
        series = self._worker.series
        name = map_name.decode("ascii", "replace")
        entry = decisions.look_up(self._worker.snapshot, name, key.decode("utf-8", "surrogateescape"), now)
        known = entry.found is not Found.PERM
        series.add(MAP_LOOKUPS, (name if known else "other", entry.found.value.lower()))
        if entry.bounce is not None:
            series.add(SRS_REVERSALS, (entry.bounce.value,))
        return f"{entry.found.value} {entry.text}".encode("utf-8", "surrogateescape")


def _unread(transport: asyncio.BaseTransport) -> int:
    """Return how many octets have arrived that nobody has read."""
    answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return cast(int, struct.unpack("i", answer)[0])


def serve(sockets: Sequence[socket.socket], snapshot: Snapshot, series: Series) -> None:
    """Serve on listening *sockets* until SIGUSR1 has drained this process; runs in its main thread.

    SIGUSR1 may arrive blocked. After it the sockets are closed here (their files stay, other workers share
    them), requests that have arrived are answered, and what is not complete 5 s later is cut off.
    """
    worker = Worker(snapshot, series)
    loop = _new_event_loop()
    loop.set_exception_handler(lambda _, fault: worker.fault("loop", fault["message"], fault.get("exception")))
    try:
        loop.run_until_complete(_serve(loop, worker, sockets))
    finally:
        loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _serve(loop: asyncio.AbstractEventLoop, worker: Worker, sockets: Sequence[socket.socket]) -> None:
    drain = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, drain.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    servers = [await _listen(loop, worker, item) for item in sockets]
    worker.series.ready = True
    while not drain.is_set():
        worker.tick(time.monotonic())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drain.wait(), _TICK_S)
    for server in servers:
        server.close()
    worker.series.ready = False
    worker.draining = True
    end = time.monotonic() + DRAIN_S
    while worker.connections and time.monotonic() < end:
        await asyncio.sleep(_GRACE_S)  # what has arrived is read and answered meanwhile
        worker.tick(time.monotonic())
        worker.drain()
    worker.cut_off()
    await asyncio.sleep(0)


async def _listen(loop: asyncio.AbstractEventLoop, worker: Worker, sock: socket.socket) -> asyncio.AbstractServer:
    def connection() -> Connection:
        return Connection(worker)

    if sock.family != socket.AF_UNIX:
        return await loop.create_server(connection, sock=sock, backlog=BACKLOG)
    # Python 3.13 and uvloop 0.22 would unlink the file, which all workers share; older ones lack the option.
    keep: dict[str, Any] = {"cleanup_socket": False}
    try:
        return await loop.create_unix_server(connection, sock=sock, backlog=BACKLOG, **keep)
    except TypeError:
        return await loop.create_unix_server(connection, sock=sock, backlog=BACKLOG)
