# SPDX-License-Identifier: GPL-3.0-or-later
"""Take gatepost out of the way of mail and back in again: `gatepost bypass`."""

from __future__ import annotations

import getpass
import os
import syslog
import time
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import complain, load_usable_part, problems_reported
from gatepost.service import log
from gatepost.service.config import Config
from gatepost.service.snapshot import bypass_file
from gatepost.service.srs_config import ReverseBy
from gatepost.service.tables import ConfigError

OFF = "Bypass is off: gatepost judges and rewrites mail as it is configured."


def run(path: Path, action: str) -> int:
    """Do "on", "off" or "status" for the configuration in *path*; return the exit status."""
    with problems_reported():
        config = _config(path)
    file = bypass_file(config)
    try:
        if action == "status":
            return _status(config, file)
        changed = _on(file) if action == "on" else _off(file)
    except OSError as error:
        complain(f"{file}: {error.strerror}, so bypass was neither read nor changed")
        return os.EX_NOPERM if isinstance(error, PermissionError) else os.EX_CANTCREAT
    if changed:
        _log(f"bypass {action}, by {_who()} ({file})")
    if action == "on":
        click.echo(_meaning(config, file))
    else:
        click.echo(OFF if changed else f"{OFF} It was off already.")
    return os.EX_OK


def _config(path: Path) -> Config:
    """Return the configuration, one with errors too: the switch is for emergencies."""
    try:
        config, wrong = load_usable_part(path)
    except ConfigError as error:
        hint = "bypass: no way to tell the state folder; creating a file named bypass in it does the same by hand"
        raise ConfigError([*error.problems, hint]) from None
    for problem in wrong:
        complain(f"warning: {problem}")
    return config


def _status(config: Config, file: Path) -> int:
    if _since(file) is None:
        click.echo(OFF)
        return os.EX_OK
    click.echo(_meaning(config, file))
    return 1


def _on(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _off(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _since(file: Path) -> Optional[float]:
    """Return when bypass was switched on, None while it is off."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _meaning(config: Config, file: Path) -> str:
    """Return what bypass means for mail, line by line."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_since(file)))
    if config.srs.reverse is ReverseBy.MAP:
        bounces = "Bounces of mail rewritten before still reach the original senders, by the map."
    else:
        by = config.srs.reverse.value
        bounces = f'Bounces of mail rewritten before do NOT reach the original senders (srs.reverse = "{by}").'
    lines = [
        click.style(f"Bypass is ON since {since} ({file}).", fg="red", bold=True),
        "Mail passes gatepost untouched: nothing is refused by it, nothing is rewritten by SRS.",
        bounces,
        "The MTA's own restrictions are in force as before.",
    ]
    if config.relay.enforced_by == "policyd":
        lines.append("Mail that is relayed because policyd answers OK is refused by Postfix meanwhile.")
    return "\n".join([*lines, "Switch it off with: gatepost bypass off"])


def _who() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # no name for this user ID
        return f"user ID {os.getuid()}"


def _log(text: str) -> None:
    """Log where mail is logged, and to standard error unless that is a person's terminal, who reads what it means."""
    log.name_process("bypass")
    if not os.isatty(2):
        log.warning(text)
    syslog.openlog("gatepost/bypass", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(syslog.LOG_WARNING, f"warning: {text}")
