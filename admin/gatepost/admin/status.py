# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost status`: what runs, since when, with which configuration, and what it did in the last hour."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import click

from gatepost.admin import status_output
from gatepost.admin.configuration import become_owner, load_usable_part, problems_reported
from gatepost.admin.report_commands import Ended, faults_reported
from gatepost.service import last_errors, metrics
from gatepost.service.config import Config
from gatepost.service.exporter import State, collect, problems
from gatepost.service.report_store import actions
from gatepost.service.snapshot import bypass_file
from gatepost.service.store import StoreError
from gatepost.service.supervisor import series_folder

HOUR_S = 3600.0
_SUPERVISOR = "supervisor."


@dataclass(frozen=True)
class Running:
    """One supervisor: what it runs ("milter+policyd"), as which process, and when that and its configuration began.

    since, loaded: Unix seconds; None where that can't be told.
    """

    name: str
    pid: int
    since: Optional[float]
    loaded: Optional[float]
    reload_ok: bool


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
    """All that `gatepost status` tells; now, bypass_since, errors' times: Unix seconds."""

    config: Config
    now: float
    running: tuple[Running, ...]
    workers: tuple[Workers, ...]
    problems: tuple[str, ...]
    changed: tuple[Path, ...]
    bypass_since: Optional[float]
    hour: Hour
    backlog_bytes: int
    errors: tuple[tuple[float, str], ...]

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
    folder = series_folder(config)
    if folder.is_dir():
        os.listdir(folder)  # else who may not read it would see nothing running
    state = collect(folder)
    running = tuple(supervisors(state))
    loaded = min((item.loaded for item in running if item.loaded), default=None)
    unused = [f"{problem}: the daemons go on with what they have loaded" for problem in wrong] if running else wrong
    seen = problems(state, time.monotonic()) if running else []
    return Status(
        config=config,
        now=time.time(),
        running=running,
        workers=tuple(_workers(state)),
        problems=(*seen, *unused),
        changed=tuple(changed_since(config, loaded)),
        bypass_since=_mtime(bypass_file(config)),
        hour=_hour(config),
        backlog_bytes=int(sum(state.gauge(metrics.LEDGER_BACKLOG).values())),
        errors=tuple(last_errors.read(config.state_directory / last_errors.FILE)),
    )


def supervisors(state: State) -> list[Running]:
    """Return the supervisors that are alive."""
    loaded, reload_ok = state.gauge(metrics.CONFIG_LOADED), state.gauge(metrics.LAST_RELOAD_OK)
    found = []
    for process in state.processes:
        if process.daemon.startswith(_SUPERVISOR) and _alive(process.pid):
            name = process.daemon[len(_SUPERVISOR) :]
            since, at = _started(process.pid), loaded.get((name,))
            found.append(Running(name, process.pid, since, at, reload_ok.get((name,), 1.0) == 1))
    return found


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _started(pid: int) -> Optional[float]:
    """Return when a process began (proc(5): field 22 of stat, in ticks since the boot), in Unix seconds."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _workers(state: State) -> list[Workers]:
    ready, wanted = state.gauge(metrics.WORKERS), state.gauge(metrics.WORKERS_WANTED)
    restarts: dict[str, int] = {}
    for (metric, labels), values in state.totals.items():
        if metric is metrics.WORKER_RESTARTS and labels[0]:
            restarts[labels[0]] = restarts.get(labels[0], 0) + int(values[0])
    return [
        Workers(name, int(ready.get((name,), 0)), int(count), restarts.get(name, 0))
        for (name,), count in sorted(wanted.items())
        if name
    ]


def changed_since(config: Config, loaded: Optional[float]) -> list[Path]:
    """Return the configuration file, where it is newer than *loaded*; files that it names are loaded by themselves."""
    at = _mtime(config.path)
    return [config.path] if loaded is not None and at is not None and at > loaded else []


def _mtime(path: Path) -> Optional[float]:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _hour(config: Config) -> Hour:
    if not config.ledger.days:
        return Hour(why_not="ledger.days = 0: nothing is recorded")
    from gatepost.admin.report_run import open_database

    try:
        by_action, refused = actions(open_database(config), time.time() - HOUR_S, os.uname().nodename)
    except StoreError as error:
        return Hour(why_not=f"the store can't be read: {error}")
    return Hour(by_action, refused)
