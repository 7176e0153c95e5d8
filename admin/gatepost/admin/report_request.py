# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report is asked for: options become a Job, or every problem of them at once. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Callable, Optional

from gatepost.admin.configuration import printable
from gatepost.admin.report_model import Job, ReportType
from gatepost.relay import Rules, normalize_domain
from gatepost.service.addresses import domain_of, plain
from gatepost.service.ledger import Entry

DAYS = 90
DEFAULT_DAYS = 30
VALUES = 100
NOT_STARTED, DONE, FAILED, CANCELLED = "NotStarted", "Done", "Failed", "Cancelled"
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)


class RequestError(Exception):
    """The options are not right; *problems* has a sentence for each that is not."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Options:
    """The options of `gatepost report start` as they were given."""

    type: str
    title: Optional[str] = None
    start_date: Optional[str] = None
    end_date: Optional[str] = None
    sender_addresses: tuple[str, ...] = ()
    recipient_addresses: tuple[str, ...] = ()
    notify_addresses: tuple[str, ...] = ()


def job_of(options: Options, rules: Rules, job_id: str, now: datetime, days: int) -> Job:
    """Return the job that *options* ask for, not yet started. Raises RequestError.

    now: aware. days: how long the ledger keeps entries; where that is more than DAYS, reports go back as far.
    """
    problems: list[str] = []
    if not is_utf8(options.title or ""):
        problems.append(f'--title: "{printable(options.title or "")}" is not in UTF-8')
    report_type = ReportType(options.type)
    now = now.astimezone(timezone.utc).replace(microsecond=0)
    start, end = _window(options, now, max(days, DAYS), problems)
    senders = _values("--sender-address", options.sender_addresses, problems)
    recipients = _values("--recipient-address", options.recipient_addresses, problems)
    notified = _values("--notify-address", options.notify_addresses, problems)
    if report_type is ReportType.P2_SENDER_ATTRIBUTION:
        problems += [f"--sender-address: {text}" for text in _senders_not_accepted(senders, rules)]
    for address in notified:
        domain = domain_of(address)
        if not plain(address) or "*" in address or domain is None or rules.accepted(domain) is None:
            problems.append(f'--notify-address: "{address}" is no address in an accepted domain')
    if problems:
        raise RequestError(problems)
    return Job(
        job_id=job_id,
        title=options.title or f"{report_type.value} {start.date()} to {end.date()}",
        type=report_type,
        status=NOT_STARTED,
        status_description="",
        progress=0,
        rows=0,
        submitted=now,
        completed=None,
        start=start,
        end=end,
        sender_addresses=senders,
        recipient_addresses=recipients,
        notify_addresses=notified,
    )


def _window(options: Options, now: datetime, days: int, problems: list[str]) -> tuple[datetime, datetime]:
    end = _time("--end-date", options.end_date, problems) if options.end_date else now + timedelta(seconds=1)
    start = _time("--start-date", options.start_date, problems) if options.start_date else None
    if end is None or (start is None and options.start_date):
        return now, now
    start = start or end - timedelta(days=DEFAULT_DAYS)
    earliest = (now - timedelta(days=days)).replace(hour=0, minute=0, second=0)
    if start < earliest:
        problems.append(f"--start-date: {_shown(start)} is more than {days} days back; {_shown(earliest)} is the first")
    elif start > now:
        problems.append(f"--start-date: {_shown(start)} lies in the future; it is {_shown(now)} now")
    if end <= start:
        problems.append(
            f"--end-date: {_shown(end)} is not later than the start, {_shown(start)}; a date without a time is 00:00 "
            "UTC, and the end is exclusive"
        )
    return start, end


def _time(option: str, text: str, problems: list[str]) -> Optional[datetime]:
    try:
        if not _DATE.fullmatch(text):
            raise ValueError
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        problems.append(f'{option}: "{printable(text)}" is no date; give 2026-11-01 or 2026-11-01T10:30, in UTC')
        return None


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def is_utf8(text: str) -> bool:
    """Tell whether *text*, an argument of a command, was in UTF-8, so that a database takes it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _values(option: str, given: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    """Return the addresses of a repeatable option, each perhaps several with commas between, as they are compared."""
    parts = (part.strip() for text in given for part in text.split(","))
    values = tuple(dict.fromkeys(in_a_labels(part.lower()) for part in parts if part))
    if len(values) > VALUES:
        problems.append(f"{option}: {len(values)} values are given; at most {VALUES} are allowed")
    for value in values:
        if not is_utf8(value):
            problems.append(f'{option}: "{printable(value)}" is not in UTF-8')
        elif "@" not in value and "*" not in value:
            problems.append(f'{option}: "{value}" is no address; give bob@contoso.com or *@contoso.com')
        elif "@" in value and not value.rpartition("@")[2].isascii():
            problems.append(f'{option}: "{value}" cannot be compared; give its domain in A-labels (xn--...)')
    return values


def in_a_labels(address: str) -> str:
    """Return *address*, or a pattern of some, with the labels of its domain as A-labels, where that can be."""
    local, at, domain = address.rpartition("@")
    if at and not domain.isascii():
        labels = (label if "*" in label else normalize_domain(label) or label for label in domain.split("."))
        domain = ".".join(labels)
    return f"{local}{at}{domain}"


def _senders_not_accepted(senders: Sequence[str], rules: Rules) -> list[str]:
    """Return what is wrong with senders of a report on P2: they are of accepted domains, by name or as *.name."""
    problems = []
    for value in senders:
        domain = normalize_domain(value.rpartition("@")[2].removeprefix("*.") if "@" in value else "")
        if domain is None or rules.accepted(domain) is None:
            problems.append(
                f'"{value}" is not of an accepted domain; this report takes such as *@contoso.com, where contoso.com '
                "is accepted, or *@*.contoso.com"
            )
    return problems


def wanted(job: Job) -> Callable[[Entry], bool]:
    """Return a function that tells whether the job's filters let an entry through. * stands for any characters.

    Senders are compared with P1 and P2, recipients with the one that the client gave and what it was forwarded to.
    """
    sender, recipient = _match(job.sender_addresses), _match(job.recipient_addresses)
    if sender is None and recipient is None:
        return lambda entry: True

    def let_through(entry: Entry) -> bool:
        if sender and not any(map(sender, (entry.reverse_path, *entry.header_from.split(", ")))):
            return False
        return not recipient or any(map(recipient, (entry.recipient, *entry.forwarded_to.split(", "))))

    return let_through


def wanted_recipients(job: Job) -> Callable[[Entry], bool]:
    """Return the same for the job's recipients only: of mail whose P2 nobody saw, who sent it is not known."""
    return wanted(replace(job, sender_addresses=()))


def _match(patterns: Sequence[str]) -> Optional[Callable[[str], bool]]:
    if not patterns:
        return None
    split = [pattern.split("*") for pattern in patterns]

    def match(address: str) -> bool:
        text = in_a_labels(address)
        return any(_consists_of(pieces, text) for pieces in split)

    return match


def _consists_of(pieces: Sequence[str], text: str) -> bool:
    """Tell whether *text* is made of *pieces* in their order, with anything between them."""
    first, *others = pieces
    if not others:
        return text == first
    last, place = others.pop(), len(first)
    for piece in others:
        found = text.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return text.startswith(first) and text.endswith(last) and place + len(last) <= len(text)
