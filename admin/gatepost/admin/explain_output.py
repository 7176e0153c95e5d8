# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out what `gatepost explain` found, in the manner of `gatepost check`: for a person, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Optional

from gatepost.admin import check_output
from gatepost.admin.check_model import Answer
from gatepost.admin.check_output import field, listed, wrapped
from gatepost.admin.configuration import printable
from gatepost.admin.explain_model import Then, difference, then
from gatepost.service import upstream_words
from gatepost.service.ledger import CONFIRMED, NO_NAME, UNCONFIRMED, Entry

if TYPE_CHECKING:
    from gatepost.admin.explain import Explained

_FCRDNS = {
    CONFIRMED: "confirmed: it leads back to the address",
    UNCONFIRMED: "unconfirmed: it does not lead back to the address",
    NO_NAME: "none",
}
OTHERS = 5
"""How many other messages with the same queue ID are named."""


def as_text(explained: Explained) -> str:
    """Return the explanation for a person."""
    parts = ["\n".join(_head(explained))]
    for item, answer in zip(explained.recorded, explained.today.answers):
        requirements = explained.today.requirements.value
        parts.append("\n".join(_recipient(then(item.entry), answer, requirements)))
    if explained.others:
        others = [f"{reference} of {_time(at)}" for reference, at in explained.others[:OTHERS]]
        more = len(explained.others) - OTHERS
        text = f"Queue IDs come again; this is the newest message with that one. Others: {', '.join(others)}"
        parts.append("\n".join(wrapped(f"{text}{f' and {more} more' if more > 0 else ''}.", "Note: ")))
    parts += check_output.bypass(explained.today)
    return "\n\n".join(parts)


def _head(explained: Explained) -> Iterator[str]:
    entries = [item.entry for item in explained.recorded]
    hosts = sorted({item.host for item in explained.recorded})
    yield from field("Reference", entries[0].reference)
    yield from field("When", f"{_time(min(entry.time for entry in entries))}, on {' and '.join(hosts)}")
    yield from field("Queue ID", "; ".join(_queue_ids(entries)) or "none: it was refused before it had one")
    message_id = _first(entry.message_id for entry in entries)
    if message_id:
        yield from field("Message-ID", message_id)
    yield from check_output.client(explained.today.question)
    name, fcrdns = (_first(values) for values in zip(*((entry.reverse_name, entry.fcrdns) for entry in entries)))
    if name or fcrdns:
        state = _FCRDNS.get(fcrdns, "")
        yield from field("Reverse name", f"{name} ({state})" if name and state else name or state)
    yield from field("Rule set", _first(entry.requirements for entry in entries) or "not known")


def _queue_ids(entries: Sequence[Entry]) -> Iterator[str]:
    yield from sorted({entry.queue_id for entry in entries} - {""})
    egress = sorted({entry.egress_queue_id for entry in entries} - {""})
    if egress:
        yield f"on the egress hop {', '.join(egress)}"


def _first(values: Iterable[str]) -> str:
    return next(filter(None, values), "")


def _recipient(recorded: Then, today: Answer, requirements: str) -> Iterator[str]:
    entry = recorded.entry
    yield check_output.heading(entry.recipient, recorded.word, refused=recorded.refused)
    differs = difference(recorded, today)
    if differs:
        why = f"(reason={entry.reason}{f', organization={entry.organization}' if entry.organization else ''})"
        yield from wrapped(printable(f"Decided then: {recorded.decision} {why}"), "  ")
        yield from wrapped(printable(f"{differs} {today.decision}"), "  ")
        yield ""
        yield f"  Today's configuration says (rule set {requirements}):"
    else:
        yield from wrapped(printable(recorded.decision), "  ")
    if recorded.outcome:
        yield from check_output.reasoning(today)
    yield ""
    yield from listed("What happened then", map(printable, (*recorded.happened, *_upstream(entry))))
    if recorded.outcome:
        yield from check_output.for_upstream(today)
    for envelope in recorded.envelopes:
        note = " (the ledger has it in lower case)" if entry.rewritten and entry.rewritten == envelope.mail_from else ""
        yield from check_output.envelope(f"Envelope afterwards{note}", envelope)


def _upstream(entry: Entry) -> Iterator[str]:
    if entry.upstream:
        yield upstream_words.recorded(entry.upstream)


def _time(at: float) -> str:
    moment = datetime.fromtimestamp(at, timezone.utc)
    return f"{moment.day} {moment:%B %Y, %H:%M:%S} UTC"


def as_json(explained: Explained) -> str:
    """Return the explanation for a program: of each recipient the ledger's row, and today's answer as check has it."""
    document = {
        "reference": explained.recorded[0].entry.reference,
        "same_queue_id": [{"reference": reference, "time": at} for reference, at in explained.others],
        "recipients": [
            _as_object(item.host, then(item.entry), answer)
            for item, answer in zip(explained.recorded, explained.today.answers)
        ],
    }
    return json.dumps(document, indent=2)


def _as_object(host: str, recorded: Then, today: Answer) -> dict[str, object]:
    return {
        "recorded": {"host": host, **recorded.entry._asdict()},
        "outcome": recorded.outcome,
        "decision": recorded.decision,
        "happened": recorded.happened,
        "difference": _or_none(difference(recorded, today)),
        "today": check_output.as_object(today) if recorded.outcome else None,
    }


def _or_none(text: str) -> Optional[str]:
    return text or None
