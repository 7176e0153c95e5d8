# SPDX-License-Identifier: GPL-3.0-or-later
"""pymilter and libmilter on one side, `Session` on the other; the socket, the worker and its drain.

libmilter runs a session's callbacks on changing threads, one at a time. Only the C module is used: pymilter's own
Milter.Base undoes every negotiated flag on Python 3 once a macro list is asked for.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, cast

import milter
from gatepost.milter import identity
from gatepost.milter.session import HEADERS, Session
from gatepost.relay import RuleSet
from gatepost.service import log, metrics
from gatepost.service.config import Config
from gatepost.service.fields import Listen
from gatepost.service.listeners import clear_stale, narrow_umask, remove
from gatepost.service.organizations import RefusalAction
from gatepost.service.replies import FAULT, Reply
from gatepost.service.series import Series
from gatepost.service.shared import Shared, open_shared
from gatepost.service.signals import wait_for_one
from gatepost.service.snapshot import Snapshot
from gatepost.service.srs_config import ReverseBy

MACROS = {
    milter.M_CONNECT: "j {daemon_name} {daemon_addr} {daemon_port} {client_resolve} {client_ptr}",
    milter.M_HELO: "",
    milter.M_ENVFROM: f"i {{auth_authen}} {{mail_addr}} {identity.MACROS}",
    milter.M_ENVRCPT: "i {rcpt_addr}",
    milter.M_DATA: "i",
    milter.M_EOH: "",
    milter.M_EOM: "i",
}
QUIET = milter.P_NR_CONN | milter.P_NR_HELO | milter.P_NR_MAIL | milter.P_NR_HDR
"""Stages that decide nothing: no answer, so the MTA need not wait for one."""
STAGES = ("connect", "helo", "mail", "rcpt", "data", "eoh", "eom", "abort")
UNUSED = milter.P_NOBODY | milter.P_NOUNKNOWN
TIMEOUT_S = 7210  # libmilter looks at it every 600 s only; Postfix' own time limits are the shorter ones
BEAT_S = 0.25
DRAIN_S = 20.0
LINGER_S = 2.0
"""How long a drain waits for a client that is between two messages."""
Context = Any  # pymilter's milterContext has no type of its own


@dataclass(frozen=True)
class _Worker:
    """What the callbacks of a worker process share.

    has_data: the MTA asks at DATA. took: counts how long each of STAGES took.
    """

    snapshot: Snapshot
    series: Series
    shared: Shared
    has_data: bool
    took: dict[str, Callable[[float], None]]


@dataclass(frozen=True)
class _Changes:
    """The changes that libmilter takes at the end of a message."""

    ctx: Context

    def sender(self, address: str) -> None:
        self.ctx.chgfrom(f"<{address}>")

    def add_recipient(self, address: str) -> None:
        self.ctx.addrcpt(f"<{address}>")

    def delete_recipient(self, path: str) -> None:
        self.ctx.delrcpt(path)

    def hold(self, reason: str) -> None:
        self.ctx.quarantine(reason)

    def add_header(self, name: str, value: str) -> None:
        self.ctx.addheader(name, value)

    def delete_header(self, name: str, index: int) -> None:
        self.ctx.chgheader(name, index, None)


class MilterDaemon:
    """The milter as the supervisor runs it: the socket in the parent, libmilter in each worker."""

    name = "milter"
    silence_s = 5.0

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._descriptor = -1
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._worker: Optional[_Worker] = None

    def workers(self, config: Config) -> int:
        return config.milter.workers

    def open(self) -> None:
        """Open libmilter's socket, before any thread or fork. Raises OSError."""
        if self._listen.path:
            clear_stale(self._listen.path)
        self._register()
        before = _open_sockets()
        with narrow_umask():
            try:
                milter.opensocket(False)
            except milter.error as error:
                raise OSError(f"{self._listen}: cannot listen: {error}") from error
        (self._descriptor,) = _open_sockets() - before  # libmilter does not tell
        os.set_blocking(self._descriptor, False)  # else a worker that lost the race for a connection hangs in accept
        if not self._listen.path:
            with socket.socket(fileno=os.dup(self._descriptor)) as listener:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        if self._descriptor >= 0:
            self.release()
            remove(self._listen)

    def _register(self) -> None:
        milter.set_connect_callback(self._quiet("connect", _connect))
        milter.set_helo_callback(self._quiet("helo", Session.helo))
        milter.set_envfrom_callback(self._quiet("mail", _mail))
        milter.set_envrcpt_callback(self._answered("rcpt", _rcpt))
        milter.set_header_callback(self._header)
        milter.set_eoh_callback(self._eoh)
        milter.set_eom_callback(self._eom)
        milter.set_abort_callback(self._quiet("abort", lambda session: session.abort()))
        milter.set_close_callback(self._close)
        milter.setconn(self._listen.libmilter)
        milter.settimeout(TIMEOUT_S)
        # pymilter decodes HELO and header names strictly, and its other policies answer a failure even where no answer
        # is awaited, which leaves the MTA waiting for the end of the message. No callback of ours raises anything.
        milter.set_exception_policy(milter.CONTINUE)
        milter.register("gatepost", data=self._answered("data", Session.data), negotiate=self._negotiate)

    def _negotiate(self, ctx: Context, options: list[int]) -> int:
        """Begin a connection: take only the stages and macros that are needed of those that the MTA offers."""
        worker = self._worker
        if worker is None:
            return int(milter.REJECT)
        config = worker.snapshot.config
        legacy = config.relay.requirements is RuleSet.LEGACY
        wanted = QUIET | UNUSED
        tags = RefusalAction.TAG in worker.snapshot.actions
        if not legacy and config.egress is None and worker.shared.spool is None and not tags:
            # Both or none: with headers but no end of them, libmilter drops the end of a message that has no header.
            wanted |= milter.P_NOHDRS | milter.P_NOEOH
        if not legacy:
            wanted |= milter.P_NR_EOH
        if not worker.has_data:
            wanted |= milter.P_NODATA
        options[0] &= _changes_wanted(worker.snapshot)
        options[1] &= wanted
        options[2] = options[3] = 0
        for stage, names in MACROS.items():
            ctx.setsymlist(stage, names)
        session = Session(worker.snapshot, worker.shared, worker.series, _macros(ctx), time.time)
        ctx.setpriv(session)
        with self._lock:
            self._sessions.add(session)
        return int(milter.CONTINUE)

    def _close(self, ctx: Context) -> int:
        session = ctx.getpriv()
        if session is not None:  # a peer that breaks the protocol can have its connection closed twice
            ctx.setpriv(None)  # the session holds the context, too
            with self._lock:
                self._sessions.discard(session)
        return int(milter.CONTINUE)

    def _quiet(self, stage: str, call: Callable[..., None]) -> Callable[..., int]:
        """Return the callback for a stage without an answer; a fault in it is answered at a later one."""

        def callback(ctx: Context, *arguments: Any) -> int:
            self._guarded(stage, ctx, call, arguments)
            return int(milter.NOREPLY)

        return callback

    def _answered(self, stage: str, call: Callable[..., Optional[Reply]]) -> Callable[..., int]:
        def callback(ctx: Context, *arguments: Any) -> int:
            return self._guarded(stage, ctx, call, arguments)

        return callback

    def _header(self, ctx: Context, name: str, value: bytes) -> int:
        """Let the session see one of the headers that it knows; of a dozen that is seldom more than three.

        Not timed as a stage: there are too many of them.
        """
        if name.lower() in HEADERS:
            session: Optional[Session] = None
            try:
                session = ctx.getpriv()
                if session is not None:
                    session.header(name, _text(value))
            except Exception as error:  # noqa: BLE001  the outermost shell
                self._fault("header", session, error)
        return milter.NOREPLY

    def _eoh(self, ctx: Context) -> int:
        """Only the rule set legacy decides here; for the others nobody waits for an answer."""
        worker = self._worker
        if worker is not None and worker.snapshot.config.relay.requirements is RuleSet.LEGACY:
            return self._guarded("eoh", ctx, Session.eoh, ())
        return milter.NOREPLY

    def _eom(self, ctx: Context) -> int:
        return self._guarded("eom", ctx, Session.eom, (_Changes(ctx),))

    def _guarded(
        self, stage: str, ctx: Context, call: Callable[..., Optional[Reply]], arguments: tuple[Any, ...]
    ) -> int:
        """Call one stage of the session and return libmilter's status.

        Raises nothing: a fault of ours is logged, counted, and puts the message off.
        """
        try:
            worker = cast(_Worker, self._worker)
            session: Optional[Session] = ctx.getpriv()
            began = time.perf_counter()
            reply: Optional[Reply] = FAULT
            try:
                if session is not None:  # else a peer that breaks the protocol
                    reply = call(session, *arguments)
            except Exception as error:  # noqa: BLE001  the outermost shell
                self._fault(stage, session, error)
            worker.took[stage](time.perf_counter() - began)
            if reply is None:
                return int(milter.CONTINUE)
            ctx.setreply(str(reply.code), reply.status, reply.text)
            return int(milter.TEMPFAIL if reply.code < 500 else milter.REJECT)
        except BaseException as error:  # noqa: BLE001  see exception_policy
            log.fault(f"milter: {stage}: internal error, the message is put off", error)
            return int(milter.TEMPFAIL)

    def _fault(self, stage: str, session: Optional[Session], error: Exception) -> None:
        if session is not None:
            session.fail()
        cast(_Worker, self._worker).series.add(metrics.ERRORS, ("milter", "internal"))
        log.fault(f"milter: {stage}: internal error, the message is put off", error)

    def serve(self, snapshot: Snapshot, series: Series, index: int) -> None:
        """Run libmilter in this process until SIGUSR1 has drained it."""
        shared = open_shared(snapshot.config, series, expire=index == 0)
        # Where nothing is decided there, on TCP all the same: else Nagle's algorithm on Postfix' side stalls 40 ms.
        has_data = bool(self._listen.port) or _decides_at_data(snapshot)
        took = {stage: series.observer(metrics.STAGE_DURATION, (stage,)) for stage in STAGES}
        self._worker = _Worker(snapshot, series, shared, has_data, took)
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[index % len(cpus)]})
        sys.excepthook = lambda kind, error, _: log.warning(f"skipped what pymilter can't decode: {error}")
        running = threading.Thread(target=milter.main, daemon=True)
        running.start()
        series.ready = True
        spool = self._worker.shared.spool
        while running.is_alive():
            series.beat(time.monotonic())
            if spool is not None:
                spool.tick()
            if wait_for_one({signal.SIGUSR1}, BEAT_S):
                self._drain(series)
                return
        raise RuntimeError("libmilter has stopped")

    def _drain(self, series: Series) -> None:
        """Accept no more, let the sessions under way finish. milter.stop() would unlink the shared socket."""
        nobody = socket.socket(socket.AF_UNIX)
        nobody.bind("")  # an abstract address that nobody knows
        nobody.listen(1)
        nobody.setblocking(False)
        os.dup2(nobody.fileno(), self._descriptor)
        series.ready = False
        began = time.monotonic()
        # A connection accepted just before has not been negotiated yet: two looks at an idle worker, a beat apart.
        idle_looks = 0
        while idle_looks < 2 and time.monotonic() < began + DRAIN_S:
            series.beat(time.monotonic())
            time.sleep(0.05)
            with self._lock:
                busy = any(session.busy for session in self._sessions)
                idle = not busy if time.monotonic() > began + LINGER_S else not self._sessions
            idle_looks = idle_looks + 1 if idle else 0


def _decides_at_data(snapshot: Snapshot) -> bool:
    """Tell whether the milter gives SRS recipients back, or decides something later that may never come."""
    return (
        snapshot.config.srs.reverse is ReverseBy.MILTER
        or snapshot.config.relay.requirements is RuleSet.LEGACY
        or not snapshot.actions.isdisjoint((RefusalAction.QUARANTINE, RefusalAction.TAG, RefusalAction.REWRITE))
    )


def _changes_wanted(snapshot: Snapshot) -> int:
    """Return the changes to ask the MTA for; one that it does not offer is a fault where it is needed."""
    wanted = int(milter.CHGFROM)
    if snapshot.config.srs.reverse is ReverseBy.MILTER:
        wanted |= milter.ADDRCPT | milter.DELRCPT
    if RefusalAction.QUARANTINE in snapshot.actions:
        wanted |= milter.QUARANTINE
    if RefusalAction.TAG in snapshot.actions:
        wanted |= milter.ADDHDRS | milter.CHGHDRS
    return wanted


def _connect(session: Session, name: str, family: int, address: Any) -> None:
    known = isinstance(address, tuple)
    session.connect(address[0] if known else None, address[1] if known else -1, name)


def _mail(session: Session, path: bytes, *parameters: bytes) -> None:
    session.mail(_text(path), [_text(parameter) for parameter in parameters])


def _rcpt(session: Session, path: bytes, *parameters: bytes) -> Optional[Reply]:
    return session.rcpt(_text(path), [_text(parameter) for parameter in parameters])


def _macros(ctx: Context) -> Callable[[str], str]:
    def macro(name: str) -> str:
        try:
            return ctx.getsymval(name) or ""
        except UnicodeDecodeError:  # pymilter decodes strictly; it is a name, but none that matches
            return "\ufffd"

    return macro


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _open_sockets() -> set[int]:
    return {descriptor for descriptor in map(int, os.listdir("/proc/self/fd")) if _is_socket(descriptor)}


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False
