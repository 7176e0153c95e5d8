# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve the protocols of policyd on sockets that the supervisor opened: one event loop a worker process.

Each connection speaks the protocol that its first octet announces, policy delegation or socketmap, or tcp_table where
the socket is for that. A peer that breaks it loses its connection and nothing else. What must wait for the store or
for DNS, each bounded in time, holds up its own connection only.
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
from collections import deque
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from typing import Callable, Optional, Union, cast

from gatepost.policyd import decisions
from gatepost.policyd.accepting import Acceptor, Shares
from gatepost.policyd.decisions import Action, Entry, Found, Transaction
from gatepost.policyd.wire import (
    PolicyParser,
    ProtocolError,
    SocketmapParser,
    TcpTableParser,
    netstring,
    parser_for,
    policy_reply,
    tcp_table_reply,
)
from gatepost.policyd.worker import STORE_S, Fetched, LookUp, PolicyRequest, Request, Worker, octets_of, text_of
from gatepost.service import flow, log, replies
from gatepost.service.metrics import DECISIONS, LEDGER_RECORDS, POLICY_REQUESTS, SRS_REVERSALS, UPSTREAM_DECISIONS
from gatepost.service.reversal import Bounce
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot
from gatepost.service.store import StoreError
from gatepost.service.upstream import upstream_labels

MAX_CONNECTIONS = 5000
"""Of one worker; one more is closed at once."""
TURN_OCTETS = 2048
"""How much of what a client has sent is answered before others have their turn. Postfix sends one request at a time."""
DRAIN_S = 5.0
_TICK_S = 0.25
_GRACE_S = 0.05
_NOTHING_SEEN = Transaction()
_STATES = {
    state.encode(): state
    for state in ("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN")
}

Parser = Union[PolicyParser, SocketmapParser, TcpTableParser]


class Connection(asyncio.Protocol):
    """One client. *tcp_table*: the map that is asked by that protocol here, "" for the others."""

    def __init__(self, worker: Worker, tcp_table: str = "") -> None:
        self._worker = worker
        self._tcp_table = tcp_table
        self._parser: Optional[Parser] = TcpTableParser() if tcp_table else None
        self._transaction = _NOTHING_SEEN
        self._unparsed = b""
        self._waiting: deque[Request] = deque()
        self._task: Optional[asyncio.Task[None]] = None
        self._recording: Optional[Future[bool]] = None
        self._clogged = False
        self._paused = False
        self._due = False
        self._failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._worker.connections) >= MAX_CONNECTIONS:
            self._worker.complain("connections", f"more than {MAX_CONNECTIONS} connections in one worker")
            self._transport.abort()
            return
        self._worker.joined(self)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._worker.left(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._clogged = True
        self._regulate()

    def resume_writing(self) -> None:
        self._clogged = False
        self._regulate()
        self._wait_for_turn()

    def _regulate(self) -> None:
        """Take no more requests from a client that does not read its answers, or while one of its requests waits."""
        pause = self._clogged or self._task is not None or bool(self._unparsed)
        if pause is self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        if self._task is None and not self._due:
            self._go_on()

    def _wait_for_turn(self) -> None:
        """Go on with what is left, if any, once others have had their turn."""
        if self._unparsed and self._task is None and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._due = False
        if not (self._clogged or self._transport.is_closing()):
            self._go_on()

    def _parse(self) -> bool:
        """Take up to TURN_OCTETS of what has come; False: the client breaks the protocol."""
        octets, self._unparsed = self._unparsed[:TURN_OCTETS], self._unparsed[TURN_OCTETS:]
        try:
            if self._parser is None:
                self._parser = parser_for(octets)
            self._waiting.extend(self._requests(self._parser, octets))
        except ProtocolError as error:
            self.break_off(str(error))
            return False
        return True

    def _requests(self, parser: Parser, data: bytes) -> Sequence[Request]:
        if isinstance(parser, SocketmapParser):
            return [LookUp(name.decode("ascii", "replace"), text_of(key)) for name, key in parser.feed(data)]
        if isinstance(parser, TcpTableParser):
            return [LookUp(self._tcp_table, text_of(key), True) for key in parser.feed(data)]
        return [PolicyRequest(attributes) for attributes in parser.feed(data)]

    def _go_on(self) -> None:
        """Answer what waits, in its order, up to the first request that has to wait itself, or to the end of a turn."""
        worker = self._worker
        answers = []
        if self._unparsed and not self._waiting and not self._parse():
            return
        while self._waiting and not self._failed:
            request = self._waiting.popleft()
            try:
                fetched = worker.fetch(request, self._transaction)
            except Exception as error:  # noqa: BLE001  the outermost shell
                self._fault(error)
                break
            if isinstance(fetched, Fetched):
                answer = self._answered(request, fetched)
                if self._recording is None:
                    answers.append(answer)
                    continue
                later = self._recorded(answer)
            else:
                later = self._fetched(request, fetched)
            self._task = asyncio.ensure_future(self._answer_later(later))
            break
        if answers:
            self._transport.write(b"".join(answers))
        if self._failed:
            self._transport.close()
        elif self._task is None and not self._unparsed and not (self._parser and self._parser.unfinished):
            worker.half_sent.pop(self, None)
            if worker.draining:
                self.close_if_idle()
        elif answers or self not in worker.half_sent:
            worker.half_sent[self] = time.monotonic()
        self._regulate()
        self._wait_for_turn()

    async def _fetched(self, request: Request, awaited: Awaitable[Fetched]) -> bytes:
        return await self._recorded(self._answered(request, await awaited))

    async def _recorded(self, answer: bytes) -> bytes:
        """Return *answer* once what belongs to it is in the ledger, or another one where it must be and can't."""
        recording, self._recording = self._recording, None
        if recording is None or await self._in_time(recording):
            return answer
        required = self._worker.snapshot.config.ledger.required
        return policy_reply(octets_of(str(replies.LEDGER_AWAY))) if required else answer

    async def _in_time(self, recording: Future[bool]) -> bool:
        """Wait for the ledger's spool; False: what was to be recorded is lost, or its disk hangs."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(recording), STORE_S)
        except asyncio.TimeoutError:
            self._worker.complain("store", f"ledger: its spool has not answered for {STORE_S:.0f} s", closed=False)
            self._worker.series.add(LEDGER_RECORDS, ("lost",))
            return False

    async def _answer_later(self, later: Awaitable[bytes]) -> None:
        try:
            answer = await later
        except Exception as error:  # noqa: BLE001  the outermost shell
            self._fault(error)
            answer = b""
        self._task = None
        if not self._transport.is_closing():
            self._transport.write(answer)
            self._regulate()
            self._worker.half_sent.pop(self, None)
            self._go_on()

    def _fault(self, error: Exception) -> None:
        """Have the connection closed without an answer.

        Postfix then asks once more, and afterwards takes smtpd_policy_service_default_action, or defers the mail.
        """
        self._worker.fault("internal", "internal error in a request", error)
        self._failed = True

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

    def _answered(self, request: Request, fetched: Fetched) -> bytes:
        """Return the answer, none after a fault in a policy request."""
        worker = self._worker
        began = time.perf_counter()
        try:
            if isinstance(request, PolicyRequest):
                answer = policy_reply(self._decide(request.attributes, fetched))
                worker.policy_took(time.perf_counter() - began)
                return answer
            answer = _map_reply(request, worker.look_up(request, fetched))
            worker.map_took(time.perf_counter() - began)
            return answer
        except Exception as error:  # noqa: BLE001  the outermost shell
            if isinstance(request, LookUp):
                worker.fault("socketmap", "internal error in a map look-up", error)
                return _map_reply(request, Entry(Found.TEMP, "gatepost: internal error"))
            worker.fault("policy", "internal error in a policy request", error)
            self._failed = True
            return b""

    def _decide(self, request: dict[bytes, bytes], fetched: Fetched) -> bytes:
        worker, series = self._worker, self._worker.series
        now = int(time.time())
        if request.get(b"protocol_state") == b"RCPT":
            worker.presenting.report(request, now)
        stored = fetched.token or fetched.error
        aids = worker.aids._replace(stored=fetched.stored) if stored else worker.aids
        try:
            answer, self._transaction = decisions.decide(worker.snapshot, request, self._transaction, now, aids)
        except StoreError as error:
            worker.store_failed(error)
            return str(replies.STORE_AWAY).encode()
        series.add(POLICY_REQUESTS, (_STATES.get(request.get(b"protocol_state", b""), "other"), answer.action.label))
        if answer.bounce is not None:
            series.add(SRS_REVERSALS, answer.bounce.labels)
            if answer.bounce is Bounce.FORGED:
                worker.guesses.failed(text_of(request.get(b"client_address", b"")), now)
        if answer.judgement is not None:
            series.add(DECISIONS, flow.labels(answer.judgement.verdict))
            if answer.judgement.upstream:
                series.add(UPSTREAM_DECISIONS, upstream_labels(answer.judgement.upstream))
        if answer.log:
            log.info(answer.log)
        if answer.refused is not None:
            worker.record_refusal(answer.refused)
        if answer.action is Action.REDIRECT:
            worker.record_bounce(decisions.rcpt_at_data(request, self._transaction))
        if answer.noted:
            worker.note(request, answer.noted, now)
        self._recording = worker.record(answer.passed)
        return octets_of(answer.text)


def _map_reply(request: LookUp, entry: Entry) -> bytes:
    if not request.coded:
        return netstring(octets_of(f"{entry.found.word} {entry.text}"))
    code = {Found.OK: 200, Found.TEMP: 400}.get(entry.found, 500)
    return tcp_table_reply(code, octets_of(entry.text or "not found"))


def _unread(transport: asyncio.BaseTransport) -> int:
    """Return how many octets have arrived that nobody has read."""
    answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return cast(int, struct.unpack("i", answer)[0])


def serve(
    sockets: Sequence[tuple[str, socket.socket]], snapshot: Snapshot, series: Series, index: int, shares: Shares
) -> None:
    """Serve on listening *sockets* until SIGUSR1 has drained this process; runs in its main thread.

    Each socket comes with the map that it is for where it speaks tcp_table, else with "". SIGUSR1 may arrive
    blocked. After it the sockets are closed here (their files stay, other workers share them), requests that have
    arrived are answered, and what is not complete 5 s later is cut off.
    """
    shares.join(index)
    worker = Worker(snapshot, series, expire=index == 0, shares=shares)
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


async def _serve(loop: asyncio.AbstractEventLoop, worker: Worker, sockets: Sequence[tuple[str, socket.socket]]) -> None:
    drain = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, drain.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    acceptors = [
        Acceptor(listener, _connections(worker, tcp_table), worker.shares, worker.not_taken)
        for tcp_table, listener in sockets
    ]
    worker.series.ready = True
    while not drain.is_set():
        worker.tick(time.monotonic())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drain.wait(), _TICK_S)
    worker.shares.leave()
    for acceptor in acceptors:
        acceptor.close()
    worker.series.ready = False
    worker.draining = True
    end = time.monotonic() + DRAIN_S
    while worker.shares.count and time.monotonic() < end:
        await asyncio.sleep(_GRACE_S)  # what has arrived is read and answered meanwhile
        worker.tick(time.monotonic())
        worker.drain()
    worker.cut_off()
    await asyncio.sleep(0)


def _connections(worker: Worker, tcp_table: str) -> Callable[[], Connection]:
    return lambda: Connection(worker, tcp_table)
