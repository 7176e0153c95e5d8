# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger keeps: one entry for each message and recipient, and that bounces came back.

Pure. Workers write each as a line into a spool file, the loader reads them from there.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional, Union

from gatepost.relay import Client, Mail, Result, RuleSet, Verdict, attribute
from gatepost.service.addresses import domain_of
from gatepost.service.snapshot import Snapshot
from gatepost.service.upstream import outcome

PASS, REWRITE, RETURN, REJECT = "pass", "rewrite", "return", "reject"
DEFER, QUARANTINE, TAG, MEND = "defer", "quarantine", "tag", "mend"
NOT_RELAYED = frozenset((REJECT, DEFER, QUARANTINE, TAG, MEND))
"""What is done about a recipient that the rules refuse, other than in mode monitor."""
TURNED_DOWN = frozenset((*NOT_RELAYED, "monitor"))
"""The actions whose log lines name the client's HELO, too."""
CONFIRMED, UNCONFIRMED, NO_NAME = "confirmed", "unconfirmed", "none"
"""Whether the client's reverse name leads back to its address; "" where that is not known."""
LEFT_TO_MTA = "left-to-mta"
"""The reason of what the rule refuses, while no organization is meant, so that policyd leaves it to Postfix."""
TEXT_LIMIT = 1000
"""Octets of one text that are kept: a header may be longer than all the rest of the store, and PostgreSQL's index of
references and recipients takes 2700 for both."""


class Entry(NamedTuple):
    """One message and one recipient. Addresses are in lower case; "" where a text is not known, None a number.

    reference: the message's, the same at both hops. recipient: as the client gave it. time: Unix seconds.
    egress_queue_id: of the copy that passed the egress hop, forwarded_to the address that this went to. client: IP
    address. certificate_names, header_from: joined by ", ". sender_accepted: 1 where the domain of P1 counts as
    accepted. rewritten: P1 afterwards. requirements: the rule set in force; the verdicts are under each. reason: of
    the verdict in force, or why else the recipient was refused. action: pass, rewrite, return (an SRS recipient
    became the original sender again), reject, defer, quarantine (taken and held) or tag (taken with a header).
    size_bytes: as the client declared it. reverse_name: of the client's address in DNS. fcrdns: whether that leads
    back to it. upstream: what Exchange Online will say: relay, inside, exempt or why it will refuse.
    """

    reference: str
    recipient: str
    time: float
    queue_id: str = ""
    egress_queue_id: str = ""
    client: str = ""
    helo: str = ""
    certificate_names: str = ""
    reverse_path: str = ""
    sender_domain: str = ""
    sender_accepted: int = 0
    rewritten: str = ""
    forwarded_to: str = ""
    header_from: str = ""
    organization: str = ""
    connector: str = ""
    requirements: str = ""
    verdict_current: str = ""
    verdict_legacy: str = ""
    reason: str = ""
    action: str = ""
    size_bytes: Optional[int] = None
    message_id: str = ""
    subject: str = ""
    reverse_name: str = ""
    fcrdns: str = ""
    upstream: str = ""


class Bounced(NamedTuple):
    """Mail came back to the rewritten sender *address*; *time* in Unix seconds."""

    address: str
    time: float


Record = Union[Entry, Bounced]
_FORMAT = 2
_BEGIN = re.compile(rb'\[(\d{1,4}),"')
_OF_FORMAT_1 = {"Entry": 24, "Bounced": 2}
"""How many fields each had there; those that came later have a default. Such lines may wait during an upgrade."""
_ACTIONS = ("", PASS, RETURN, DEFER, REJECT, REWRITE, MEND, TAG, QUARANTINE)
"""The later one counts. A copy that left after all has been relayed; that it is rewritten, `rewritten` says too, so
that what was tagged or held remains so."""


_encode = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii


def line(record: Record) -> bytes:
    """Return the line for the spool."""
    if isinstance(record, Bounced):  # of each look-up one: in a third of the time
        address, time = record
        return f'[{_FORMAT},"Bounced",{_quoted(address)},{time!r}]\n'.encode("ascii")
    return _encode((_FORMAT, type(record).__name__, *record)).encode("ascii") + b"\n"


def newer(octets: bytes) -> bool:
    """Tell whether *octets* begin with a line of a newer release, which is not to be taken for a damaged one."""
    begin = _BEGIN.match(octets)
    return begin is not None and int(begin[1]) > _FORMAT


def record(octets: bytes) -> Record:
    """Return what `line` wrote. Raises ValueError or TypeError, also for the line of another release.

    What it returns every database takes: one record that it refuses would hold up all that come after it.
    """
    text = octets.decode("ascii").strip()
    try:
        fields, end = _value(text)
    except RecursionError:
        raise ValueError("a line of another format") from None
    if end != len(text) or not isinstance(fields, list) or len(fields) < 2:
        raise ValueError("not one record")
    if fields[0] not in (1, _FORMAT) or fields[1] not in _KINDS:
        raise ValueError("a line of another format")
    kind, values = _KINDS[fields[1]], fields[2:]
    if len(values) != (len(kind._fields) if fields[0] == _FORMAT else _OF_FORMAT_1[fields[1]]):
        raise ValueError(f"not as many fields as a {kind.__name__} has")
    if len(octets) > TEXT_LIMIT or b"\\u" in octets:  # else there is nothing to cut or to replace
        values = [clipped(value) if isinstance(value, str) else value for value in values]
    made = kind(*values)
    if tuple(map(type, made)) not in _SHAPES or not _in_range(made):
        raise ValueError(f"not what stands in a {kind.__name__}: {values!r}")
    return made


_value = json.JSONDecoder().raw_decode
_KINDS: dict[str, type[Record]] = {"Entry": Entry, "Bounced": Bounced}
_NUMBERS: dict[str, tuple[type, ...]] = {
    "time": (float, int),
    "sender_accepted": (int,),
    "size_bytes": (int, type(None)),
}
_SHAPES = {
    types
    for kind in _KINDS.values()
    for types in itertools.product(*(_NUMBERS.get(name, (str,)) for name in kind._fields))
}
_LARGEST = 1 << 53


def _in_range(made: Record) -> bool:
    if not 0 <= made.time < _LARGEST:
        return False
    return isinstance(made, Bounced) or (made.sender_accepted in (0, 1) and 0 <= (made.size_bytes or 0) < _LARGEST)


def merged(one: Entry, other: Entry) -> Entry:
    """Return what two entries of one message and recipient come to, in whichever order they are read.

    The two hops know different things of it, and so do milter and policyd. Where both know a text and differ, the
    greater one counts: of certificate names, that is the one with more of them.
    """
    filled = Entry._make(map(max, one._replace(size_bytes=0), other._replace(size_bytes=0)))
    return filled._replace(
        time=min(one.time, other.time),
        forwarded_to=_places(one.forwarded_to, other.forwarded_to),
        action=max(one.action, other.action, key=_rank),
        # The egress hop sees the message with a header more than the client has sent.
        size_bytes=min((size for size in (one.size_bytes, other.size_bytes) if size is not None), default=None),
    )


def _rank(action: str) -> tuple[int, str]:
    return (_ACTIONS.index(action) if action in _ACTIONS else 0), action


def _places(one: str, other: str) -> str:
    """Return the addresses of both, as many as there is room for: the first ones, so that any order comes to them."""
    joined = ""
    for address in sorted({*one.split(", "), *other.split(", ")} - {""}):
        longer = f"{joined}, {address}" if joined else address
        if clipped(longer) != longer:
            break
        joined = longer
    return joined


def clipped(text: str) -> str:
    """Return at most TEXT_LIMIT octets of *text*, in such as every database takes."""
    octets = text.encode("utf-8", "replace")[:TEXT_LIMIT]
    return octets.decode("utf-8", "ignore").replace("\0", "?")


def both_verdicts(snapshot: Snapshot, client: Client, mail: Mail, rcpt: str, verdict: Verdict) -> tuple[str, str]:
    """Return what the rule sets 2023-11-01 and legacy say, where *verdict* is of the one in force (R1).

    They part only where legacy relays by P2 what the other refuses. *mail* has the header From.
    """
    in_force = snapshot.config.relay.requirements
    other, certain = (RuleSet.CURRENT, Result.REFUSE) if in_force is RuleSet.LEGACY else (RuleSet.LEGACY, Result.RELAY)
    if verdict.result is certain or verdict.result not in (Result.REFUSE, Result.RELAY):
        return verdict.result.value, verdict.result.value
    result = attribute(client, mail, domain_of(rcpt), snapshot.rules, other).result
    values = {in_force: verdict.result.value, other: result.value}
    return values[RuleSet.CURRENT], values[RuleSet.LEGACY]


def verdicts_without_p2(verdict: Verdict) -> tuple[str, str]:
    """Return the same where P2 is not known, and *verdict* is of 2023-11-01: legacy lets through what that does."""
    value = verdict.result.value
    return value, "" if verdict.result is Result.REFUSE else value


def with_verdicts(
    entry: Entry, verdict: Verdict, both: tuple[str, str], upstream: Optional[Verdict], **fields: Any
) -> Entry:
    """Return *entry* with *verdict*, of the rule set in force, and what *both* rule sets say.

    upstream: what Exchange Online will say, None where that is not known. fields: what else is to be set: to replace
    all of it at once takes a third of the time.
    """
    return entry._replace(
        organization=verdict.organization.name if verdict.organization else "",
        connector=verdict.connector.name if verdict.connector else "",
        reason=verdict.reason.value,
        verdict_current=both[0],
        verdict_legacy=both[1],
        upstream=upstream_outcome(upstream),
        **fields,
    )


def upstream_outcome(verdict: Optional[Verdict]) -> str:
    """Return what Exchange Online will say, "" where that is not known."""
    return outcome(verdict) if verdict else ""


def listed(names: Iterable[str]) -> str:
    """Return the text for certificate_names or header_from. No name is two: a CN may be "evil.example, contoso.com"."""
    return ", ".join(name.replace(",", ";") for name in names)


def size_of(text: str) -> Optional[int]:
    """Return the size that a client declares by SIZE= (RFC 1870), None where that tells nothing."""
    return int(text) or None if text.isascii() and text.isdigit() and len(text) < 16 else None


def sender(snapshot: Snapshot, reverse_path: str) -> tuple[str, int]:
    """Return the domain of P1, "" for none, and whether it counts as accepted (R1, R4)."""
    domain = domain_of(reverse_path)
    accepted = snapshot.rules.accepted(domain) if domain else None
    return domain or "", int(accepted is not None and snapshot.rules.counts(accepted))
