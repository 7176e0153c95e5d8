# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check`: asks about one message that options or a file describe, and prints the answer."""

from __future__ import annotations

import ipaddress
import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Optional

import click

from gatepost.admin import check_output
from gatepost.admin.check import examine
from gatepost.admin.check_model import Question, Report
from gatepost.admin.configuration import (
    originals,
    printable,
    problems_reported,
    snapshot_with_placeholder,
    with_requirements,
)
from gatepost.admin.srs_commands import bare, unix_time
from gatepost.relay import RuleSet
from gatepost.service.reversal import Stored
from gatepost.service.snapshot import Snapshot


class QuestionError(ValueError):
    """Something of a question has no meaning; *name* is that of its option."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Given(NamedTuple):
    """The options of `gatepost check`. message: a file, "-" for standard input."""

    ip: Optional[str] = None
    helo: Optional[str] = None
    certificate_names: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    authenticated: bool = False
    mail_from: Optional[str] = None
    header_from: Optional[str] = None
    recipients: tuple[str, ...] = ()
    message: Optional[str] = None


NOTHING = Given()


class Circumstances(NamedTuple):
    """Under which configuration and on which day to judge; missing_secret: there is no SRS secret in that file."""

    snapshot: Snapshot
    now: int
    stored: Stored
    missing_secret: Optional[Path]

    def ask(self, question: Question) -> Report:
        """Return the answer, with a note where an SRS address in it is not what the daemons will make."""
        report = examine(self.snapshot, question, self.now, self.stored)
        rewritten = any(
            answer.enforced and answer.enforced.mail_from != report.mail.reverse_path for answer in report.answers
        )
        if self.missing_secret is None or not rewritten:
            return report
        note = f"There is no SRS secret yet ({self.missing_secret}), so the hash of the SRS address is a placeholder."
        return report._replace(notes=(*report.notes, note))


def circumstances(path: Path, requirements: Optional[str], at: Optional[datetime]) -> Circumstances:
    """Load the configuration; end the command where it has problems."""
    now = unix_time(at)
    with problems_reported():
        snapshot, missing_secret = snapshot_with_placeholder(path, now)
    if requirements:
        snapshot = with_requirements(snapshot, RuleSet(requirements))
    return Circumstances(snapshot, now, originals(snapshot.config), missing_secret)


def run(path: Path, given: Given, requirements: Optional[str], at: Optional[datetime], *, as_json: bool) -> int:
    """Print the answer to what is *given*; return the exit status."""
    question = _described(given, unix_time(at))
    asked: Optional[Circumstances] = None
    if given.message is not None:
        from gatepost.admin.check_message import completed  # loads email

        asked = circumstances(path, requirements, at)
        here = (os.uname().nodename, *asked.snapshot.config.relay.local_domains)
        question = completed(question, given.message, here, mail_from_given=given.mail_from is not None)
    elif given.mail_from is None:
        raise click.UsageError("Missing option '--mail-from'.")
    elif not given.recipients:
        raise click.UsageError("Missing option '--rcpt'.")
    try:
        check_question(question)
    except QuestionError as error:
        raise click.UsageError(f"--{error.name.replace('_', '-')}: {error}") from None
    report = (asked or circumstances(path, requirements, at)).ask(question)
    click.echo(check_output.as_json(report) if as_json else check_output.as_text(report))
    return 1 if any(answer.refused for answer in report.answers) else os.EX_OK


def _described(given: Given, now: int) -> Question:
    """Return what the options say."""
    question = Question(
        ip=given.ip,
        helo=given.helo,
        certificate_names=given.certificate_names,
        authenticated=given.authenticated,
        mail_from=given.mail_from or "",
        header_from=() if given.header_from is None else (given.header_from,),
        recipients=given.recipients,
    )
    for file in given.certificate_files:
        from gatepost.admin.check_certificate import read  # loads cryptography

        names, sentence = read(file, now)
        question = question._replace(
            certificate_names=(*question.certificate_names, *names),
            taken=(*question.taken, f"Certificate {sentence}."),
        )
    return question


def check_question(question: Question) -> None:
    """Raise QuestionError for what no mail can have."""
    if question.ip is not None:
        try:
            ipaddress.ip_address(question.ip)
        except ValueError:
            raise QuestionError("ip", f'"{printable(question.ip)}" is no IP address') from None
    if any(bracket in bare(question.mail_from) for bracket in "<>"):
        text = f'"{printable(question.mail_from)}" is no address; a name goes into --header-from'
        raise QuestionError("mail_from", text)
    for rcpt in question.recipients:
        if "@" not in rcpt:
            raise QuestionError("rcpt", f'"{printable(rcpt)}" has no domain')
