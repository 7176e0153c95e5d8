# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a report's rows of the ledger's entries, and its job and summary to be kept or shown. Pure."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Callable, Optional

from gatepost.admin.report_model import Group, Job, ReportType, Row, Summary
from gatepost.service.ledger import DEFER, MEND, NOT_RELAYED, PASS, QUARANTINE, REJECT, REWRITE, TAG, Entry
from gatepost.service.report_store import Found

SAMPLES = 5
_RECENT = 100_000
_STATUS = {
    PASS: "Relayed",
    REWRITE: "Rewritten",
    REJECT: "Refused",
    DEFER: "Deferred",
    QUARANTINE: "Held",
    TAG: "Tagged",
    MEND: "Rewritten",
}


class Messages:
    """Knows which messages have come before: their recipients stand close together in the ledger."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._before: set[str] = set()

    def first(self, reference: str) -> bool:
        if reference in self._recent or reference in self._before:
            return False
        if len(self._recent) >= _RECENT:
            self._recent, self._before = set(), self._recent
        self._recent.add(reference)
        return True


def client_of(entry: Entry) -> str:
    """Return the client's IP address, or what stands for it; only the egress hop leaves the rule set empty."""
    return entry.client or ("this host" if entry.requirements else "not known")


def sender_domain(entry: Entry) -> str:
    """Return the domain of P1; where it has none, P1 itself, so that the null sender is <>."""
    return entry.sender_domain or f"<{entry.reverse_path}>"


def message_cells(report_type: ReportType, found: Found) -> Row:
    """Return the row of one message and recipient."""
    entry = found.entry
    cells = (
        _timestamp(entry.time),
        entry.reverse_path or "<>",
        entry.header_from,
        f"{entry.recipient}##{_status(entry)}",
        entry.subject,
        "" if entry.size_bytes is None else entry.size_bytes,
        entry.message_id,
        entry.reference,
        entry.client,
        entry.helo,
        entry.certificate_names,
        "Incoming" if _stays_inside(entry) else "Originating",
        entry.organization,
        entry.connector,
        "Normal",
        entry.queue_id,
    )
    added = (entry.reverse_name, entry.fcrdns, entry.upstream)
    if report_type is ReportType.REFUSED:
        return (*cells, entry.reason, "enforce" if entry.action in NOT_RELAYED else "monitor", *added)
    if report_type is ReportType.REWRITTEN:
        last = "" if found.last_bounce is None else _timestamp(found.last_bounce)
        return (*cells, entry.rewritten, entry.forwarded_to, found.bounces, last, *added)
    return (*cells, *added)


def _status(entry: Entry) -> str:
    if entry.action == PASS and entry.verdict_current == "inside":
        return "Inside"
    return _STATUS.get(entry.action, "Returned")


def _stays_inside(entry: Entry) -> bool:
    """Tell whether the recipient is inside and forwards to nobody outside; an SRS address of ours is inside, too."""
    return (entry.verdict_current == "inside" and not entry.forwarded_to) or entry.reason.startswith("srs-")


class DomainRows:
    """The rows of NonAcceptedDomain: messages by day, connector and domain of P1, with some Message-IDs."""

    def __init__(self) -> None:
        self._messages = Messages()
        self._day = ""
        self._counts: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, entry: Entry) -> list[Row]:
        """Count *entry*; return the rows of the day before, once that is over."""
        day = utc(entry.time).date().isoformat()
        done = self.rest() if day != self._day else []
        self._day = day
        if self._messages.first(entry.reference):
            key = (entry.organization, entry.connector, sender_domain(entry))
            count = self._counts.setdefault(key, [0, []])
            count[0] += 1
            if entry.message_id and len(count[1]) < SAMPLES:
                count[1].append(entry.message_id)
        return done

    def rest(self) -> list[Row]:
        """Return the rows of the last day."""
        rows: list[Row] = [
            (self._day, organization, connector, domain, count, " ".join(samples))
            for (organization, connector, domain), (count, samples) in sorted(self._counts.items())
        ]
        self._counts = {}
        return rows


def rows_of(job: Job) -> tuple[Callable[[Found], list[Row]], Callable[[], list[Row]]]:
    """Return two functions: what rows an entry makes, and what rows are left at the end."""
    if job.type is ReportType.NON_ACCEPTED_DOMAIN:
        by_domain = DomainRows()
        return lambda found: by_domain.add(found.entry), by_domain.rest
    return lambda found: [message_cells(job.type, found)], list


def utc(time: float) -> datetime:
    return datetime.fromtimestamp(time, timezone.utc)


def _timestamp(time: float) -> str:
    return utc(time).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_fields(job: Job) -> dict[str, Any]:
    """Return *job* as JSON has it, to be kept."""
    times = {name: value.isoformat() for name, value in asdict(job).items() if isinstance(value, datetime)}
    return {**asdict(job), **times, "type": job.type.value}


def job_from(fields: dict[str, Any]) -> Job:
    """Return the job that `job_fields` made *fields* of."""
    times = {name: _optional_time(fields[name]) for name in ("submitted", "completed", "start", "end")}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Job(**{**fields, **times, **lists, "type": ReportType(fields["type"])})


def _optional_time(text: Optional[str]) -> Optional[datetime]:
    return None if text is None else datetime.fromisoformat(text)


def summary_from(fields: dict[str, Any]) -> Summary:
    """Return the summary of which asdict made *fields*."""
    counts = {name: tuple((key, count) for key, count in fields[name]) for name in ("by_day", "by_client", "by_domain")}
    groups = tuple(
        Group(**{**group, "header_from": tuple(group["header_from"]), "remedies": tuple(group["remedies"])})
        for group in fields["groups"]
    )
    return Summary(**{**fields, **counts, "groups": groups})


def published_fields(job: Job) -> dict[str, Any]:
    """Return *job* by the names that Exchange Online gives its fields."""

    def time(value: Optional[datetime]) -> Optional[str]:
        return None if value is None else value.astimezone(timezone.utc).isoformat(timespec="seconds")[:19] + "Z"

    return {
        "JobId": job.job_id,
        "ReportTitle": job.title,
        "ReportType": job.type.value,
        "Status": job.status,
        "ReportStatusDescription": job.status_description,
        "JobProgress": job.progress,
        "Rows": job.rows,
        "SubmitDate": time(job.submitted),
        "CompletionDate": time(job.completed),
        "StartDate": time(job.start),
        "EndDate": time(job.end),
        "SenderAddress": list(job.sender_addresses),
        "RecipientAddress": list(job.recipient_addresses),
        "NotifyAddress": list(job.notify_addresses),
        "ErrorDescription": job.error_description,
    }
