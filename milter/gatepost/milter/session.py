# SPDX-License-Identifier: GPL-3.0-or-later
"""One SMTP connection as a milter sees it: collect what each stage brings, ask the core, say what to do.

No pymilter in here: the daemon calls one method a stage, in libmilter's order, and applies what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import getaddresses
from typing import Optional

from gatepost.relay import Client, Mail, Organization, Result
from gatepost.service import flow, log, metrics
from gatepost.service.flow import Egress, Judgement, Treatment
from gatepost.service.hops import Hop, Hops, organization_digest
from gatepost.service.reference import new_reference
from gatepost.service.replies import (
    BAD_RECIPIENT,
    BAD_SENDER,
    FAULT,
    ONE_BY_ONE,
    RELAY_DENIED,
    TRY_APART,
    UNREWRITABLE,
    Reply,
)
from gatepost.service.series import Series
from gatepost.service.snapshot import Snapshot
from gatepost.srs import AddressError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RECEIVED = re.compile(r"(?:^|\n\s)by (\S+) \([^\n]*\)(?: with \S+)?\s+id (\w+)")


@dataclass(frozen=True)
class Recipient:
    """One that was let through RCPT, with what was decided of it there."""

    rcpt: str
    judgement: Judgement


@dataclass
class Transaction:
    """One message. *reverse_path*: P1 without <>; *headers_from*: the values of its From headers.

    orcpt, hop: on the egress hop, the value of ORCPT and what ingress knew of the message. own_hosts: the names of this
    Postfix in Received lines, empty below the first line that is another's. refusal: of a message
    from sendmail(1), which can be answered at its end only.
    """

    reverse_path: str
    client: Client
    bypassed: bool
    recipients: list[Recipient] = field(default_factory=list)
    headers_from: list[str] = field(default_factory=list)
    egress_rcpt: str = ""
    orcpt: str = ""
    hop: Optional[Hop] = None
    own_hosts: Optional[set[str]] = None
    reference: str = ""
    refusal: Optional[Reply] = None


class Session:
    """One connection, from connect to close.

    macro: returns the value of an MTA macro at the present stage, "" where there is none. clock: Unix seconds.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        hops: Hops,
        series: Series,
        macro: Callable[[str], str],
        clock: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._hops = hops
        self._series = series
        self._macro = macro
        self._clock = clock
        self._ip: Optional[str] = None
        self._local = False
        self._egress = False
        self._hostname = ""
        self._client: Optional[Client] = None
        self._identity = ("", "")
        self._transaction: Optional[Transaction] = None
        self._failed = True  # until connect has come through

    @property
    def busy(self) -> bool:
        """Tell whether a message is under way."""
        return self._transaction is not None

    def fail(self) -> None:
        """Put off what this connection still brings: a stage of it went wrong."""
        self._failed = True
        self._transaction = None

    def connect(self, ip: Optional[str], port: int) -> None:
        """Begin. *ip*: None where the MTA knows none. Postfix reports sendmail(1) as a loopback client on port 0."""
        self._failed = False
        self._client = self._transaction = None  # an MTA may use one milter connection for several clients
        self._ip = ip
        self._local = port == 0 and ip in ("127.0.0.1", "::1")
        config = self._snapshot.config.egress
        self._egress = config is not None and self._macro("{daemon_name}") == config.daemon_name
        if self._egress:
            self._hostname = self._macro("j")

    def mail(self, path: str) -> None:
        """Begin a message with the argument *path* of MAIL FROM."""
        self._transaction = None
        if self._failed:
            return
        reverse_path = path.strip("<>") if path.startswith("<") else path
        if reverse_path and not flow.plain(reverse_path):  # how the MTA reads it is what counts
            reverse_path = self._macro("{mail_addr}") or reverse_path
        self._transaction = Transaction(reverse_path, self._identified(), self._snapshot.bypassed())

    def _identified(self) -> Client:
        """Return the client as TLS and SASL show it; both may change between the messages of a connection."""
        # Postfix sets an issuer for a certificate that it trusts, and for no other (R10).
        name = self._macro("{cert_subject}") if self._macro("{cert_issuer}") else ""
        identity = (name, self._macro("{auth_authen}"))
        if self._client is None or identity != self._identity:
            exempt = self._snapshot.config.relay.exempt
            self._client = self._snapshot.rules.client(
                self._ip,
                [name] if name else [],
                authenticated=bool(identity[1]) and "authenticated" in exempt,
                local=self._local and "local" in exempt,
            )
            self._identity = identity
        return self._client

    def rcpt(self, path: str, parameters: Sequence[str]) -> Optional[Reply]:
        """Decide on a recipient: the argument of RCPT TO with its ESMTP *parameters*."""
        transaction = self._transaction
        if transaction is None:
            return FAULT
        if transaction.bypassed:
            return None
        rcpt = path.strip("<>") if path.startswith("<") else path
        if self._egress:
            return self._egress_rcpt_stage(transaction, rcpt, parameters)
        reply = self._ingress_rcpt_stage(transaction, rcpt)
        if reply and self._local:
            # Postfix can't refuse a recipient of sendmail(1): it would try the message again for ever.
            transaction.refusal = transaction.refusal or reply
            return None
        return reply

    def _ingress_rcpt_stage(self, transaction: Transaction, rcpt: str) -> Optional[Reply]:
        if _CONTROL.search(transaction.reverse_path):
            return BAD_SENDER
        if _CONTROL.search(rcpt):
            return BAD_RECIPIENT
        if not flow.plain(rcpt) or flow.routed(rcpt):  # only the MTA knows where that leads
            rcpt = self._macro("{rcpt_addr}") or rcpt
        mail = Mail(transaction.reverse_path)
        judgement = flow.judge(self._snapshot, transaction.client, mail, rcpt)
        if self._snapshot.config.relay.enforced_by != "milter":
            if judgement.treatment is Treatment.REFUSE:  # policyd has seen it, and left it to Postfix
                judgement = replace(judgement, treatment=Treatment.KEEP)
        elif judgement.treatment is not Treatment.UNDECIDED:
            self._judged(transaction, rcpt, judgement)
        if judgement.treatment is Treatment.REFUSE:
            return self._refuse(transaction, rcpt, judgement)
        if judgement.treatment is Treatment.UNREWRITABLE:
            return self._unrewritable(transaction, rcpt, judgement)
        if not self._may_join(transaction, judgement):
            return TRY_APART
        transaction.recipients.append(Recipient(rcpt, judgement))
        return None

    def _may_join(self, transaction: Transaction, judgement: Judgement) -> bool:
        """Tell whether a recipient may join those before it. sendmail(1) can't be asked for a message each."""
        if self._local or not transaction.recipients:
            return True
        first = transaction.recipients[0].judgement
        return flow.together(self._snapshot, first.treatment, judgement.treatment)

    def _egress_rcpt_stage(self, transaction: Transaction, rcpt: str, parameters: Sequence[str]) -> Optional[Reply]:
        if transaction.egress_rcpt:
            return ONE_BY_ONE
        transaction.egress_rcpt = rcpt
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.upper() == "ORCPT":
                transaction.orcpt = value
        return None

    def header(self, name: str, value: str) -> None:
        """Take note of a header: From for the rule set legacy, our own Received lines on the egress hop."""
        transaction = self._transaction
        if transaction is None:
            return
        name = name.lower()
        if name == "from" and not self._egress:
            transaction.headers_from.append(value)
        elif name == "received" and self._egress and transaction.hop is None:
            self._follow_received(transaction, value)

    def _follow_received(self, transaction: Transaction, value: str) -> None:
        """Look the message up by the queue IDs of this Postfix: the topmost line's, and those below it for as long as
        they are its own; local(8) adds one for each forwarding."""
        found = _RECEIVED.search(value)
        if transaction.own_hosts is None:
            transaction.own_hosts = {self._hostname, found[1]} if found else set()
        if found is None or found[1] not in transaction.own_hosts:
            transaction.own_hosts = set()
            return
        transaction.hop = self._hops.get(found[2], int(self._clock()))
        transaction.reference = transaction.hop.reference if transaction.hop else ""

    def eoh(self) -> Optional[Reply]:
        """Decide what only the header From can decide (rule set legacy), for the whole message."""
        transaction = self._transaction
        if transaction is None:
            return FAULT
        mail = Mail(transaction.reverse_path, header_addresses(transaction.headers_from))
        for index, recipient in enumerate(transaction.recipients):
            if recipient.judgement.treatment is Treatment.UNDECIDED:
                judgement = flow.judge(self._snapshot, transaction.client, mail, recipient.rcpt, headers_seen=True)
                self._judged(transaction, recipient.rcpt, judgement)
                if judgement.treatment is Treatment.REFUSE:
                    return self._refuse(transaction, recipient.rcpt, judgement)
                if judgement.treatment is Treatment.UNREWRITABLE:
                    return self._unrewritable(transaction, recipient.rcpt, judgement)
                transaction.recipients[index] = Recipient(recipient.rcpt, judgement)
        return None

    def eom(self, change_sender: Callable[[str], None]) -> Optional[Reply]:
        """End the message; *change_sender* sets another P1 and must be the last thing that can fail."""
        transaction = self._transaction
        if transaction is None:
            return FAULT
        self._transaction = None
        if transaction.bypassed:
            self._finish(transaction, "bypass")
            return None
        now = int(self._clock())
        if self._egress:
            return self._egress_eom(transaction, change_sender, now)
        if transaction.refusal:
            return transaction.refusal
        if any(item.judgement.treatment is Treatment.UNDECIDED for item in transaction.recipients):
            return FAULT  # the end of the headers never came
        rewritten = [item for item in transaction.recipients if item.judgement.treatment is Treatment.REWRITE]
        # Of mail from sendmail(1) inside recipients then get the rewritten sender, too.
        alone = len(rewritten) == len(transaction.recipients) or (self._local and not self._snapshot.config.egress)
        if rewritten and alone:
            organization = rewritten[0].judgement.verdict.organization
            sender = flow.relayed(self._snapshot, transaction.reverse_path, organization, now)
            change_sender(sender)
            self._finish(transaction, "rewrite", sender)
            return None
        if self._snapshot.config.egress and transaction.recipients:
            self._remember(transaction, now)
        self._finish(transaction, "pass")
        return None

    def abort(self) -> None:
        """Forget the message; Postfix sends this after each one, too."""
        self._transaction = None

    def _remember(self, transaction: Transaction, now: int) -> None:
        """Leave a note for the egress hop where this message may come by there."""
        queue_id = self._macro("i")
        if queue_id and flow.leaving(self._snapshot, transaction.reverse_path) is Egress.REWRITE:
            outside = [item for item in transaction.recipients if item.judgement.treatment is Treatment.REWRITE]
            organization = (outside or transaction.recipients)[0].judgement.verdict.organization
            digest = organization_digest(organization.name) if organization else b""
            transaction.reference = transaction.reference or new_reference()
            self._hops.put(queue_id, Hop(digest, transaction.reference), now)

    def _egress_eom(self, transaction: Transaction, change_sender: Callable[[str], None], now: int) -> Optional[Reply]:
        """Rewrite what came by the egress hop. A message leaves here with a sender that leaves alone, or not at all."""
        if flow.leaving(self._snapshot, transaction.reverse_path) is Egress.OUT:
            # policyd sent it here by another configuration; by the next attempt they agree. Passed on, it would loop.
            return self._egress_fault(transaction, "it need not be")
        try:
            sender, form = self._egress_sender(transaction, now)
        except AddressError as error:
            return self._egress_fault(transaction, str(error))
        if flow.leaving(self._snapshot, sender) is not Egress.OUT:
            return self._egress_fault(transaction, f"<{sender}> would come by here again")
        change_sender(sender)
        self._series.add(metrics.SRS_REWRITES, (form,))
        self._finish(transaction, "rewrite", sender)
        return None

    def _egress_sender(self, transaction: Transaction, now: int) -> tuple[str, str]:
        """Return the sender and its form. Only mail that ingress has seen is sent on in a mailbox's name."""
        mailbox = flow.forwarder(self._snapshot, transaction.orcpt, transaction.egress_rcpt)
        if mailbox and transaction.hop:
            return flow.forwarded(self._snapshot, transaction.reverse_path, mailbox, now), "forward"
        organization = self._hop_organization(transaction.hop)
        if organization is None and mailbox:
            accepted = self._snapshot.rules.accepted(mailbox.domain)
            organization = accepted.organization if accepted else None
        return flow.relayed(self._snapshot, transaction.reverse_path, organization, now), flow.BOUNCES

    def _hop_organization(self, hop: Optional[Hop]) -> Optional[Organization]:
        return self._snapshot.organization_by_digest.get(hop.organization) if hop else None

    def _egress_fault(self, transaction: Transaction, why: str) -> Reply:
        log.error(f"{self._macro('i') or 'NOQUEUE'}: egress: <{transaction.reverse_path}> not rewritten: {why}")
        self._series.add(metrics.ERRORS, ("milter", "egress"))
        return FAULT

    def _refuse(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> Reply:
        transaction.reference = transaction.reference or new_reference()
        self._log("reject", transaction, judgement, f"to={log.address(rcpt)}, ")
        return RELAY_DENIED.with_reference(transaction.reference)

    def _unrewritable(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> Reply:
        self._log("reject", transaction, judgement, f"to={log.address(rcpt)}, ", reason="sender-unrewritable")
        return UNREWRITABLE

    def _judged(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> None:
        """Count a verdict; log a refusal that the mode makes none."""
        verdict = judgement.verdict
        self._series.add(metrics.DECISIONS, flow.labels(verdict))
        if verdict.result is Result.REFUSE and not judgement.enforce:
            transaction.reference = transaction.reference or new_reference()
            self._log("monitor", transaction, judgement, f"to={log.address(rcpt)}, ")

    def _finish(self, transaction: Transaction, action: str, sender: str = "") -> None:
        """Log and count the end of a message, one line for all its recipients."""
        self._series.add(metrics.MESSAGES, ("milter", action))
        if action == "rewrite" and not self._egress:
            self._series.add(metrics.SRS_REWRITES, (flow.BOUNCES,))
        rewritten = (item for item in transaction.recipients if item.judgement.treatment is Treatment.REWRITE)
        first = next(rewritten, transaction.recipients[0] if transaction.recipients else None)
        judgement = first.judgement if first else None
        details = f"rewritten={log.address(sender)}, " if sender else ""
        if self._egress:
            details += f"to={log.address(transaction.egress_rcpt)}, hop=egress, "
        elif not transaction.bypassed:
            details += f"nrcpt={len(transaction.recipients)}, "
        self._log(action, transaction, judgement, details)

    def _log(
        self,
        action: str,
        transaction: Transaction,
        judgement: Optional[Judgement],
        details: str,
        reason: str = "",
    ) -> None:
        organization = judgement.verdict.organization if judgement else self._hop_organization(transaction.hop)
        fields = [
            f"action={action}, from={log.address(transaction.reverse_path)}, {details}client={self._ip or 'unknown'}",
            f"organization={organization.name}" if organization else "",
            f"reason={reason or judgement.verdict.reason.value}" if judgement else "",
            f"reference={transaction.reference}" if transaction.reference else "",
        ]
        log.info(f"{self._macro('i') or 'NOQUEUE'}: " + ", ".join(filter(None, fields)))


def header_addresses(values: Iterable[str]) -> tuple[str, ...]:
    """Return the addr-specs in the values of From headers, as they stand there (RFC 5322, 3.6.2)."""
    try:
        return tuple(address for _, address in getaddresses(list(values)) if address)
    except RecursionError:  # groups in groups in groups
        return ()
