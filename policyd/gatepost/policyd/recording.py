# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy request leaves in the ledger. Pure."""

from __future__ import annotations

from typing import Optional

from gatepost.policyd.attributes import Attributes, certificate_name, text
from gatepost.relay import Verdict
from gatepost.service.ledger import Entry, sender, size_of, verdicts_without_p2, with_verdict
from gatepost.service.snapshot import Snapshot


def entry(
    snapshot: Snapshot,
    request: Attributes,
    reference: str,
    now: float,
    action: str,
    verdict: Optional[Verdict] = None,
    reason: str = "",
) -> Entry:
    """Return the entry for the recipient of a request; *now* in Unix seconds.

    verdict: None where none was asked for. reason: why, where that is not the verdict's. P2 is not known here, so what
    the rule set legacy says is not, either, but for what P2 has no say in.
    """
    reverse_path = text(request, b"sender")
    domain, accepted = sender(snapshot, reverse_path)
    made = Entry(
        reference=reference,
        recipient=text(request, b"recipient").lower(),
        time=now,
        queue_id=text(request, b"queue_id"),
        client=text(request, b"client_address"),
        helo=text(request, b"helo_name"),
        certificate_names=certificate_name(request),
        reverse_path=reverse_path.lower(),
        sender_domain=domain,
        sender_accepted=accepted,
        requirements=snapshot.config.relay.requirements.value,
        action=action,
        size_bytes=size_of(text(request, b"size")),
    )
    if verdict is not None:
        made = with_verdict(made, verdict, verdicts_without_p2(verdict))
    return made._replace(reason=reason or made.reason)
