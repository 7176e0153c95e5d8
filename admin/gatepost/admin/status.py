# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost status`: what runs, since when, with which configuration, and what it did in the last hour."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import click

from gatepost.admin import status_output
from gatepost.admin.configuration import become_owner, load_usable_part, problems_reported
from gatepost.admin.report_commands import Ended, faults_reported
from gatepost.admin.run import last_errors_file
from gatepost.admin.status_output import mode_in_words
from gatepost.service import last_errors, loaded, metrics
from gatepost.service.config import Config
from gatepost.service.database import Database
from gatepost.service.exporter import Process, State, beating, collect, problems
from gatepost.service.report_store import actions
from gatepost.service.snapshot import bypass_file
from gatepost.service.store import StoreError
from gatepost.service.supervisor import series_folder

HOUR_S = 3600.0
MINUTE_S = 60.0
STATEMENT_S = 10.0
"""How long the store may take."""
_SUPERVISOR = "supervisor."


@dataclass(frozen=True)
class Running:
    """One supervisor: what it runs ("milter+policyd"), as which process, and when that and its configuration began.

    since, loaded: Unix seconds; None where that can't be told. stopping: its workers finish what they have in hand.
    """

    name: str
    pid: int
    since: Optional[float]
    loaded: Optional[float]
    reload_ok: bool
    stopping: bool = False


@dataclass(frozen=True)
class Workers:
    """How many processes of one kind there are, should be, and were replaced unasked since the start."""

    name: str
    ready: int
    wanted: int
    restarts: int


@dataclass(frozen=True)
class Hour:
    """Recipients of the last hour by action; refused: those that the rule refuses, or would in mode enforce.

    why_not: why there are no numbers, else "".
    """

    by_action: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class Status:
    """All that `gatepost status` tells; now, bypass_since, errors' times: Unix seconds.

    changed: the configuration file is not as it was loaded. modes: those in force, by organization; where nothing runs,
    the file's. behind_s: how long ago all that was recorded was last in the store. errors: None where they can't be
    read.
    """

    config: Config
    now: float
    running: tuple[Running, ...]
    workers: tuple[Workers, ...]
    problems: tuple[str, ...]
    changed: bool
    modes: Mapping[str, str]
    bypass_since: Optional[float]
    hour: Hour
    backlog_bytes: int
    behind_s: float
    errors: Optional[tuple[tuple[float, str], ...]]

    @property
    def exit_status(self) -> int:
        if not self.running:
            return os.EX_UNAVAILABLE
        return int(bool(self.problems) or self.bypass_since is not None)


def run(path: Path, *, as_json: bool) -> int:
    """Print the status of the daemons of the configuration in *path*; return the exit status."""
    with problems_reported():
        config, wrong = load_usable_part(path)
    try:
        with faults_reported():
            become_owner(config)
            found = status(config, wrong)
    except Ended as ended:
        return ended.status
    click.echo(status_output.as_json(found) if as_json else status_output.as_text(found))
    return found.exit_status


def status(config: Config, wrong: tuple[str, ...] = ()) -> Status:
    """Return what can be seen of the daemons; *wrong*: what keeps the file from being loaded. Raises OSError."""
    now, folder, errors_file = time.time(), series_folder(config), last_errors_file(config)
    foreign = [path for path in (folder, errors_file) if not _daemons_own(config, path)]
    if folder.is_dir() and folder not in foreign:
        os.listdir(folder)  # else who may not read it would see nothing running
    state = collect(folder)
    running = tuple(supervisors(state))
    unused = [f"{problem}: the daemons go on with what they have loaded" for problem in wrong] if running else wrong
    seen = problems(state, time.monotonic()) if running else []
    given_away = [
        f"{path} is not the daemons', who cannot use it: chown -R --reference={config.state_directory} {path}"
        for path in foreign
    ]
    errors, unread = _errors(errors_file, now) if errors_file not in foreign else (None, [])
    return Status(
        config=config,
        now=now,
        running=running,
        workers=tuple(_workers(state)),
        problems=(*seen, *unused, *given_away, *unread),
        changed=any(changed(config, item.name) for item in running),
        modes=_modes(config, running, now),
        bypass_since=_mtime(bypass_file(config)),
        hour=_hour(config, now),
        backlog_bytes=int(sum(state.gauge(metrics.LEDGER_BACKLOG).values())),
        behind_s=now - max(state.gauge(metrics.LEDGER_LOADED).values(), default=now),
        errors=errors,
    )


def _daemons_own(config: Config, path: Path) -> bool:
    """Tell whether *path* is of the same user as the state folder, so not of root, who ran the daemons once."""
    return not path.exists() or path.lstat().st_uid == config.state_directory.stat().st_uid


def _errors(file: Path, now: float) -> tuple[Optional[tuple[tuple[float, str], ...]], list[str]]:
    """Return the last errors, at the end those of a clock that ran ahead; or None, and why."""
    try:
        found = last_errors.read(file)
    except PermissionError:
        raise
    except OSError as error:
        return None, [f"{file}: {error.strerror}; the daemons keep no errors there: delete it"]
    return tuple(sorted(found, key=lambda item: (item[0] <= now, *item), reverse=True)), []


def supervisors(state: State) -> list[Running]:
    """Return the supervisors that are alive."""
    loaded_at, reload_ok = state.gauge(metrics.CONFIG_LOADED), state.gauge(metrics.LAST_RELOAD_OK)
    wanted = state.gauge(metrics.WORKERS_WANTED)
    found = []
    for process in state.processes:
        if process.daemon.startswith(_SUPERVISOR) and _alive(process):
            name = process.daemon[len(_SUPERVISOR) :]
            since, at = _started(process.pid), loaded_at.get((name,))
            stopping = not any(wanted.get((daemon,), 1) for daemon in name.split("+"))
            found.append(Running(name, process.pid, since, at, reload_ok.get((name,), 1.0) == 1, stopping))
    return found


def _alive(process: Process) -> bool:
    """Tell whether a process is there, and began before its last heartbeat; else another one has its number."""
    began = _started(process.pid)
    return began is not None and 0 <= time.monotonic() - process.heartbeat <= time.time() - began


def _started(pid: int) -> Optional[float]:
    """Return when a process began, in Unix seconds, None where there is none.

    proc(5): field 22 of stat, in ticks since the boot.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        ticks = int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
    if state in "ZX":
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _workers(state: State) -> list[Workers]:
    wanted, ready = state.gauge(metrics.WORKERS_WANTED), beating(state, time.monotonic())
    restarts: dict[str, int] = {}
    for (metric, labels), values in state.totals.items():
        if metric is metrics.WORKER_RESTARTS and labels[0]:
            restarts[labels[0]] = restarts.get(labels[0], 0) + int(values[0])
    return [
        Workers(name, ready.get(name, 0), int(count), restarts.get(name, 0))
        for (name,), count in sorted(wanted.items())
        if name
    ]


def changed(config: Config, supervisor: str) -> bool:
    """Tell whether the configuration file is not as *supervisor* has loaded it.

    The files that it names are loaded by themselves.
    """
    there, in_force = loaded.digest_of(config.path), loaded.read(loaded.file_of(series_folder(config), supervisor))
    return bool(there) and in_force is not None and there != in_force.digest


def _modes(config: Config, running: Sequence[Running], now: float) -> dict[str, str]:
    """Return the mode of each organization in words, with the supervisor where they differ."""
    folder = series_folder(config)
    kept = {item.name: loaded.read(loaded.file_of(folder, item.name)) for item in running}
    in_force = {name: found.modes for name, found in kept.items() if found} or {"": loaded.modes_of(config.settings)}
    told: dict[str, dict[str, list[str]]] = {}
    for supervisor, modes in in_force.items():
        for organization, mode in modes.items():
            told.setdefault(organization, {}).setdefault(mode_in_words(mode, now), []).append(supervisor)
    return {name: ", ".join(_by_supervisor(by_text, len(in_force))) for name, by_text in told.items()}


def _by_supervisor(told: Mapping[str, Sequence[str]], count: int) -> Iterator[str]:
    for text, names in told.items():
        yield text if len(names) == count else f"{text} ({' and '.join(names)})"


def _mtime(path: Path) -> Optional[float]:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _hour(config: Config, now: float) -> Hour:
    if not config.ledger.days:
        return Hour(why_not="ledger.days = 0: nothing is recorded")
    try:
        database = Database(config.store_url, STATEMENT_S, makes_tables=False)
        by_action, refused = actions(database, now - HOUR_S, now + MINUTE_S, os.uname().nodename)
    except StoreError as error:
        return Hour(why_not=f"the store can't be read: {error}")
    return Hour(by_action, refused)
