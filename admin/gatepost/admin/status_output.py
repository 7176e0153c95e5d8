# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out `gatepost status`: for a person, or as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Optional

import click

from gatepost.admin.check_output import wrapped
from gatepost.admin.configuration import in_words, printable
from gatepost.service.ledger import DEFER, MEND, PASS, QUARANTINE, REJECT, RETURN, REWRITE, TAG
from gatepost.service.loaded import ModeSince
from gatepost.service.organizations import Mode
from gatepost.service.version import __version__

if TYPE_CHECKING:
    from gatepost.admin.status import Running, Status, Workers

ERRORS = 5
"""How many of the last errors are shown to a person."""
BEHIND_S = 5.0
"""The loader tries several times a second."""
_ACTIONS = {
    PASS: "passed",
    REWRITE: "rewritten by SRS",
    RETURN: "bounces brought back",
    REJECT: "rejected",
    DEFER: "put off",
    QUARANTINE: "held",
    TAG: "tagged",
    MEND: "mended by SRS",
}


def as_text(status: Status) -> str:
    """Return the status for a person."""
    return "\n".join(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    yield click.style(f"gatepost {__version__} on {os.uname().nodename}", bold=True)
    if status.bypass_since is not None:
        yield from _loud(f"Bypass is ON since {_time(status.bypass_since)}: mail passes gatepost untouched.")
        yield "Switch it off with: gatepost bypass off"
    for problem in status.problems:
        yield from _loud(f"Wrong: {problem}")
    yield ""
    if not status.running:
        yield from field("Running", "nothing")
    for item in status.running:
        yield from field("Running", _running(item, status.now))
    yield from field("Configuration", str(status.config.path))
    for item in status.running:
        if item.loaded is not None:
            yield from field("  loaded", f"{_time(item.loaded)}, by {item.name}")
    if status.changed:
        name = status.config.path.name
        yield from field("", f"{name} has changed since; load it with: systemctl reload gatepost.target")
    for organization, mode in status.modes.items():
        yield from field("Organization", f"{organization}: {mode}")
    if not all(item.stopping for item in status.running):
        yield from field("Workers", _workers(status))
        yield from field("Ledger", _ledger(status))
    yield ""
    yield from _hour(status)
    yield ""
    yield from _errors(status)


def field(name: str, text: str) -> list[str]:
    return wrapped(printable(text), f"{name:<15}")


def _loud(text: str) -> Iterator[str]:
    for line in wrapped(printable(text), ""):
        yield click.style(line, fg="red", bold=True)


def _running(item: Running, now: float) -> str:
    names = item.name.replace("+", " and ")
    since = f", since {_time(item.since)} ({_span(now - item.since)})" if item.since is not None else ""
    kept = "" if item.reload_ok else "; the last reload failed, so the configuration before it is in use"
    return f"{names}, process {item.pid}{since}{kept}{'; it is stopping' if item.stopping else ''}"


def _workers(status: Status) -> str:
    wanted = sum(item.wanted for item in status.workers)
    ready = sum(min(item.ready, item.wanted) for item in status.workers)  # more while a reload is under way
    odd = "; ".join(f"{item.name}: {', '.join(told)}" for item in status.workers if (told := list(_odd(item))))
    return f"{'all' if ready == wanted else f'{ready} of'} {wanted} are ready" + (f" ({odd})" if odd else "")


def _odd(item: Workers) -> Iterator[str]:
    if item.ready < item.wanted:
        yield f"{item.ready} of {item.wanted}"
    if item.restarts:
        yield f"{item.restarts} replaced unasked"


def _ledger(status: Status) -> str:
    if not any(item.wanted for item in status.workers if item.name.startswith("ledger")):
        return "off (ledger.days = 0)"
    if status.backlog_bytes:
        return f"{status.backlog_bytes} bytes wait for the store"
    if status.behind_s > BEHIND_S:
        return f"the store has not answered for {status.behind_s:.0f} s"
    return "all is in the store"


def mode_in_words(known: ModeSince, now: float) -> str:
    mode, switch = known
    if switch is not None:
        return Mode.ENFORCE.value if switch.timestamp() <= now else f"monitor, enforce from {in_words(switch)}"
    return mode.value


def _hour(status: Status) -> Iterator[str]:
    hour = status.hour
    yield click.style("The last hour, by recipients", bold=True)
    if hour.why_not:
        yield from wrapped(f"  Not known: {hour.why_not}.", "  ")
        return
    if not hour.by_action:
        yield "  No mail."
        return
    width = len(str(max(hour.by_action.values())))
    for action, count in sorted(hour.by_action.items(), key=lambda item: -item[1]):
        yield f"  {count:{width}}  {_ACTIONS.get(action, action)}"
    if hour.refused:
        yield f"  {hour.refused} of them the rules refuse; gatepost report start --type Refused says which."


def _errors(status: Status) -> Iterator[str]:
    if status.errors is None:
        return
    if not status.errors:
        yield "No errors were logged."
        return
    yield click.style("The last errors", bold=True)
    for at, line in status.errors[:ERRORS]:
        yield from wrapped(f"{_time(at)}  {printable(line)}", "  ")


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _span(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def as_json(status: Status) -> str:
    """Return the status for a program; times are in ISO 8601, UTC."""
    config = status.config
    return json.dumps(
        {
            "version": __version__,
            "host": os.uname().nodename,
            "configuration": str(config.path),
            "configuration_changed": status.changed,
            "running": [
                {
                    "name": item.name,
                    "pid": item.pid,
                    "since": _iso(item.since),
                    "configuration_loaded": _iso(item.loaded),
                    "last_reload_ok": item.reload_ok,
                    "stopping": item.stopping,
                }
                for item in status.running
            ],
            "workers": [asdict(item) for item in status.workers],
            "problems": list(status.problems),
            "bypass_since": _iso(status.bypass_since),
            "organizations": dict(status.modes),
            "ledger_backlog_bytes": status.backlog_bytes,
            "last_hour": None
            if status.hour.why_not
            else {"actions": dict(status.hour.by_action), "refused_by_rules": status.hour.refused},
            "last_errors": None
            if status.errors is None
            else [{"time": _iso(at), "text": text} for at, text in status.errors],
        },
        indent=2,
    )


def _iso(at: Optional[float]) -> Optional[str]:
    return None if at is None else datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")
