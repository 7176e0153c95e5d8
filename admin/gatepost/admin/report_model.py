# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report is: its type and columns, the job that made it, and the summary that is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Optional, Union

Cell = Union[str, int]
Row = Sequence[Cell]

NO_RESULTS = "Complete – No results found"
COMPLETE = "Complete"

_MESSAGE = (
    "origin_timestamp",
    "sender_address",
    "header_from",
    "recipient_status",
    "message_subject",
    "total_bytes",
    "message_id",
    "network_message_id",
    "original_client_ip",
    "helo",
    "certificate_names",
    "directionality",
    "organization",
    "connector_id",
    "delivery_priority",
    "queue_id",
)
_ADDED = ("reverse_name", "fcrdns", "upstream")
"""Columns of a message that come last, for the rows of reports that an earlier release kept end before them."""
_DOMAIN = ("date", "organization", "connector_id", "sender_domain", "count", "message_ids")


class ReportType(Enum):
    """The reports that there are, by the name that --type takes."""

    P2_SENDER_ATTRIBUTION = "P2SenderAttribution"
    """Recipients that mail may be relayed to only where P2 counts: by the rule set legacy, not by 2023-11-01."""
    NON_ACCEPTED_DOMAIN = "NonAcceptedDomain"
    """Mail through a connector whose P1 is in no accepted domain, by date, connector and domain."""
    REFUSED = "Refused"
    """Recipients that were refused, put off, held or tagged, or would have been in mode enforce."""
    REWRITTEN = "Rewritten"
    """Recipients whose copy left with a P1 that SRS rewrote, and when bounces to that came back."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's cells: those of Exchange Online's reports (exchange-facts, 3) and ours."""
        return {
            ReportType.P2_SENDER_ATTRIBUTION: (*_MESSAGE, *_ADDED),
            ReportType.NON_ACCEPTED_DOMAIN: _DOMAIN,
            ReportType.REFUSED: (*_MESSAGE, "reason", "mode", *_ADDED),
            ReportType.REWRITTEN: (
                *_MESSAGE,
                "rewritten_address",
                "forwarded_to",
                "bounces",
                "last_bounce",
                *_ADDED,
            ),
        }[self]


@dataclass(frozen=True)
class Job:
    """One run of a report. Times in UTC; *end* is exclusive. The addresses are the filters as given, perhaps empty.

    progress: percent.
    """

    job_id: str
    title: str
    type: ReportType
    status: str
    status_description: str
    progress: int
    rows: int
    submitted: datetime
    completed: Optional[datetime]
    start: datetime
    end: datetime
    sender_addresses: tuple[str, ...] = ()
    recipient_addresses: tuple[str, ...] = ()
    notify_addresses: tuple[str, ...] = ()
    error_description: str = ""


@dataclass(frozen=True)
class Group:
    """Mail that has the same client and P1 domain, and so the same remedy.

    remedies: sentences, any one of which may do; empty where nothing has to change. header_from: domains of P2.
    """

    client: str
    helo: str
    sender_domain: str
    header_from: tuple[str, ...]
    organization: str
    messages: int
    recipients: int
    problem: str
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What a report comes to. *sentence* says it in words; the others count messages, in the order to be shown.

    by_day: every day of the time asked for, as YYYY-MM-DD, also those without any.
    """

    sentence: str
    messages: int
    recipients: int
    by_day: tuple[tuple[str, int], ...]
    by_client: tuple[tuple[str, int], ...]
    by_domain: tuple[tuple[str, int], ...]
    groups: tuple[Group, ...]
