# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the running daemons: all there, with the configuration and the release on disk, and without errors."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator

from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    as_root,
    command,
    error,
    info,
    ok,
    reload_daemons,
    unknown,
    warning,
)
from gatepost.admin.doctor.postfix import topology
from gatepost.admin.run import last_errors_file
from gatepost.admin.status import Running, changed, supervisors
from gatepost.service import last_errors, metrics, version
from gatepost.service.exporter import State, collect, problems
from gatepost.service.exports import counted
from gatepost.service.srs_config import ReverseBy
from gatepost.service.supervisor import series_folder

HOUR_S = 3600.0
_TIMEOUT_S = 3.0
_SHOWN = 3
_LOG = "journalctl -t gatepost-milter -t gatepost-policyd -p warning -n 50"


def _state(circumstances: Circumstances) -> State:
    """Raises PermissionError."""
    folder = series_folder(circumstances.config)
    if folder.is_dir() and not all(os.access(path, os.R_OK, effective_ids=True) for path in folder.iterdir()):
        raise PermissionError  # else who may not read it would see nothing running
    return collect(folder)


def running(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the daemons that the configuration is for run, with all their workers."""
    try:
        state = _state(circumstances)
    except PermissionError:
        yield unknown("what runs cannot be seen by this user", "", as_root(circumstances))
        return
    found = supervisors(state)
    there = {name for item in found for name in item.name.split("+")}
    away = "Postfix puts mail off (milter_default_action, smtpd_policy_service_default_action), and bounces wait."
    if not found:
        yield error("no daemon of gatepost runs", away, "systemctl start gatepost.target", _LOG)
        return
    config = circumstances.config
    needs_milter = config.relay.enforced_by == "milter"
    if circumstances.has_postfix:
        needs_milter = topology(circumstances).has_milter
    for name, wanted in (
        ("milter", needs_milter),
        ("policyd", config.relay.enforced_by == "policyd" or config.srs.reverse is not ReverseBy.MILTER),
    ):
        if wanted and name not in there:
            yield warning(
                f"no {name} runs, and the configuration is for one",
                f"Where an MTA asks it: {away}",
                f"systemctl start gatepost-{name}",
                _LOG,
            )
    wrong = problems(state, time.monotonic())
    for line in wrong:
        if line.startswith("supervisor."):
            why = "Its workers go on, and nobody replaces one that dies, or loads a changed configuration."
            yield error(line, why, "systemctl restart gatepost.target", _LOG)
        else:
            why = "Mail is slower or put off; a supervisor replaces workers by itself."
            yield error(line, why, command(circumstances, "status"), _LOG)
    if not wrong:
        told = ", ".join(f"{item.name} (process {item.pid})" for item in found)
        yield ok(f"running: {told}")


def loaded(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the daemons have loaded the configuration as it is on disk, and are of this release."""
    try:
        found = supervisors(_state(circumstances))
    except PermissionError:
        return  # the check of what runs says so
    config = circumstances.config
    for item in found:
        if changed(config, item.name):
            yield warning(
                f"{config.path} was changed after {item.name} had loaded it",
                "The daemons go on with what they have loaded.",
                reload_daemons(circumstances),
            )
        else:
            yield ok(f"{item.name} has loaded {config.path} as it is")
        yield from judged_release(item, os.stat(version.__file__).st_ctime)


def judged_release(item: Running, installed: float) -> Iterator[Finding]:
    """Yield what is to be said of a supervisor where gatepost was *installed* then, in Unix seconds."""
    if item.since is not None and installed > item.since:
        yield warning(
            f"{item.name} was started before gatepost {version.__version__} was installed",
            "It runs the release of before: what this command says of the rules may not be what it does.",
            "systemctl restart gatepost.target",
        )


def errors(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the daemons have logged errors in the last hour, or replaced workers since their start."""
    file = last_errors_file(circumstances.config)
    try:
        state = _state(circumstances)
        lines = last_errors.read(file)
    except OSError as failure:
        yield unknown(f"{file} cannot be read: {failure.strerror}", "", as_root(circumstances))
        return
    begun = min((max(item.since or 0.0, item.loaded or 0.0) for item in supervisors(state)), default=0.0)
    lately = [(at, line) for at, line in lines if 0 <= circumstances.now - at < HOUR_S]
    open_ones = [line for at, line in lately if at >= begun]
    if open_ones:
        why = "Each is something that somebody must mend."
        yield warning(f"errors of the last hour: {_together(open_ones)}", why, _LOG)
    elif lately:
        settled = _together([line for _, line in lately])
        yield info(f"errors of the last hour, none since the daemons were started or reloaded: {settled}", "", _LOG)
    elif state.processes:
        yield ok("no errors in the last hour")
    for name, count in sorted(_restarts(state).items()):
        yield info(
            f"{counted(count, 'worker')} of {name} died or fell silent since its start",
            "Each was replaced; the messages that it had in hand were put off. The log has the reasons.",
            _LOG,
        )


def _together(lines: list[str]) -> str:
    """Return the first of *lines*, each once and how often it is there."""
    counts = Counter(lines)
    shown = "; ".join(f"{line} ({count} times)" if count > 1 else line for line, count in list(counts.items())[:_SHOWN])
    return f"{shown} and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else shown


def _restarts(state: State) -> dict[str, int]:
    found: dict[str, int] = {}
    for (metric, labels), values in state.totals.items():
        if metric is metrics.WORKER_RESTARTS and values[0]:
            found[labels[0]] = found.get(labels[0], 0) + int(values[0])
    return found


def exporter(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Prometheus gets an answer."""
    listen = circumstances.config.metrics
    try:
        state = _state(circumstances)
    except PermissionError:
        return
    if listen is None or not supervisors(state):
        return
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(listen.host, listen.host_and_port.rpartition(":")[0])
    url = f"http://{host}:{listen.port}/metrics"
    try:
        with _DIRECT.open(url, timeout=_TIMEOUT_S) as answer:
            ours = b"gatepost_config_loaded_timestamp_seconds" in answer.read()
    except (OSError, urllib.error.URLError) as failure:
        yield warning(
            f"{url} does not answer: {failure}",
            "Nobody is alerted when something goes wrong.",
            f"ss -ltnp 'sport = :{listen.port}'",
            _LOG,
        )
        return
    if ours:
        yield ok(f"{url} answers")
    else:
        yield warning(
            f"{url} is answered by another program", "Nobody is alerted.", f"ss -ltnp 'sport = :{listen.port}'"
        )


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this host itself, whatever http_proxy says."""

CHECKS = (
    Check("daemons", "Daemons", running),
    Check("daemons-up-to-date", "Daemons", loaded),
    Check("daemon-errors", "Daemons", errors),
    Check("metrics", "Daemons", exporter),
)
