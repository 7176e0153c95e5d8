# SPDX-License-Identifier: GPL-3.0-or-later
"""What a message leaves in the ledger, as the milter sees it at either hop. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from gatepost.milter.transaction import Recipient, Transaction, header_addresses
from gatepost.relay import Mail, Organization, Result, RuleSet
from gatepost.service.client_names import UNKNOWN, Name
from gatepost.service.flow import Judgement, Treatment, at_upstream
from gatepost.service.ledger import (
    MEND,
    PASS,
    REJECT,
    RETURN,
    REWRITE,
    TEXT_LIMIT,
    Bounced,
    Entry,
    Record,
    both_verdicts,
    sender,
    size_of,
    verdicts_without_p2,
    with_upstream,
    with_verdict,
)
from gatepost.service.rewriting import orcpt_address
from gatepost.service.snapshot import Snapshot


class Circumstances(NamedTuple):
    """What is the same for all recipients. time: Unix seconds. ip, helo, name: the client's, "" where not known."""

    snapshot: Snapshot
    transaction: Transaction
    time: float
    queue_id: str
    ip: str
    helo: str
    name: Name = UNKNOWN


def ingress(seen: Circumstances, reference: str, action: str, rewritten: str) -> list[Record]:
    """Return the records of a message at its end; *rewritten*: its new P1, "" where it stays.

    action: what was done with all of it; what goes back to an original sender is returned whatever else was done.
    """
    transaction = seen.transaction
    p2 = header_addresses(transaction.headers_from)
    mail, base = Mail(transaction.reverse_path, p2), _base(seen, reference, p2)
    done = base._replace(rewritten=rewritten.lower(), action=PASS if action == RETURN else action)
    records: list[Record] = [_judged(done, seen, mail, item) for item in transaction.recipients]
    for path, original in transaction.returning:
        address = path.strip("<>").lower()
        back = base._replace(recipient=address, forwarded_to=original.lower(), action=RETURN)
        back = with_upstream(back, at_upstream(seen.snapshot, mail, original))
        records.append(back)
        if path not in transaction.returned_by_mta:  # else policyd has recorded the look-up
            records.append(Bounced(address, seen.time))
    return records


def _judged(base: Entry, seen: Circumstances, mail: Mail, item: Recipient) -> Entry:
    """Return the entry of a recipient with the verdicts.

    Where policyd has decided, its own entry has that of the rule set in force.
    """
    verdict = item.judgement.verdict
    both = both_verdicts(seen.snapshot, item.client, mail, item.rcpt, verdict)
    names = ", ".join(item.client.certificate_names)
    entry = base._replace(recipient=(item.by_policyd or item.rcpt).lower(), certificate_names=names)
    if verdict.result is Result.REFUSE and item.judgement.treatment is Treatment.REWRITE:
        entry = entry._replace(action=MEND)
    if item.by_policyd:
        return entry._replace(verdict_legacy=both[1])
    return with_upstream(with_verdict(entry, verdict, both), item.judgement.upstream)


def refused(
    seen: Circumstances,
    reference: str,
    rcpt: str,
    judgement: Optional[Judgement],
    reason: str = "",
    action: str = REJECT,
) -> Entry:
    """Return the record of a recipient that is refused, or put off. At RCPT P2, which comes later, is unknown."""
    p2 = header_addresses(seen.transaction.headers_from)
    entry = _base(seen, reference, p2)._replace(recipient=rcpt.lower(), action=action)
    if judgement is not None:
        verdict = judgement.verdict
        both = verdicts_without_p2(verdict)
        if p2 or seen.snapshot.config.relay.requirements is RuleSet.LEGACY:
            mail = Mail(seen.transaction.reverse_path, p2)
            both = both_verdicts(seen.snapshot, seen.transaction.client, mail, rcpt, verdict)
        entry = with_upstream(with_verdict(entry, verdict, both), judgement.upstream)
    return entry._replace(reason=reason or entry.reason)


def egress(seen: Circumstances, reference: str, rewritten: str, organization: Optional[Organization]) -> list[Record]:
    """Return the record of a copy that passes the egress hop. It is ingress's recipient that it joins.

    The client is this host itself here, which ingress knows better.
    """
    transaction = seen.transaction
    rcpt = transaction.egress_rcpt.lower()
    origin = ""
    if transaction.hop:
        origin = (orcpt_address(transaction.orcpt) or transaction.sieve.strip("<>")).lower()
    entry = _base(seen, reference, header_addresses(transaction.headers_from))._replace(
        recipient=origin or rcpt,
        queue_id="",
        egress_queue_id=seen.queue_id,
        client="",
        helo="",
        certificate_names="",
        rewritten=rewritten.lower(),
        forwarded_to=rcpt if origin not in ("", rcpt) else "",
        organization=organization.name if organization else "",
        requirements="",
        action=REWRITE,
    )
    return [with_upstream(entry, at_upstream(seen.snapshot, Mail(rewritten), rcpt))]


def _base(seen: Circumstances, reference: str, p2: Sequence[str]) -> Entry:
    transaction = seen.transaction
    domain, accepted = sender(seen.snapshot, transaction.reverse_path)
    return Entry(
        reference=reference,
        recipient="",
        time=seen.time,
        queue_id=seen.queue_id,
        client=seen.ip,
        helo=seen.helo,
        certificate_names=", ".join(transaction.client.certificate_names),
        reverse_path=transaction.reverse_path.lower(),
        sender_domain=domain,
        sender_accepted=accepted,
        header_from=", ".join(p2)[:TEXT_LIMIT].lower(),
        requirements=seen.snapshot.config.relay.requirements.value,
        size_bytes=transaction.size_bytes,
        message_id=transaction.message_id[:TEXT_LIMIT],
        subject=transaction.subject[:TEXT_LIMIT],
        reverse_name=seen.name[0],
        fcrdns=seen.name[1],
    )


def declared_size(parameters: Sequence[str]) -> Optional[int]:
    """Return SIZE= of the parameters of MAIL, None where the client does not tell."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.upper() == "SIZE":
            return size_of(value)
    return None
