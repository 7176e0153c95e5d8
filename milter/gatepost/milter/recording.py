# SPDX-License-Identifier: GPL-3.0-or-later
"""What a message leaves in the ledger, as the milter sees it at either hop. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from gatepost.milter.transaction import Recipient, Transaction
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
    listed,
    sender,
    size_of,
    upstream_outcome,
    verdicts_without_p2,
    with_verdicts,
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
    p2 = transaction.p2
    mail = Mail(transaction.reverse_path, p2)
    base = _base(seen, reference, p2, PASS if action == RETURN else action, rewritten)
    records: list[Record] = [_judged(base, seen, mail, item) for item in transaction.recipients]
    for path, original in transaction.returning:
        address = path.strip("<>").lower()
        upstream = upstream_outcome(at_upstream(seen.snapshot, mail, original))
        records.append(
            base._replace(
                recipient=address, forwarded_to=original.lower(), rewritten="", action=RETURN, upstream=upstream
            )
        )
        if path not in transaction.returned_by_mta:  # else policyd has recorded the look-up
            records.append(Bounced(address, seen.time))
    return records


def _judged(base: Entry, seen: Circumstances, mail: Mail, item: Recipient) -> Entry:
    """Return the entry of a recipient with the verdicts.

    Where policyd has decided, its own entry has that of the rule set in force.
    """
    verdict = item.judgement.verdict
    both = both_verdicts(seen.snapshot, item.client, mail, item.rcpt, verdict)
    mended = verdict.result is Result.REFUSE and item.judgement.treatment is Treatment.REWRITE
    fields: dict[str, Any] = {
        "recipient": (item.by_policyd or item.rcpt).lower(),
        "certificate_names": listed(item.client.certificate_names),
        "action": MEND if mended else base.action,
    }
    if item.by_policyd:
        return base._replace(verdict_legacy=both[1], **fields)
    return with_verdicts(base, verdict, both, item.judgement.upstream, **fields)


def refused(
    seen: Circumstances,
    reference: str,
    rcpt: str,
    judgement: Optional[Judgement],
    reason: str = "",
    action: str = REJECT,
) -> Entry:
    """Return the record of a recipient that is refused, or put off. At RCPT P2, which comes later, is unknown."""
    p2 = seen.transaction.p2
    entry = _base(seen, reference, p2, action)._replace(recipient=rcpt.lower())
    if judgement is not None:
        verdict = judgement.verdict
        both = verdicts_without_p2(verdict)
        if p2 or seen.snapshot.config.relay.requirements is RuleSet.LEGACY:
            mail = Mail(seen.transaction.reverse_path, p2)
            both = both_verdicts(seen.snapshot, seen.transaction.client, mail, rcpt, verdict)
        entry = with_verdicts(entry, verdict, both, judgement.upstream)
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
    entry = _base(seen, reference, transaction.p2, REWRITE, rewritten)._replace(
        recipient=origin or rcpt,
        queue_id="",
        egress_queue_id=seen.queue_id,
        client="",
        helo="",
        certificate_names="",
        forwarded_to=rcpt if origin not in ("", rcpt) else "",
        organization=organization.name if organization else "",
        requirements="",
        upstream=upstream_outcome(at_upstream(seen.snapshot, Mail(rewritten), rcpt)),
    )
    return [entry]


def _base(seen: Circumstances, reference: str, p2: Sequence[str], action: str, rewritten: str = "") -> Entry:
    transaction = seen.transaction
    domain, accepted = sender(seen.snapshot, transaction.reverse_path)
    return Entry(
        reference=reference,
        recipient="",
        time=seen.time,
        queue_id=seen.queue_id,
        client=seen.ip,
        helo=seen.helo,
        certificate_names=listed(transaction.client.certificate_names),
        reverse_path=transaction.reverse_path.lower(),
        sender_domain=domain,
        sender_accepted=accepted,
        rewritten=rewritten.lower(),
        header_from=listed(p2)[:TEXT_LIMIT].lower(),
        requirements=seen.snapshot.config.relay.requirements.value,
        action=action,
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
