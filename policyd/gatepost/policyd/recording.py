# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy request leaves in the ledger. Pure."""

from __future__ import annotations

from typing import NamedTuple, Optional

from gatepost.policyd.attributes import Attributes, certificate, text
from gatepost.service.client_names import reported
from gatepost.service.flow import Judgement
from gatepost.service.ledger import Entry, listed, sender, size_of, verdicts_without_p2, with_verdicts
from gatepost.service.snapshot import Snapshot

_RECORDED = (
    *(b"sender", b"recipient", b"client_address", b"client_name", b"reverse_client_name", b"helo_name", b"size"),
    *(b"queue_id", b"ccert_subject", b"ccert_issuer", b"ccert_fingerprint"),
)


def recorded(request: Attributes) -> Attributes:
    """Return the attributes that `entry` looks at: a message may have a thousand recipients to remember until DATA."""
    return {name: request.get(name, b"") for name in _RECORDED}


class Passed(NamedTuple):
    """A recipient that was let through at RCPT, of which DATA makes an entry: what `entry` takes."""

    request: Attributes
    reference: str
    now: float
    action: str
    judgement: Optional[Judgement]
    reason: str

    @property
    def recipient(self) -> str:
        return text(self.request, b"recipient").lower()


def entry(
    snapshot: Snapshot,
    request: Attributes,
    reference: str,
    now: float,
    action: str,
    judgement: Optional[Judgement] = None,
    reason: str = "",
    queue_id: Optional[str] = None,
) -> Entry:
    """Return the entry for the recipient of a request; *now* in Unix seconds.

    judgement: None where none was asked for. reason: why, where that is not the verdict's. queue_id: None: the
    request's. P2 is not known here, so what the rule set legacy says is not, either, but for what P2 has no say in.
    """
    reverse_path = text(request, b"sender")
    domain, accepted = sender(snapshot, reverse_path)
    name = reported(text(request, b"client_name"), text(request, b"reverse_client_name"))
    made = Entry(
        reference=reference,
        recipient=text(request, b"recipient").lower(),
        time=now,
        queue_id=text(request, b"queue_id") if queue_id is None else queue_id,
        client=text(request, b"client_address"),
        helo=text(request, b"helo_name"),
        certificate_names=listed(snapshot.certificates.names_of(certificate(request))),
        reverse_path=reverse_path.lower(),
        sender_domain=domain,
        sender_accepted=accepted,
        requirements=snapshot.config.relay.requirements.value,
        action=action,
        size_bytes=size_of(text(request, b"size")),
        reverse_name=name[0],
        fcrdns=name[1],
    )
    if judgement is not None:
        both = verdicts_without_p2(judgement.verdict)
        made = with_verdicts(made, judgement.verdict, both, judgement.upstream)
    return made._replace(reason=reason) if reason else made
