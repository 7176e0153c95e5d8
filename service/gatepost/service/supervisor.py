# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the workers of one or more daemons running: start, watch, reload, drain.

The supervisor has no thread and serves nothing itself. Sockets are opened once and inherited. SIGHUP starts workers
with the whole new configuration and drains the old ones once those are ready, or keeps the old configuration; SIGTERM
drains all, one daemon after the other. A worker that dies or falls silent is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Optional, Protocol

from gatepost.service import certificates, export_log, loaded, log, metrics, unchanged
from gatepost.service.config import Config, uncollected
from gatepost.service.loaded import Loaded
from gatepost.service.reversal import DAY_S
from gatepost.service.secret import ensure_secret, read_keys
from gatepost.service.series import Series, clear, fold, put_away
from gatepost.service.signals import wait_for_one
from gatepost.service.snapshot import Snapshot, build, load_snapshot
from gatepost.service.srs_config import forgotten
from gatepost.service.tables import ConfigError

START_S = 10.0
"""A worker that is not ready by then is taken for silent."""
RELOAD_S = 8.0
"""A reload whose workers are not all ready by then is taken back."""
DESCRIPTORS = 5200
"""How many open files a worker may need: libmilter and policyd hold one for each connection."""
DRAIN_S = 30.0
LOOK_S = 1.0
"""How often to look whether a file that the configuration names has changed."""
LOOK_SHARE = 50
"""And no oftener than this many times what a look takes."""
RESPAWN_S = 1.0
"""A worker that lived for less than this is replaced no sooner than this after its start."""
_TICK_S = 0.1
_CHANGE_TICK_S = 0.02
_WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1


Stamps = dict[Path, tuple[int, ...]]


class Daemon(Protocol):
    """One kind of worker. *silence_s*: how long its heartbeat may be missing."""

    name: str
    silence_s: float

    def workers(self, config: Config) -> int: ...

    def open(self) -> None:
        """Open the listening sockets. Raises OSError."""

    def release(self) -> None:
        """Close the listening sockets in a process that does not serve them."""

    def close(self) -> None:
        """Close the listening sockets and remove their files, in the supervisor; the second time nothing happens."""

    def serve(self, snapshot: Snapshot, series: Series, index: int) -> None:
        """Run worker *index*, counted from 0, until SIGUSR1, which arrives blocked, has drained it."""


@dataclass
class _Worker:
    daemon: Daemon
    index: int
    snapshot: Snapshot
    series: Series
    path: Path
    started: float
    replaced: bool = False
    drain_by: float = float("inf")
    killed: bool = False

    @property
    def draining(self) -> bool:
        return self.drain_by < float("inf")


@dataclass
class _Respawn:
    daemon: Daemon
    index: int
    due: float = field(default=0.0)


class Supervisor:
    """The life of *daemons* under one configuration file; *name* is theirs together, as in `milter+policyd`."""

    def __init__(self, config_path: Path, snapshot: Snapshot, daemons: Sequence[Daemon], name: str) -> None:
        self._path = config_path
        self._snapshot = snapshot
        self._daemons = daemons
        self._name = name
        self._workers: dict[int, _Worker] = {}
        self._respawns: list[_Respawn] = []
        self._numbers = itertools.count(1)
        self._names = name.replace("+", " and ")
        self._changing = f"{self._names} ready"
        self._stopping = False
        self._before: Optional[Snapshot] = None  # while a reload is under way: what was in force
        self._reload_by = 0.0
        self._again = False
        self._stamps = self._stamps_seen = _stamps(snapshot.config)
        self._look_at = 0.0
        self._digest = self._digest_before = loaded.digest_of(config_path)
        self._folder = series_folder(snapshot.config)
        self._series_path = self._folder / f"supervisor.{name}-0.series"
        self._loaded_file = loaded.file_of(self._folder, name)
        # Before workers share the memory: looking at thousands of organizations writes to their reference counts.
        self._modes = loaded.modes_of(snapshot.config.settings)
        self._certificate_ends: dict[str, int] = {}

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; *ready* takes states of sd_notify(3). Raises OSError without a socket."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED | {signal.SIGUSR1})
        _raise_descriptor_limit()
        opened: list[Daemon] = []
        try:
            for daemon in self._daemons:
                daemon.open()
                opened.append(daemon)
            self._prepare_series()
            for daemon in self._daemons:
                self._start(daemon)
            self._serve(ready)
            self._put_series_away()  # only here: where a socket is taken, the files may be another supervisor's
        finally:
            for daemon in opened:
                daemon.close()

    def _put_series_away(self) -> None:
        """Remove the files of this supervisor and its workers, but for the sums of what the workers counted."""
        for daemon in self._daemons:
            put_away(self._folder, daemon.name)
        self._series_path.unlink(missing_ok=True)
        self._loaded_file.unlink(missing_ok=True)

    def _prepare_series(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        clear(self._folder)
        self._put_series_away()
        self._series = Series.create(self._series_path)
        self._series.set(metrics.CONFIG_LOADED, (self._name,), time.time())
        self._series.set(metrics.LAST_RELOAD_OK, (self._name,), 1)
        for result in ("loaded", "kept"):
            self._series.add(metrics.RELOADS, (self._name, result), 0.0)
        for daemon in self._daemons:
            for metric, labels in metrics.shown_at_zero(daemon.name):
                self._series.add(metric, labels, 0.0)
        self._show_certificates()
        self._show_loaded()

    def _start(self, daemon: Daemon) -> None:
        for index in range(daemon.workers(self._snapshot.config)):
            self._fork(daemon, index)

    def _fork(self, daemon: Daemon, index: int) -> None:
        path = self._folder / f"{daemon.name}-{next(self._numbers)}.series"
        now = time.monotonic()
        try:
            self._folder.mkdir(exist_ok=True)  # a state directory that was taken away comes back
            series = Series.create(path)
        except OSError as error:  # mail matters more than its metrics
            log.error(f"{daemon.name} worker: its metrics are not shown: {error}")
            series = Series.unshown()
        worker = _Worker(daemon, index, self._snapshot, series, path, now)
        gc.freeze()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            log.error(f"{daemon.name} worker not started: {error}")
            path.unlink(missing_ok=True)
            self._respawns.append(_Respawn(daemon, index, now + RESPAWN_S))
            return
        if pid == 0:
            for other in self._daemons:
                if other is not daemon:
                    other.release()
            _work(worker, parent)
        self._workers[pid] = worker

    def _serve(self, ready: Callable[[str], None]) -> None:
        while self._workers or self._respawns:
            number = wait_for_one(_WATCHED, _CHANGE_TICK_S if self._changing or self._before else _TICK_S)
            if number in (signal.SIGTERM, signal.SIGINT) and not self._stopping:
                log.info(f"{self._names} draining")
                ready("STOPPING=1")
                self._stop()
            elif number == signal.SIGHUP and not self._stopping:
                ready(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                self._reload(ready)
            self._reap()
            if self._before and not self._stopping:
                self._settle(self._before, ready)
            self._watch()
            self._look(ready)
            self._show()
            if self._changing and not self._stopping and self._all_ready():
                log.info(self._changing)
                self._changing = ""
                ready("READY=1")

    def _all_ready(self) -> bool:
        """Tell whether all workers with the configuration in force accept connections, and no others do."""
        return not self._respawns and all(item.series.ready != item.replaced for item in self._workers.values())

    def _stop(self) -> None:
        self._stopping = True
        self._respawns.clear()

    def _drain_next(self) -> None:
        """Drain one daemon after the other, in order: a message in the milter still needs policyd's answers."""
        for daemon in self._daemons:
            workers = [(pid, worker) for pid, worker in self._workers.items() if worker.daemon is daemon]
            if workers:
                daemon.close()  # else connections that nobody accepts would wait until the end
                for pid, worker in workers:
                    self._drain(pid, worker)
                return

    def _drain(self, pid: int, worker: _Worker) -> None:
        if not worker.draining:
            worker.drain_by = time.monotonic() + DRAIN_S
            os.kill(pid, signal.SIGUSR1)

    def _reload(self, ready: Callable[[str], None]) -> None:
        """Start workers with the configuration as the file has it; `_settle` says what comes of it."""
        if self._before:
            self._again = True
            return
        stamps, digest = _stamps(self._snapshot.config), loaded.digest_of(self._path)
        try:
            with uncollected():
                snapshot = load_snapshot(self._path, self._snapshot)
                gc.freeze()
            self._stamps = {**_stamps(snapshot.config), **stamps}  # what changes meanwhile is seen at the next look
            refuse_fixed_changes(self._snapshot.config, snapshot.config)
        except ConfigError as error:
            for problem in error.problems:
                log.error(problem)
            self._keep(ready)
            return
        except Exception as error:  # noqa: BLE001  whatever is in the file, the service goes on
            log.fault("reading the configuration", error)
            self._keep(ready)
            return
        self._change(snapshot, digest)

    def _change(self, snapshot: Snapshot, digest: str) -> None:
        """Start workers with *snapshot*, of a file of this *digest*; `_settle` says what comes of it."""
        self._before, self._digest_before = self._snapshot, self._digest
        self._snapshot, self._digest = snapshot, digest
        self._modes = loaded.modes_of(snapshot.config.settings)
        self._reload_by = time.monotonic() + RELOAD_S
        self._respawns.clear()
        for worker in self._workers.values():
            worker.replaced = True
        for daemon in self._daemons:
            self._start(daemon)

    def _look(self, ready: Callable[[str], None]) -> None:
        """Take up an enforce_from that has come, or load the configuration anew where a file that it names has changed.

        That once for each change.
        """
        now = time.monotonic()
        if now < self._look_at or self._before or self._stopping:
            return
        self._look_at = now + LOOK_S
        if time.time() >= self._snapshot.until:
            log.info("enforce_from has come; taking it up")
            ready(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            # Not from the file, which may be wrong by now. Where the new workers don't get ready it is tried again.
            before = self._snapshot
            self._change(build(before.config, before.keys, time.time(), before.certificates), self._digest)
            return
        stamps = _stamps(self._snapshot.config)
        took = time.monotonic() - now
        self._look_at = now + max(LOOK_S, took * LOOK_SHARE)  # of a folder with thousands of certificates
        changed = [str(path) for path, stamp in stamps.items() if stamp != self._stamps.get(path)]
        settled, self._stamps_seen = stamps == self._stamps_seen, stamps  # else it may still be being written
        if changed and settled:
            self._stamps = stamps
            log.info(f"changed: {', '.join(changed)}; loading the configuration anew")
            ready(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._reload(ready)

    def _settle(self, before: Snapshot, ready: Callable[[str], None]) -> None:
        """End a reload once its workers are all ready, or take it back where they are not in time.

        Milter and policyd change together: with different configurations mail would go round between them.
        """
        if not self._respawns and all(item.series.ready for item in self._workers.values() if not item.replaced):
            self._before = None
            self._changing = "configuration reloaded"
            self._count_reload("loaded")
            self._show_certificates()
            self._show_loaded()
            export_log.tell(self._snapshot.config, before.config)
            forgot = (
                *forgotten(before.config.srs, self._snapshot.config.srs),
                *_forgotten_keys(before, self._snapshot),
            )
            for warning in (*self._snapshot.config.warnings, *self._snapshot.certificates.warnings, *forgot):
                log.warning(warning)
        elif time.monotonic() > self._reload_by:
            log.error("the workers with the new configuration did not get ready")
            self._take_back(before)
            self._keep(ready)
        else:
            return
        if self._again:
            self._again = False
            self._reload(ready)

    def _take_back(self, before: Snapshot) -> None:
        self._before = None
        self._snapshot, self._digest = before, self._digest_before
        self._respawns.clear()
        for pid, worker in self._workers.items():
            if worker.replaced:
                worker.replaced = False
            else:
                self._drain(pid, worker)
        for daemon in self._daemons:
            there = {item.index for item in self._workers.values() if item.daemon is daemon and not item.draining}
            missing = set(range(daemon.workers(before.config))) - there
            self._respawns += [_Respawn(daemon, index) for index in sorted(missing)]

    def _keep(self, ready: Callable[[str], None]) -> None:
        log.error("configuration not reloaded, the one loaded before stays in force")
        self._count_reload("kept")
        ready("READY=1")

    def _count_reload(self, result: str) -> None:
        self._series.add(metrics.RELOADS, (self._name, result))
        self._series.set(metrics.LAST_RELOAD_OK, (self._name,), int(result == "loaded"))
        if result == "loaded":
            self._series.set(metrics.CONFIG_LOADED, (self._name,), time.time())

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is None:
                continue  # a process that was left to us, as to PID 1 of a container
            try:
                fold(self._folder, worker.daemon.name, worker.path)
            except OSError as error:  # its file still counts
                log.error(f"the metrics of {worker.daemon.name} worker {pid} can't be put away: {error}")
            if not (worker.draining and status == 0):
                cause = "silent" if worker.killed else "died"
                log.error(f"{worker.daemon.name} worker {pid} {cause} ({_status_text(status)})")
                self._series.add(metrics.WORKER_RESTARTS, (worker.daemon.name, cause))
            if not (self._stopping or worker.replaced or worker.draining):
                self._respawns.append(_Respawn(worker.daemon, worker.index, worker.started + RESPAWN_S))

    def _watch(self) -> None:
        """Replace what is due, kill what is silent, drain what its successors have replaced."""
        now = time.monotonic()
        for respawn in [item for item in self._respawns if item.due <= now]:
            self._respawns.remove(respawn)
            self._fork(respawn.daemon, respawn.index)
        if self._stopping:
            self._drain_next()
        for pid, worker in self._workers.items():
            if worker.killed:
                continue
            seen = max(worker.series.heartbeat, worker.started)
            limit = worker.daemon.silence_s if worker.series.ready else START_S
            if now - seen > limit or now > worker.drain_by:
                worker.killed = True
                os.kill(pid, signal.SIGKILL)
            elif worker.replaced and not self._before:
                self._drain(pid, worker)

    def _show(self) -> None:
        """Put the number of workers, wanted and there, into the metrics."""
        self._series.beat(time.monotonic())
        for daemon in self._daemons:
            alive = sum(
                item.daemon is daemon and item.series.ready and not item.draining for item in self._workers.values()
            )
            wanted = 0 if self._stopping else daemon.workers(self._snapshot.config)
            self._series.set(metrics.WORKERS, (daemon.name,), alive)
            self._series.set(metrics.WORKERS_WANTED, (daemon.name,), wanted)
        keys = self._snapshot.keys
        since = keys.signing_since(int(time.time()) // DAY_S) * DAY_S
        self._series.set(metrics.SRS_KEYS, (self._name,), len(keys))
        self._series.set(metrics.SRS_KEY_SINCE, (self._name,), since or self._secret_since())

    def _secret_since(self) -> float:
        """Return when a key without a date was put into its file, NaN where that can't be known."""
        changed_ns, *_ = self._stamps.get(self._snapshot.config.srs.secret_file, (0,))
        return changed_ns / 1e9 if changed_ns else math.nan

    def _show_loaded(self) -> None:
        loaded.keep(self._loaded_file, Loaded(self._digest, self._modes))

    def _show_certificates(self) -> None:
        """Put the certificates' number and ends into the metrics."""
        known, before = self._snapshot.certificates, self._certificate_ends
        self._series.set(metrics.CERTIFICATES, (self._name,), len(known))
        self._certificate_ends = certificates.first_end_by_organization(known, self._snapshot.rules)
        for name in {*before, *self._certificate_ends}:
            end = self._certificate_ends.get(name, math.nan)
            self._series.set(metrics.CERTIFICATE_END, (self._name, name), end)


def series_folder(config: Config) -> Path:
    """Return the folder in which workers keep their metrics."""
    return config.state_directory / "metrics"


def first_snapshot(path: Path) -> Snapshot:
    """Load the configuration for a daemon's start; make the SRS secret where there is none. Raises ConfigError."""
    config = unchanged.load(path)
    if ensure_secret(config.srs.secret_file):
        log.info(f"made a new SRS secret in {config.srs.secret_file}; keep it: bounces of rewritten mail need it")
    clients = certificates.read(config.relay.certificate_folder)
    export_log.tell(config)
    for warning in (*config.warnings, *clients.warnings):
        log.warning(warning)
    return build(config, read_keys(config.srs.secret_file), time.time(), clients)


def _forgotten_keys(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Yield, in words, that no key is left of those *before*, as where another file has got into the secret's place."""
    if set(before.keys.digests(b"")).isdisjoint(after.keys.digests(b"")):
        yield (
            f"{after.config.srs.secret_file}: no key of before is in it, so no SRS address of before is brought back; "
            "put the old keys below the new one"
        )


def _stamps(config: Config) -> Stamps:
    """Return what tells a change of the files that *config* names: times in nanoseconds, inode, size."""
    folder = config.relay.certificate_folder
    found: Stamps = {folder: (certificates.stamp(folder),)}
    for path in (config.srs.secret_file, *config.srs.watched, *config.exchange_exports):
        try:
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
        except OSError:  # seen again once it is there
            found[path] = (0, 0, 0, 0)
    return found


def refuse_fixed_changes(old: Config, new: Config) -> None:
    """Raise ConfigError where *new* changes what only a restart can change."""
    changed = [
        key
        for key, before, after in (
            ("state_directory", old.state_directory, new.state_directory),
            ("milter.listen", old.milter.listen, new.milter.listen),
            ("policyd.listen", old.policyd.listen, new.policyd.listen),
            ("policyd.tcp_table_forward", old.policyd.tcp_table_forward, new.policyd.tcp_table_forward),
            ("policyd.tcp_table_reverse", old.policyd.tcp_table_reverse, new.policyd.tcp_table_reverse),
            ("metrics.listen", old.metrics, new.metrics),
            ("egress", old.egress, new.egress),  # it names a smtpd of Postfix, which does not change with it
        )
        if before != after
    ]
    if changed:
        raise ConfigError([f"{new.path.name}: {key}: a change needs a restart of gatepost" for key in changed])


def _work(worker: _Worker, parent: int) -> NoReturn:
    """The whole life of a worker process."""
    status = 1
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))  # outlive the supervisor no longer than a drain
        if os.getppid() != parent:
            os._exit(1)
        log.name_process(worker.daemon.name)
        worker.series.beat(time.monotonic())
        worker.daemon.serve(worker.snapshot, worker.series, worker.index)
        status = 0
    except Exception as error:  # noqa: BLE001  the outermost shell
        log.fault(f"{worker.daemon.name} worker stopped", error)
    finally:
        os._exit(status)


def _status_text(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        limit = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def notify(state: str) -> None:
    """Tell systemd *state* (sd_notify(3)); nothing happens outside systemd."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path  # in a container it may be an abstract one
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address)
