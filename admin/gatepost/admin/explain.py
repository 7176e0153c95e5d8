# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost explain`: finds a message in the ledger, and says what was decided about it and why."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

import click

from gatepost.admin import explain_output
from gatepost.admin.check import examine
from gatepost.admin.check_model import Report
from gatepost.admin.check_output import wrapped
from gatepost.admin.configuration import (
    become_owner,
    complain,
    in_words,
    printable,
    problems_reported,
    snapshot_with_placeholder,
)
from gatepost.admin.explain_model import question_of
from gatepost.admin.report_commands import Ended, faults_reported
from gatepost.admin.report_run import LedgerLags, lagging_hosts, open_database, wait_for_ledger
from gatepost.service.config import Config
from gatepost.service.database import Database
from gatepost.service.report_store import Recorded, begins, message, references
from gatepost.service.snapshot import Snapshot
from gatepost.service.store import Store

WAIT_S = 3.0
SETTLED_S = 60.0
"""So much later no more recipients of a message come into the ledger, as a rule."""
_P2_UNKNOWN = "not known: the From header comes after the recipients, and policyd never sees it"
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_IN_REPLY = re.compile(r"\[(\w{10})\]")


@dataclass(frozen=True)
class Explained:
    """A message: what is recorded, and what the configuration of now says of it.

    others: the references of other messages that had the same queue ID, and their times.
    """

    recorded: tuple[Recorded, ...]
    today: Report
    others: tuple[tuple[str, float], ...] = ()


def run(path: Path, name: str, *, as_json: bool) -> int:
    """Explain the message with the reference or queue ID *name*; return the exit status."""
    name = _bare(name)
    with problems_reported():
        snapshot, _ = snapshot_with_placeholder(path)
    config = snapshot.config
    try:
        with faults_reported():
            become_owner(config)
            database = open_database(config)
            recorded, others = _find(database, name)
            lag: Optional[LedgerLags] = None
            if not recorded or max(item.entry.time for item in recorded) > time.time() - SETTLED_S:
                lag = _wait(config)
                recorded, others = _find(database, name)
            if not recorded:
                _not_found(config, database, name, lag)
                return os.EX_DATAERR
    except Ended as ended:
        return ended.status
    explained = Explained(tuple(recorded), _today(snapshot, recorded), tuple(others))
    click.echo(explain_output.as_json(explained) if as_json else explain_output.as_text(explained))
    return os.EX_OK


def _bare(name: str) -> str:
    """Return a reference, or queue ID, without what may stand around it in a reply or a log."""
    in_reply = _IN_REPLY.search(name)
    text = in_reply[1] if in_reply else name.strip().strip("[]<>:,.")
    if not _NAME.fullmatch(text):
        raise click.UsageError(f'"{printable(name)}" is neither a reference nor a queue ID')
    return text


def _find(database: Database, name: str) -> tuple[list[Recorded], list[tuple[str, float]]]:
    """Return the entries of the message that *name* means, and the other messages that had that queue ID."""
    recorded = message(database, name.upper())
    if recorded:
        return recorded, []
    found = references(database, name) or references(database, name.upper())
    return (message(database, found[0][0]), found[1:]) if found else ([], [])


def _wait(config: Config) -> Optional[LedgerLags]:
    """Wait a little until what is recorded by now is in the store; return what is in the way."""
    if not config.ledger.days:
        return None
    try:
        wait_for_ledger(config, time.time(), WAIT_S, WAIT_S)
    except LedgerLags as lag:
        return lag
    return None


def _today(snapshot: Snapshot, recorded: list[Recorded]) -> Report:
    """Judge the message with the configuration of now, on the day on which it came."""
    entries = [item.entry for item in recorded]
    when = int(min(entry.time for entry in entries))
    report = examine(snapshot, question_of(entries), when, Store(snapshot.config.store_url).found)
    answers = (
        answer if entry.header_from else answer._replace(explanation=replace(answer.explanation, p2=_P2_UNKNOWN))
        for entry, answer in zip(entries, report.answers)
    )
    return report._replace(answers=tuple(answers))


def _not_found(config: Config, database: Database, name: str, lag: Optional[LedgerLags]) -> None:
    lines = wrapped(f'"{name}" is neither the reference nor the queue ID of a message in the ledger.', "")
    for text in _why_not(config, database, lag):
        lines += wrapped(text, "- ")
    lines += wrapped(
        "The log has every reference with client, P1, recipient and reason: gatepost check explains these. gatepost "
        "replay judges what a mail log has of messages from before there was a ledger.",
        "",
    )
    for line in lines:
        complain(line)


def _why_not(config: Config, database: Database, lag: Optional[LedgerLags]) -> Iterator[str]:
    if not config.ledger.days:
        yield "ledger.days = 0: nothing is recorded."
        return
    if lag:
        yield f"It may still be on its way: {lag}."
    for host, at in lagging_hosts(database, time.time()):
        yield f"What {host} recorded after {_moment(at)} is not in the store yet."
    beginning = begins(database)
    if beginning is None:
        yield "The ledger is empty."
    else:
        yield f"The ledger begins on {_moment(beginning)}; older messages are forgotten (ledger.days, ledger.rows)."
    yield "Refusals beyond 1000 at once and 5 a second of each worker are not recorded; nor is mail during bypass."
    yield "A queue ID is of this MTA, and is written as in its log; a message that was refused at RCPT has none."


def _moment(at: float) -> str:
    return in_words(datetime.fromtimestamp(at, timezone.utc))
