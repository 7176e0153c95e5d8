# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs rotate`: a new SRS key, the old ones kept for as long as addresses of theirs are valid."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import complain, fingerprint, problems_reported, secret_missing
from gatepost.admin.reload import Outcome, reload_daemons
from gatepost.service.config import Config, load
from gatepost.service.reversal import day
from gatepost.service.secret import iso_day, new_secret, read_secret, rotated, target, write_secret
from gatepost.service.srs_config import Format
from gatepost.service.tables import ConfigError
from gatepost.srs import Key

_SHORT_S = 3600
"""A day that begins sooner than this leaves other hosts too little time to get the file."""
_WHO = "run this as root or gatepost"


def run(path: Path, *, at_once: bool) -> int:
    """Rotate the keys of the configuration in *path*; return the exit status.

    at_once: the new key signs from today. It is first made known to all daemons as one that only verifies, so that none
    meets an address of it that it can't reverse.
    """
    with problems_reported():
        config = load(path)
        file = config.srs.secret_file
        there = target(file)
        before = _read(there)
    if before is None:
        return os.EX_NOPERM
    now = int(time.time())
    today = day(now)
    if before[0].signs_from > today and not at_once:
        click.echo(f"{file}: a key that signs from {iso_day(before[0].signs_from)}, 00:00 UTC, waits there already.")
        return os.EX_OK
    first_day = day(now + _SHORT_S) + 1
    try:
        changed_on = day(int(there.lstat().st_mtime))
        keys = rotated(before, new_secret(), first_day, today, config.srs.validity_days, changed_on)
        write_secret(there, keys)
        loaded = _reload(config)
        if at_once and loaded is not None:
            keys = [keys[0]._replace(signs_from=today), *keys[1:]]
            write_secret(there, keys)
            loaded = _reload(config)
    except PermissionError as error:
        complain(f"{file}: cannot be written: {error.strerror}; the keys are as they were; {_WHO}")
        return os.EX_NOPERM
    except OSError as error:
        complain(f"{file}: cannot be written: {error.strerror}; the keys are as they were")
        return os.EX_IOERR
    _warn(config)
    if loaded is None:
        return _not_reloaded(file, keys[0])
    _tell(file, before, keys, loaded, at_once=at_once)
    return os.EX_OK


def _read(file: Path) -> Optional[list[Key]]:
    """Return the keys, None and a complaint where this user may not read them. Raises ConfigError."""
    try:
        return read_secret(file, follow=False)
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            complain(f"{error}; {_WHO}")
            return None
        if secret_missing(error):
            raise ConfigError([f"{file}: there is no SRS secret yet; the first start of a daemon makes it"]) from None
        raise


def _reload(config: Config) -> Optional[list[str]]:
    """Have the daemons load the keys; return the names of those that run, None where one did not load them."""
    outcomes = reload_daemons(config)
    for name, outcome in outcomes:
        if outcome is not Outcome.LOADED:
            complain(f"{name}: {outcome.value}")
    return [name for name, _ in outcomes] if all(outcome is Outcome.LOADED for _, outcome in outcomes) else None


def _not_reloaded(file: Path, new: Key) -> int:
    complain(
        f"{file}: the new key signs from {iso_day(new.signs_from)}, 00:00 UTC, but not every daemon has loaded it."
        " One that has not by then refuses bounces to its addresses: mend what the log names, then reload gatepost."
    )
    return os.EX_TEMPFAIL


def _warn(config: Config) -> None:
    if config.srs.reverses(Format.SRS0.value):
        complain(
            "warning: postsrsd, pysrs and Mail::SRS take comment lines for keys, so that anybody can forge addresses."
            f" A host with one of them must not get this file but what grep -v '^#' {config.srs.secret_file} prints,"
            " with the key that signs first."
        )


def _tell(file: Path, before: list[Key], keys: list[Key], loaded: list[str], *, at_once: bool) -> None:
    new, kept = keys[0], len(keys) - 1
    gone = len({key.secret for key in before} - {key.secret for key in keys})
    if at_once:
        click.echo(f"{file}: the new key signs from this moment.")
    else:
        when = f"from {iso_day(new.signs_from)}, 00:00 UTC; until then it verifies only"
        click.echo(f"{file}: the new key signs {when}.")
    click.echo(f"It is the first in the file, with the fingerprint {fingerprint(new)} in gatepost config check.")
    if kept:
        click.echo(f"Below it, {kept} older key{'s'[: kept > 1]} to verify bounces of mail rewritten before.")
    if gone:
        click.echo(f"Removed, for all addresses of theirs have expired: {gone} key{'s'[: gone > 1]}.")
    if at_once and kept:
        click.echo("After a leak, delete the line of each older key that leaked, and the comment above it.")
    click.echo(f"Loaded by {', '.join(loaded)}." if loaded else "No daemon runs here.")
    when = "at once" if at_once else "before that"
    click.echo(f"Other hosts that share these keys need the same file {when}; their daemons notice it by themselves.")
