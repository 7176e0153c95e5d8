# SPDX-License-Identifier: GPL-3.0-or-later
"""What a milter connection leaves behind of its messages: lines in the log, records in the ledger, counts.

A refusal is told here, too: who is refused gets the reference under which it stands in log and ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from gatepost.milter import recording
from gatepost.milter.recording import Circumstances
from gatepost.milter.transaction import Transaction
from gatepost.relay import Result
from gatepost.service import flow, log, metrics
from gatepost.service.client_names import UNKNOWN, Name, reported
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.ledger import DEFER, REJECT, TURNED_DOWN
from gatepost.service.reference import new_reference
from gatepost.service.replies import (
    FAULT,
    LEDGER_AWAY,
    RELAY_DEFERRED,
    RELAY_DENIED,
    TOO_MANY_TAGS,
    UNREWRITABLE,
    Reply,
)
from gatepost.service.rewriting import Rewritten
from gatepost.service.series import Series
from gatepost.service.shared import Shared
from gatepost.service.snapshot import Snapshot
from gatepost.service.store import StoreError
from gatepost.service.upstream import log_fields, refuses, upstream_labels, why_refused


class Journal:
    """The journal of one connection. helo: the client's HELO name, "" where it is not known.

    macro, clock: as `Session` has them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        shared: Shared,
        series: Series,
        macro: Callable[[str], str],
        clock: Callable[[], float],
    ) -> None:
        self.helo = ""
        self._snapshot = snapshot
        self._shared = shared
        self._series = series
        self._macro = macro
        self._clock = clock
        self._ip = ""
        self._here = False
        self._egress = False
        self._name = UNKNOWN

    def begin(self, ip: Optional[str], name: str, *, local: bool, egress: bool) -> None:
        """Begin with a client. *name*: its name where the MTA has verified that. local: it is sendmail(1)."""
        self.helo = ""
        self._ip = ip or ""
        self._egress = egress
        self._here = local or egress
        self._name = self._name_from_mta(name)

    def _name_from_mta(self, name: str) -> Name:
        """Return what the MTA knows of the client's name, for the ledger; where that is little, DNS begins to be asked.

        Postfix and Sendmail define {client_resolve} alike: OK, FORGED, TEMP, FAIL; Postfix also says FAIL where it was
        told not to ask.
        """
        if self._shared.spool is None or self._here:
            return UNKNOWN
        resolved = self._macro("{client_resolve}")
        known = reported(name if resolved == "OK" else "", self._macro("{client_ptr}") if resolved != "OK" else "")
        if resolved == "TEMP":
            known = known[0], ""
        if not known[1] and self._ip and self._shared.fcrdns:
            self._shared.fcrdns.refresh(self._ip, int(self._clock()))
        return known

    def _known_name(self) -> Name:
        """Return the client's name as far as it is known by now; nobody waits for DNS."""
        if self._name[1] or not self._ip or self._here or self._shared.fcrdns is None:
            return self._name
        found = self._shared.fcrdns.known(self._ip, int(self._clock()))
        return found if found[1] else self._name

    def judged(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> None:
        """Count a verdict; log a refusal that the mode makes none."""
        verdict = judgement.verdict
        self._series.add(metrics.DECISIONS, flow.labels(verdict))
        if judgement.upstream:
            self._series.add(metrics.UPSTREAM_DECISIONS, upstream_labels(judgement.upstream))
        if verdict.result is Result.REFUSE and not judgement.enforce:
            transaction.reference = self.reference(transaction)
            self._log("monitor", transaction, judgement, f"to={log.address(rcpt)}, ")

    def refused(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> Optional[Reply]:
        """Return the reply to a recipient that is not taken."""
        if judgement.treatment is Treatment.UNREWRITABLE:
            return self._unrewritable(transaction, rcpt, judgement)
        if judgement.treatment is Treatment.UPSTREAM and judgement.upstream:
            return self._refused_upstream(transaction, rcpt, judgement, why_refused(judgement.upstream))
        if judgement.treatment not in (Treatment.REFUSE, Treatment.DEFER):
            return None
        later = judgement.treatment is Treatment.DEFER
        transaction.reference = self.reference(transaction)
        self._log("defer" if later else "reject", transaction, judgement, f"to={log.address(rcpt)}, ")
        self.record_refusal(transaction, rcpt, judgement, action=DEFER if later else REJECT)
        return (RELAY_DEFERRED if later else RELAY_DENIED).with_reference(transaction.reference)

    def _refused_upstream(self, transaction: Transaction, rcpt: str, judgement: Judgement, reason: str) -> Reply:
        transaction.reference = self.reference(transaction)
        self._log("reject", transaction, judgement, f"to={log.address(rcpt)}, ", reason=reason)
        self.record_refusal(transaction, rcpt, judgement, reason)
        return RELAY_DENIED.with_reference(transaction.reference)

    def _unrewritable(self, transaction: Transaction, rcpt: str, judgement: Judgement) -> Reply:
        self._log("reject", transaction, judgement, f"to={log.address(rcpt)}, ", reason="sender-unrewritable")
        self.record_refusal(transaction, rcpt, judgement, "sender-unrewritable")
        return UNREWRITABLE

    def refused_srs(self, transaction: Transaction, rcpt: str, reply: Reply, reason: str) -> Reply:
        """Return *reply*, to one of our SRS addresses."""
        action = "reject" if reply.code >= 500 else "defer"
        self._log(action, transaction, None, f"to={log.address(rcpt)}, ", reason=reason)
        if reply.code >= 500:
            self.record_refusal(transaction, rcpt, None, reason)
        return reply

    def too_many_tags(self, transaction: Transaction) -> Reply:
        """Return the reply to a message that has more headers which only gatepost may set than can be removed."""
        reason = "too-many-tags"
        for item in transaction.recipients:
            self.record_refusal(transaction, item.rcpt, item.judgement, reason)
        for path, _ in transaction.returning:
            self.record_refusal(transaction, path.strip("<>"), None, reason)
        self._series.add(metrics.MESSAGES, ("milter", REJECT))
        first = transaction.recipients[0].judgement if transaction.recipients else None
        count = len(transaction.recipients) + len(transaction.returning)
        self._log(REJECT, transaction, first, f"nrcpt={count}, ", reason)
        return TOO_MANY_TAGS

    def store_failed(self, error: StoreError) -> None:
        """Log and count that the store was away."""
        log.error(f"{self._macro('i') or 'NOQUEUE'}: {error}")
        self._series.add(metrics.ERRORS, ("milter", "store"))

    def egress_fault(self, transaction: Transaction, why: str) -> Reply:
        """Return the reply to what came by the egress hop and can't be rewritten."""
        sender = log.address(transaction.reverse_path)
        log.error(f"{self._macro('i') or 'NOQUEUE'}: egress: {sender} not rewritten: {why}")
        self._series.add(metrics.ERRORS, ("milter", "egress"))
        return FAULT

    def finish(self, transaction: Transaction, action: str, rewritten: Optional[Rewritten] = None) -> Optional[Reply]:
        """Record, log and count the end of a message, one line for all its recipients.

        Return a reply where it can't be recorded and must be.
        """
        recorded = transaction.bypassed or self._record(transaction, action, rewritten.address if rewritten else "")
        if not recorded and self._snapshot.config.ledger.required:
            return LEDGER_AWAY
        self._series.add(metrics.MESSAGES, ("milter", action))
        if rewritten:
            self._series.add(metrics.SRS_REWRITES, (rewritten.form,))
        judgements = [item.judgement for item in transaction.recipients]
        concerned = (item for item in judgements if item.treatment is not Treatment.KEEP or refuses(item.upstream))
        judgement = next(concerned, judgements[0] if judgements else None)
        details = f"rewritten={log.address(rewritten.address)}, " if rewritten else ""
        if self._egress:
            details += f"to={log.address(transaction.egress_rcpt)}, hop=egress, "
        elif not transaction.bypassed:
            details += f"nrcpt={len(transaction.recipients) + len(transaction.returning)}, "
        if transaction.returning:
            details += f"returned={log.address(transaction.returning[0][1])}, "
        if transaction.spared:
            details += "spf=spared, "
        self._log(action, transaction, judgement, details)
        return None

    def _record(self, transaction: Transaction, action: str, rewritten: str) -> bool:
        """Write the message into the ledger. False: that went wrong."""
        spool = self._shared.spool
        if spool is None:
            return True
        seen, reference = self._circumstances(transaction), self.reference(transaction)
        if self._egress:
            organization = transaction.hop_organization(self._snapshot)
            records = recording.egress(seen, reference, rewritten, organization)
        else:
            records = recording.ingress(seen, reference, action, rewritten)
        return not records or spool.add(records)

    def record_refusal(
        self,
        transaction: Transaction,
        rcpt: str,
        judgement: Optional[Judgement],
        reason: str = "",
        action: str = REJECT,
    ) -> None:
        """Write a recipient that is refused, or put off, into the ledger."""
        spool = self._shared.spool
        if spool is not None:
            seen = self._circumstances(transaction)
            spool.add_refusal(recording.refused(seen, self.reference(transaction), rcpt, judgement, reason, action))

    def reference(self, transaction: Transaction) -> str:
        """Return the message's reference, the same in all of its records."""
        if not transaction.reference and not transaction.ledger_reference:
            transaction.ledger_reference = new_reference()
        return transaction.reference or transaction.ledger_reference

    def _circumstances(self, transaction: Transaction) -> Circumstances:
        queue_id = self.queue_id(transaction)
        return Circumstances(
            self._snapshot, transaction, self._clock(), queue_id, self._ip, self.helo, self._known_name()
        )

    def queue_id(self, transaction: Transaction) -> str:
        """Return the message's queue ID, "" where there is none yet. To ask libmilter takes as long as a verdict."""
        transaction.queue_id = transaction.queue_id or self._macro("i")
        return transaction.queue_id

    def _log(
        self,
        action: str,
        transaction: Transaction,
        judgement: Optional[Judgement],
        details: str,
        reason: str = "",
    ) -> None:
        verdict = judgement.verdict if judgement else None
        organization = verdict.organization if verdict else transaction.hop_organization(self._snapshot)
        sender = log.address(transaction.reverse_path)
        fields = f"action={action}, from={sender}, {details}client={self._ip or 'unknown'}"
        if self.helo and action in TURNED_DOWN:
            fields += f", helo={log.helo(self.helo)}"
        if organization:
            fields += f", organization={organization.name}"
        if reason or verdict:
            fields += f", reason={reason or (verdict.reason.value if verdict else '')}"
        for name, value in self._refusal_fields(transaction, judgement).items():
            fields += f", {name}={value}"
        if transaction.reference:
            fields += f", reference={transaction.reference}"
        log.info(f"{self.queue_id(transaction) or 'NOQUEUE'}: {fields}")

    def _refusal_fields(self, transaction: Transaction, judgement: Optional[Judgement]) -> dict[str, str]:
        """Return what a line says of a refusal: Exchange Online's, and of the certificate of a client refused here."""
        if judgement is None:
            return {}
        fields = log_fields(judgement.upstream)
        if judgement.verdict.result is Result.REFUSE:
            fields.update(self._snapshot.certificates.log_fields(transaction.shown))
        return fields
