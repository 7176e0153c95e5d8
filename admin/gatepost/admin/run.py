# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the daemons: `gatepost run`, `gatepost milter`, `gatepost policyd`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gatepost.service import exporter, last_errors, log
from gatepost.service.config import Config
from gatepost.service.fields import Listen
from gatepost.service.listeners import refusal
from gatepost.service.loader_daemon import LedgerDaemon
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot, bypass_file
from gatepost.service.supervisor import Daemon, Supervisor, first_snapshot, notify, series_folder
from gatepost.service.tables import ConfigError


class MetricsDaemon:
    """The process that Prometheus scrapes. The milter's and policyd's may share one address: either knows it all."""

    silence_s = 15.0

    def __init__(self, listen: Listen, name: str) -> None:
        self._listen = listen
        self.name = name

    def workers(self, config: Config) -> int:
        return 1

    def open(self) -> None:
        """Make sure that the address can be had; the worker opens it. Raises OSError."""
        try:
            exporter.probe((self._listen.host, self._listen.port))
        except OSError as error:
            raise refusal(f"metrics.listen: {self._listen.host_and_port}", error) from error

    def release(self) -> None:
        """Nothing is open but in the worker."""

    def close(self) -> None:
        """The worker's socket goes with it."""

    def serve(self, snapshot: Snapshot, series: Series, index: int) -> None:
        config = snapshot.config
        exporter.serve((self._listen.host, self._listen.port), series_folder(config), bypass_file(config), series)


def run(path: Path, names: Sequence[str]) -> int:
    """Run the daemons *names*, of "milter" and "policyd", with the configuration in *path*; return the exit status."""
    log.name_process(names[0] if len(names) == 1 else "run")
    os.umask(os.umask(0o777) | 0o022)  # who may write to the state directory can switch bypass on
    try:
        snapshot = first_snapshot(path)
    except ConfigError as error:
        for problem in error.problems:
            log.error(problem)
        return os.EX_CONFIG
    log.keep_errors(last_errors_file(snapshot.config))
    if os.geteuid() == 0:
        log.warning("running as root: its files will be root's; start it as the user gatepost")
    if not snapshot.config.organizations:
        log.warning(f"{path}: no organization is declared, so nothing is refused and nothing is rewritten")
    for listen in sockets(snapshot.config, names):
        if listen.path and not Path(listen.path).parent.is_dir():
            log.error(f"{listen}: the folder {Path(listen.path).parent} does not exist")
            return os.EX_CANTCREAT
    supervisor = Supervisor(path, snapshot, daemons(snapshot.config, names), "+".join(names))
    try:
        supervisor.run(notify)
    except OSError as error:
        log.error(str(error))
        return os.EX_OSERR
    return os.EX_OK


def last_errors_file(config: Config) -> Path:
    """Return the file with the last errors of the daemons that share a state folder."""
    return config.state_directory / last_errors.FILE


def sockets(config: Config, names: Sequence[str]) -> list[Listen]:
    """Return the addresses that the daemons *names* listen on for the MTA."""
    milter = [config.milter.listen] if "milter" in names else []
    return milter + (list(config.policyd.listen) if "policyd" in names else [])


def daemons(config: Config, names: Sequence[str]) -> list[Daemon]:
    """Return the daemons *names*, the ledger's loader and, if they are on, the metrics.

    pymilter is loaded for the milter only.
    """
    found: list[Daemon] = []
    if "milter" in names:
        from gatepost.milter.daemon import MilterDaemon

        found.append(MilterDaemon(config.milter.listen))
    if "policyd" in names:
        from gatepost.policyd.daemon import Policyd

        found.append(Policyd(config))
    # Two supervisors may share one state folder, and there each process has a name of its own.
    suffix = "" if len(names) > 1 else f".{names[0]}"
    found.append(LedgerDaemon(f"ledger{suffix}"))
    if config.metrics:
        found.append(MetricsDaemon(config.metrics, f"metrics{suffix}"))
    return found
