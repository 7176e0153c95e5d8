# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a mail log through the rules: `gatepost replay`. Nothing is written anywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from gatepost.admin.configuration import complain, problems_reported, snapshot_with_placeholder
from gatepost.admin.replay_files import LogUnreadableError, chunks, in_order, total_size
from gatepost.admin.replay_log import Log
from gatepost.admin.replay_tally import Tally
from gatepost.admin.report_output import progress
from gatepost.service.snapshot import Snapshot


def run(path: Path, files: Sequence[str], organization: str, top: int, *, as_json: bool) -> int:
    """Print who would have been refused of the mail in *files*; return the exit status."""
    with problems_reported():
        snapshot, _ = snapshot_with_placeholder(path)
    if organization and organization not in snapshot.config.organizations:
        names = ", ".join(snapshot.config.organizations) or "there is none"
        raise click.UsageError(f'--organization: "{organization}" is not configured ({names})')
    try:
        log, tally = replay(snapshot, in_order(files), organization)
    except LogUnreadableError as error:
        complain(f"gatepost replay: {error}")
        return os.EX_NOINPUT
    if not log.mail_lines:
        complain("gatepost replay: no line of Postfix or Sendmail in there")
        return os.EX_DATAERR
    from gatepost.admin import replay_json, replay_output

    if as_json:
        click.echo(replay_json.as_json(log, tally, top))
    else:
        replay_output.print_all(log, tally, top)
    return os.EX_OK


def replay(snapshot: Snapshot, names: Sequence[str], organization: str = "") -> tuple[Log, Tally]:
    """Read *names* in that order. Raises LogUnreadableError."""
    log, tally = Log(), Tally(snapshot, organization)
    total, done, now = total_size(names), 0, int(time.time())

    def advance(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if total:
            show(min(100 * done / total, 100))

    def shortened() -> None:
        log.unread += 1

    with progress("Reading the log") if total else nullcontext(_unseen) as show:
        for lines in chunks(names, advance, shortened):
            for message in log.feed(lines):
                tally.add(message, now)
        for message in log.end():
            tally.add(message, now)
    return log, tally


def _unseen(percent: float) -> None:
    """Stand in for the bar where nobody knows how much there is to read."""
