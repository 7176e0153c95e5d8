# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy request leaves in the ledger. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from gatepost.relay import Verdict
from gatepost.service.ledger import Entry, sender, with_verdict
from gatepost.service.snapshot import Snapshot

_TRUSTED_ONLY = b"ccert_issuer"


def entry(
    snapshot: Snapshot,
    request: Mapping[bytes, bytes],
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

    def text(name: bytes) -> str:
        return request.get(name, b"").decode("utf-8", "surrogateescape")

    reverse_path, size = text(b"sender"), text(b"size")
    domain, accepted = sender(snapshot, reverse_path)
    made = Entry(
        reference=reference,
        recipient=text(b"recipient").lower(),
        time=now,
        queue_id=text(b"queue_id"),
        client=text(b"client_address"),
        helo=text(b"helo_name"),
        certificate_names=text(b"ccert_subject") if request.get(_TRUSTED_ONLY) else "",
        reverse_path=reverse_path.lower(),
        sender_domain=domain,
        sender_accepted=accepted,
        requirements=snapshot.config.relay.requirements.value,
        action=action,
        size_bytes=int(size) if size.isdigit() and len(size) < 16 and size.strip("0") else None,
    )
    if verdict is not None:
        made = with_verdict(made, snapshot, verdict)
        if made.verdict_current != "refuse":
            made = made._replace(verdict_legacy=made.verdict_current)
    return made._replace(reason=reason or made.reason)
