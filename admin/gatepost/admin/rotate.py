# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs rotate`: a new SRS key, the old ones kept for as long as addresses of theirs are valid."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from gatepost.admin.configuration import complain, problems_reported
from gatepost.admin.reload import Outcome, reload_daemons
from gatepost.service.config import Config, load
from gatepost.service.reversal import day
from gatepost.service.secret import iso_day, new_secret, read_secret, rotated, write_secret
from gatepost.srs import Key


def run(path: Path, *, at_once: bool) -> int:
    """Rotate the keys of the configuration in *path*; return the exit status.

    at_once: the new key signs from today. It is first made known to all daemons as one that only verifies, so that none
    meets an address of it that it can't reverse.
    """
    with problems_reported():
        config = load(path)
        before = read_secret(config.srs.secret_file)
    today = day(int(time.time()))
    tomorrow = today + 1
    keys = rotated(before, new_secret(), tomorrow, today, config.srs.validity_days)
    waiting = before[0].signs_from > today
    try:
        if not waiting or len(keys) != len(before):
            write_secret(config.srs.secret_file, keys)
            if not _reload(config):
                return _not_reloaded(config)
        if at_once:
            keys = [keys[0]._replace(signs_from=today), *keys[1:]]
            write_secret(config.srs.secret_file, keys)
            if not _reload(config):
                return _not_reloaded(config)
    except OSError as error:
        complain(f"{config.srs.secret_file}: cannot be written: {error.strerror}; the keys are as they were")
        return os.EX_NOPERM if isinstance(error, PermissionError) else os.EX_IOERR
    _tell(config, before, keys, waiting=waiting and not at_once, at_once=at_once)
    return os.EX_OK


def _reload(config: Config) -> bool:
    """Have the daemons load the keys; tell whether all did that run."""
    outcomes = reload_daemons(config)
    for name, outcome in outcomes:
        if outcome is not Outcome.LOADED:
            complain(f"{name}: {outcome.value}")
    return all(outcome is Outcome.LOADED for _, outcome in outcomes)


def _not_reloaded(config: Config) -> int:
    complain(
        f"The new key is in {config.srs.secret_file}, but not every daemon has loaded it. Bounces still come back; see"
        " the log, then run this command again, or reload gatepost."
    )
    return os.EX_TEMPFAIL


def _tell(config: Config, before: list[Key], keys: list[Key], *, waiting: bool, at_once: bool) -> None:
    file, signs_from = config.srs.secret_file, keys[0].signs_from
    if waiting:
        click.echo(f"{file}: a key that signs from {iso_day(signs_from)}, 00:00 UTC, waits there already.")
    elif at_once:
        click.echo(f"{file}: the new key signs from this moment.")
    else:
        click.echo(f"{file}: the new key signs from {iso_day(signs_from)}, 00:00 UTC; until then it verifies only.")
    kept = len(keys) - 1
    gone = len({key.secret for key in before} - {key.secret for key in keys})
    if kept:
        click.echo(f"Kept for bounces of mail rewritten before: {kept} key{'s'[: kept > 1]}.")
    if gone:
        click.echo(f"Removed, for all addresses of theirs have expired: {gone} key{'s'[: gone > 1]}.")
    when = "at once" if at_once else "before that"
    click.echo(f"Other hosts that share these keys need the same file {when}; their daemons notice it by themselves.")
