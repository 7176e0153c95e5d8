# SPDX-License-Identifier: GPL-3.0-or-later
"""One SMTP connection as a milter sees it: collect what each stage brings, ask the core, say what to do.

No pymilter in here: the daemon calls one method a stage, in libmilter's order, and applies what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Optional

from gatepost.milter import recording
from gatepost.milter.identity import Identity
from gatepost.milter.journal import Journal
from gatepost.milter.transaction import Changes, Recipient, Transaction
from gatepost.relay import Mail, Result, RuleSet
from gatepost.service import flow, log, metrics, rewriting
from gatepost.service.addresses import domain_of, plain, routed, unquoted
from gatepost.service.flow import WHOLE_MESSAGE, Judgement, Treatment
from gatepost.service.hops import NOTE_AGE_S, Hop, organization_digest, policyd_key
from gatepost.service.ledger import DEFER, QUARANTINE, REJECT
from gatepost.service.ledger import TAG as TAG_ACTION
from gatepost.service.organizations import RefusalAction
from gatepost.service.replies import (
    BAD_RECIPIENT,
    BAD_SENDER,
    BOUNCES_ONLY,
    FAULT,
    ONE_BY_ONE,
    SRS_APART,
    SRS_FORGED,
    STORE_AWAY,
    TRY_APART,
    UNREWRITABLE,
    Reply,
)
from gatepost.service.reversal import Bounce, reverse
from gatepost.service.rewriting import Egress, Rewritten
from gatepost.service.series import Series
from gatepost.service.shared import Shared
from gatepost.service.snapshot import Snapshot
from gatepost.service.srs_config import ReverseBy
from gatepost.service.store import StoreError
from gatepost.srs import Address, AddressError

TAG = "X-Gatepost-Relay"
"""The header of mail that passes although the rule refuses it; from a client it is removed."""
HEADERS = frozenset(("from", "message-id", "subject", "received", "x-sieve-redirected-from", TAG.lower()))
"""P2 and what else the ledger has of a message; on the egress hop our own Received lines; Sieve's; our own."""
_TAGS = 20
"""How many of them are removed. Thousands of changes to one message bring Postfix's cleanup(8) down."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SOURCE_ROUTE = re.compile(r'(?<=^<)@[^:"]*:')  # Postfix forgets it, and knows no such recipient to delete


class Session:
    """One connection, from connect to close.

    macro: returns the value of an MTA macro at the present stage, "" where there is none. clock: Unix seconds.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        shared: Shared,
        series: Series,
        macro: Callable[[str], str],
        clock: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._shared = shared
        self._series = series
        self._macro = macro
        self._clock = clock
        self._ip: Optional[str] = None
        self._local = False
        self._egress = False
        self._hostname = ""
        self._journal = Journal(snapshot, shared, series, macro, clock)
        self._port = -1
        self._identity = Identity(snapshot, shared.presented, None, -1)
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

    def connect(self, ip: Optional[str], port: int, name: str = "") -> None:
        """Begin. *ip*: None where the MTA knows none. *name*: the client's, where the MTA has verified one."""
        self._failed = False
        self._transaction = None
        # anew: an MTA may use one milter connection for several clients
        self._identity = Identity(self._snapshot, self._shared.presented, ip, port)
        self._ip = ip
        self._port = port
        self._local = self._identity.local
        config = self._snapshot.config.egress
        self._egress = config is not None and self._macro("{daemon_name}") == config.daemon_name
        if self._egress:
            self._hostname = self._macro("j")
        self._journal.begin(ip, name, local=self._local, egress=self._egress)

    def helo(self, name: str) -> None:
        """Take note of the client's HELO name, which decides nothing."""
        self._journal.helo = name

    def mail(self, path: str, parameters: Sequence[str] = ()) -> None:
        """Begin a message with the argument *path* of MAIL FROM and its ESMTP *parameters*."""
        self._transaction = None
        if self._failed:
            return
        reverse_path = path.strip("<>") if path.startswith("<") else path
        given = reverse_path
        if reverse_path and not plain(reverse_path):  # how the MTA reads it is what counts
            reverse_path = self._macro("{mail_addr}") or _address_or_null(reverse_path)
        self._transaction = Transaction(reverse_path, *self._identity.at_mail(self._macro), self._snapshot.bypassed())
        self._transaction.given = reverse_path if "@" in given else given
        self._transaction.size_bytes = recording.declared_size(parameters)
        if self._shared.spf and self._may_spare(self._transaction):  # known by the time that it is asked for
            self._shared.spf.refresh(domain_of(reverse_path) or "", int(self._clock()))

    def _may_spare(self, transaction: Transaction) -> bool:
        """Tell whether SPF has a say. Not on the egress hop: what the map has sent there is rewritten."""
        if transaction.bypassed or self._egress:
            return False
        snapshot = self._snapshot
        return snapshot.enforces_at_all and rewriting.leaving(snapshot, transaction.reverse_path) is not Egress.OUT

    def _spared(self, transaction: Transaction) -> bool:
        """Tell whether SPF lets this sender leave as it is; the first call waits for DNS, for a bounded time."""
        if transaction.spared is None:
            spf = self._shared.spf
            domain, now = domain_of(transaction.reverse_path) or "", int(self._clock())
            transaction.spared = spf is not None and self._may_spare(transaction) and spf.spares(domain, now)
        return transaction.spared

    def _judge(self, transaction: Transaction, mail: Mail, rcpt: str, *, headers_seen: bool) -> Judgement:
        client = transaction.client
        judgement = flow.judge(self._snapshot, client, mail, rcpt, headers_seen=headers_seen)
        if judgement.treatment in (Treatment.REWRITE, Treatment.UNREWRITABLE) and self._spared(transaction):
            judgement = flow.judge(self._snapshot, client, mail, rcpt, headers_seen=headers_seen, spared=True)
        if judgement.treatment is Treatment.DEFER and self._local:
            # sendmail(1) has gone, so Postfix would try again for ever, and nobody would hear of it.
            return judgement._replace(treatment=Treatment.REFUSE)
        return judgement

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
        if transaction.shown.issuer:
            addresses = self._as_policyd_has_them(transaction, path)
            transaction.client, transaction.shown = self._identity.at_rcpt(*addresses, self._clock())
        reply = self._ingress_rcpt_stage(transaction, rcpt, path)
        if reply and self._local:
            # Postfix can't refuse a recipient of sendmail(1): it would try the message again for ever.
            transaction.refusal = transaction.refusal or reply
            return None
        return reply

    def _ingress_rcpt_stage(self, transaction: Transaction, rcpt: str, path: str) -> Optional[Reply]:
        if _CONTROL.search(transaction.reverse_path):
            return BAD_SENDER
        if _CONTROL.search(rcpt):
            return BAD_RECIPIENT
        if self._snapshot.config.srs.reverse is ReverseBy.MILTER:
            reply, returning = self._srs_rcpt(transaction, _SOURCE_ROUTE.sub("", path))
            if reply or returning:
                return reply
        rcpt = self._as_the_mta_reads(rcpt)
        mail = Mail(transaction.reverse_path)
        judgement = self._judge(transaction, mail, rcpt, headers_seen=False)
        if self._snapshot.config.relay.enforced_by != "milter":
            judgement = self._left_by_policyd(transaction, judgement)
        elif judgement.treatment is not Treatment.UNDECIDED:
            self._journal.judged(transaction, rcpt, judgement)
        refused = self._journal.refused(transaction, rcpt, judgement)
        if refused:
            return refused
        if not self._may_join(transaction, judgement.treatment):
            return TRY_APART
        transaction.recipients.append(Recipient(rcpt, judgement, transaction.client, self._noted(transaction, path)))
        return None

    def _as_the_mta_reads(self, rcpt: str) -> str:
        """Return *rcpt* with the domain that it leads to where only the MTA knows that."""
        if plain(rcpt) and not routed(rcpt):
            return rcpt
        read = self._macro("{rcpt_addr}") or rcpt
        # Sendmail tells no domain of what it delivers itself, such as postmaster.
        return read if "@" in read or routed(read) else f"{read}@{self._macro('j')}"

    def _left_by_policyd(self, transaction: Transaction, judgement: Judgement) -> Judgement:
        """Return what is left to do for a recipient that policyd has seen, and left to Postfix or held."""
        if judgement.treatment not in flow.REFUSING:
            return judgement
        must = rewriting.leaving(self._snapshot, transaction.reverse_path) is Egress.REWRITE
        held = judgement.treatment is Treatment.HOLD and judgement.verdict.meant
        rewrites = held and must and not self._spared(transaction)
        return judgement._replace(treatment=Treatment.REWRITE if rewrites else Treatment.KEEP)

    def _as_policyd_has_them(self, transaction: Transaction, path: str) -> tuple[str, str]:
        """Return P1 and the recipient *path* as they are in policy requests."""
        return unquoted(transaction.given), unquoted(_SOURCE_ROUTE.sub("", path).strip("<>"))

    def _noted(self, transaction: Transaction, path: str) -> str:
        """Return how policyd spells this recipient where it has just decided on it, else "".

        Its record has the reference that this message then gets.
        """
        if self._shared.notes is None or self._shared.spool is None:
            return ""
        reverse_path, rcpt = self._as_policyd_has_them(transaction, path)
        key = policyd_key(self._ip or "", str(self._port), reverse_path, rcpt)
        note = self._shared.notes.get(key, int(self._clock()), NOTE_AGE_S)
        if note is None:
            return ""
        transaction.reference = note.reference
        return rcpt

    def _srs_rcpt(self, transaction: Transaction, path: str) -> tuple[Optional[Reply], bool]:
        """Judge a recipient as an SRS address; the second result tells whether it goes back to an original sender."""
        rcpt, now, client = path.strip("<>"), int(self._clock()), self._ip or ""
        stored = self._shared.store.found
        try:
            reversal = reverse(self._snapshot, rcpt, now, stored)
            if reversal.bounce is Bounce.NOT_SRS and not plain(rcpt):  # it may be once read by Postfix, in lower case
                reversal = reverse(self._snapshot, self._macro("{rcpt_addr}"), now, stored)
        except StoreError as error:
            self._journal.store_failed(error)
            return STORE_AWAY, False
        if reversal.bounce in (Bounce.NOT_SRS, Bounce.FOREIGN):
            unwelcome = self._unwelcome(transaction) and bool(transaction.returning)
            return (SRS_APART if unwelcome and not self._local else None), False
        self._series.add(metrics.SRS_REVERSALS, reversal.bounce.labels)

        def guessing() -> bool:
            return self._shared.guesses.too_many(client, now) and not transaction.client.enabled

        refusal = flow.srs_refusal(reversal.bounce, guessing)
        if refusal is not None:
            if refusal[0] is SRS_FORGED:
                self._shared.guesses.failed(client, now)
            return self._journal.refused_srs(transaction, rcpt, *refusal), False
        if self._unwelcome(transaction) and transaction.recipients and not self._local:
            return SRS_APART, False
        leaving = rewriting.egress(self._snapshot, transaction.reverse_path)
        if leaving is not Egress.OUT and self._spared(transaction):
            leaving = Egress.OUT
        if leaving is Egress.IMPOSSIBLE:
            return self._journal.refused_srs(transaction, rcpt, UNREWRITABLE, "sender-unrewritable"), False
        if not self._may_join(transaction, Treatment.REWRITE if leaving is Egress.REWRITE else Treatment.KEEP):
            return TRY_APART, False
        transaction.returning.append((path, reversal.original))
        if self._has_mapped(reversal.original):
            transaction.returned_by_mta.add(path)
        return None, True

    def _has_mapped(self, original: str) -> bool:
        """Tell whether the present recipient is *original* to the MTA already; of a local one Sendmail tells no domain.

        Sendmail's rulesets, which ask the map `reverse`, come before the milter. To delete such a recipient would
        delete the original.
        """
        known = self._macro("{rcpt_addr}").lower()
        written = original.lower(), unquoted(original).lower()
        return known in written or known in [address.rpartition("@")[0] for address in written]

    def _unwelcome(self, transaction: Transaction) -> bool:
        return not flow.may_write_to_srs(self._snapshot, transaction.reverse_path)

    def data(self) -> Optional[Reply]:
        """Refuse what can't be refused at RCPT, and can't wait for the end."""
        transaction = self._transaction
        if transaction is None:
            return None
        return self._out_of_reach(transaction) or self._no_bounce(transaction)

    def _out_of_reach(self, transaction: Transaction) -> Optional[Reply]:
        """Refuse what is held, tagged or judged by its headers later, where nothing more of the message comes.

        That is behind smtpd_proxy_filter; the message goes straight there and, by now, has no queue ID only then.
        """
        judgements = [item.judgement for item in transaction.recipients if self._waits_for_end(item.judgement)]
        if not judgements or self._journal.queue_id(transaction):
            return None
        if judgements[0].treatment is Treatment.UNDECIDED:
            log.error(
                f'a message of {log.address(transaction.reverse_path)} is put off: requirements = "legacy" needs its '
                "headers, and behind smtpd_proxy_filter milters get none"
            )
            self._series.add(metrics.ERRORS, ("milter", "proxy-filter"))
            return FAULT
        reply = None
        for item in transaction.recipients:  # they are alike, see `flow.together`
            transaction.client = item.client
            reply = self._journal.refused(transaction, item.rcpt, item.judgement._replace(treatment=Treatment.REFUSE))
        return reply

    def _waits_for_end(self, judgement: Judgement) -> bool:
        """Tell whether the rule comes into force after DATA only."""
        if not judgement.enforce or judgement.verdict.result is not Result.REFUSE:
            return False
        treatments = {*WHOLE_MESSAGE, Treatment.UNDECIDED}
        if self._snapshot.config.egress is None:
            treatments.add(Treatment.REWRITE)
        return judgement.treatment in treatments

    def _no_bounce(self, transaction: Transaction) -> Optional[Reply]:
        """Refuse a message to SRS recipients that is no bounce; not at RCPT, where other sites' callouts probe."""
        if not (transaction.returning and self._unwelcome(transaction)):
            return None
        first, *others = (path.strip("<>") for path, _ in transaction.returning)
        reply = self._journal.refused_srs(transaction, first, BOUNCES_ONLY, "srs-not-a-bounce")
        for rcpt in others:
            self._journal.record_refusal(transaction, rcpt, None, "srs-not-a-bounce")
        if self._local:
            transaction.refusal = transaction.refusal or reply
            return None
        return reply

    def _may_join(self, transaction: Transaction, treatment: Treatment) -> bool:
        """Tell whether a recipient may join those before it. sendmail(1) can't be asked for a message each."""
        if self._local or transaction.first is None:
            transaction.first = treatment
            return True
        return flow.together(self._snapshot, transaction.first, treatment)

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
        """Take note of one of HEADERS."""
        transaction = self._transaction
        if transaction is None:
            return
        name = name.lower()
        if name == "from":
            transaction.add_from(value)
        elif name == "message-id":
            transaction.message_id = transaction.message_id or value.strip()
        elif name == "subject":
            if self._snapshot.config.ledger.subjects:
                transaction.subject = transaction.subject or value.strip()
        elif name == TAG.lower():
            transaction.tags += 1
        elif name == "received":
            transaction.received = True
            if self._egress and transaction.hop is None:
                transaction.follow_received(value, self._hostname, self._shared.hops, int(self._clock()))
        elif name == "x-sieve-redirected-from" and self._heeds_sieve(transaction):
            transaction.sieve = transaction.sieve or value.strip()

    def _heeds_sieve(self, transaction: Transaction) -> bool:
        """Tell whether a Sieve header counts here.

        Only where something else than the ledger has headers asked for: whether that is on must not change any P1.
        """
        config = self._snapshot.config
        if config.egress is None and config.relay.requirements is not RuleSet.LEGACY:
            return False
        return transaction.may_redirect(egress=self._egress, local=self._local)

    def eoh(self) -> Optional[Reply]:
        """Decide what only the header From can decide (rule set legacy), for the whole message."""
        transaction = self._transaction
        if transaction is None:
            return FAULT
        mail = Mail(transaction.reverse_path, transaction.p2)
        for index, recipient in enumerate(transaction.recipients):
            if recipient.judgement.treatment is Treatment.UNDECIDED:
                transaction.client = recipient.client
                judgement = self._judge(transaction, mail, recipient.rcpt, headers_seen=True)
                self._journal.judged(transaction, recipient.rcpt, judgement)
                reply = self._journal.refused(transaction, recipient.rcpt, judgement)
                if reply:
                    action = DEFER if judgement.treatment is Treatment.DEFER else REJECT
                    for other in transaction.recipients[index + 1 :]:  # they are alike, see `flow.together`
                        self._journal.record_refusal(transaction, other.rcpt, judgement, action=action)
                    return reply
                transaction.recipients[index] = recipient._replace(judgement=judgement)
        return None

    def eom(self, changes: Changes) -> Optional[Reply]:
        """End the message; its *changes* are the last thing that can fail."""
        transaction = self._transaction
        if transaction is None:
            return FAULT
        self._transaction = None
        if transaction.bypassed:
            return self._journal.finish(transaction, "bypass")
        now = int(self._clock())
        if self._egress:
            return self._egress_eom(transaction, changes, now)
        if transaction.refusal:
            for item in transaction.recipients:
                self._journal.record_refusal(transaction, item.rcpt, item.judgement)
            return transaction.refusal
        if any(item.judgement.treatment is Treatment.UNDECIDED for item in transaction.recipients):
            return FAULT  # the end of the headers never came
        if RefusalAction.TAG in self._snapshot.actions and transaction.tags > _TAGS:
            return self._journal.too_many_tags(transaction)
        rewritten, action = self._ingress_sender(transaction, now), "return" if transaction.returning else "pass"
        if rewritten is not None:
            rewritten, action = self._settled(rewritten), "rewrite"
            if rewritten is None:
                return STORE_AWAY
            changes.sender(rewritten.address)
        elif self._snapshot.config.egress and (transaction.recipients or transaction.returning):
            self._remember(transaction, now)
            self._spared(transaction)  # so that the map, which never waits, knows it
        self._return(transaction, changes)
        return self._journal.finish(transaction, self._hold_or_tag(transaction, changes) or action, rewritten)

    def _hold_or_tag(self, transaction: Transaction, changes: Changes) -> str:
        """Do what the rule's action asks for the whole message; return its name, "" for none.

        The header is worth something only if nobody else can set it.
        """
        if RefusalAction.TAG in self._snapshot.actions:
            for index in range(transaction.tags, 0, -1):
                changes.delete_header(TAG, index)
        judgement = next((i.judgement for i in transaction.recipients if i.judgement.treatment in WHOLE_MESSAGE), None)
        if judgement is None:
            return ""
        transaction.reference = self._journal.reference(transaction)
        reason = judgement.verdict.reason.value
        if judgement.treatment is Treatment.HOLD:
            changes.hold(f"gatepost: {reason} [{transaction.reference}]")
            return QUARANTINE
        changes.add_header(TAG, f"refused; reason={reason}; reference={transaction.reference}")
        return TAG_ACTION

    def _ingress_sender(self, transaction: Transaction, now: int) -> Optional[Rewritten]:
        """Return the new sender where all recipients need one, None where it stays."""
        snapshot, reverse_path = self._snapshot, transaction.reverse_path
        outside = self._rewritten_recipients(transaction)
        hop = snapshot.config.egress is not None
        leaves = bool(outside)
        if transaction.returning and not hop:  # where it is no bounce (accept_from)
            must = rewriting.egress(snapshot, reverse_path) is Egress.REWRITE
            leaves = leaves or (must and not self._spared(transaction))
        # Of mail from sendmail(1) inside recipients then get the rewritten sender, too.
        alone = len(outside) == len(transaction.recipients) or (self._local and not hop)
        if not (leaves and alone):
            return None
        first = outside[0] if outside else None
        if first and transaction.sieve:
            mailbox = rewriting.mailbox_of(snapshot, transaction.sieve, first.rcpt)
            if mailbox:
                return rewriting.forwarded(snapshot, reverse_path, mailbox, now)
        return rewriting.relayed(snapshot, reverse_path, first.judgement.verdict.organization if first else None, now)

    def _rewritten_recipients(self, transaction: Transaction) -> list[Recipient]:
        """Return the recipients that must not see the message's own sender."""
        treatments = {Treatment.REWRITE}
        if any(item.judgement.treatment in WHOLE_MESSAGE for item in transaction.recipients):
            must = rewriting.leaving(self._snapshot, transaction.reverse_path) is Egress.REWRITE
            treatments |= WHOLE_MESSAGE if must and not self._spared(transaction) else set()
        return [item for item in transaction.recipients if item.judgement.treatment in treatments]

    def _settled(self, rewritten: Rewritten) -> Optional[Rewritten]:
        """Return *rewritten* once the store knows its token; the long form, or None, where that can't be had."""
        if not rewritten.token:
            return rewritten
        try:
            self._shared.store.stored(rewritten.token, rewritten.original, rewritten.expires_day)
        except StoreError as error:
            self._journal.store_failed(error)
            return rewriting.without_store(rewritten)
        return rewritten

    def _return(self, transaction: Transaction, changes: Changes) -> None:
        """Put the original senders in the place of SRS recipients, each once."""
        there = {_mailbox(item.rcpt) for item in transaction.recipients}
        # First the old ones: Sendmail takes each through its rulesets, and may find the new one behind it.
        for path, _ in transaction.returning:
            if path not in transaction.returned_by_mta:
                changes.delete_recipient(path)
        for path, original in transaction.returning:
            if path not in transaction.returned_by_mta and _mailbox(original) not in there:
                there.add(_mailbox(original))
                changes.add_recipient(original)

    def abort(self) -> None:
        """Forget the message; Postfix sends this after each one, too."""
        self._transaction = None

    def _remember(self, transaction: Transaction, now: int) -> None:
        """Leave a note for the egress hop where this message may come by there."""
        queue_id = self._journal.queue_id(transaction)
        if queue_id and rewriting.leaving(self._snapshot, transaction.reverse_path) is Egress.REWRITE:
            first = next(iter(self._rewritten_recipients(transaction) or transaction.recipients), None)
            organization = first.judgement.verdict.organization if first else None
            digest = organization_digest(organization.name) if organization else b""
            transaction.reference = self._journal.reference(transaction)
            self._shared.hops.put(queue_id, Hop(digest, transaction.reference), now)

    def _egress_eom(self, transaction: Transaction, changes: Changes, now: int) -> Optional[Reply]:
        """Rewrite what came by the egress hop. A message leaves here with a sender that leaves alone, or not at all."""
        if rewriting.leaving(self._snapshot, transaction.reverse_path) is Egress.OUT:
            # policyd sent it here by another configuration; by the next attempt they agree. Passed on, it would loop.
            return self._journal.egress_fault(transaction, "it need not be")
        try:
            rewritten = self._settled(self._egress_sender(transaction, now))
        except AddressError as error:
            return self._journal.egress_fault(transaction, str(error))
        if rewritten is None:
            return STORE_AWAY
        if rewriting.leaving(self._snapshot, rewritten.address) is not Egress.OUT:
            return self._journal.egress_fault(transaction, f"{log.address(rewritten.address)} would come by here again")
        changes.sender(rewritten.address)
        return self._journal.finish(transaction, "rewrite", rewritten)

    def _egress_sender(self, transaction: Transaction, now: int) -> Rewritten:
        """Return the new sender. Only mail that ingress has seen is sent on in a mailbox's name."""
        mailbox = rewriting.forwarder(self._snapshot, transaction.orcpt, transaction.egress_rcpt)
        if mailbox is None and transaction.sieve:
            mailbox = rewriting.mailbox_of(self._snapshot, transaction.sieve, transaction.egress_rcpt)
        if mailbox and transaction.hop:
            return rewriting.forwarded(self._snapshot, transaction.reverse_path, mailbox, now)
        organization = transaction.hop_organization(self._snapshot)
        if organization is None and mailbox:
            accepted = self._snapshot.rules.accepted(mailbox.domain)
            organization = accepted.organization if accepted else None
        return rewriting.relayed(self._snapshot, transaction.reverse_path, organization, now)


def _address_or_null(path: str) -> str:
    """Return *path*, of which the MTA says nothing, or "" if it is no address.

    `<(@contoso.com>` is a null sender to Postfix. What has a control character stays as it is, to be refused.
    """
    try:
        Address.parse(path)
    except AddressError:
        return path if _CONTROL.search(path) else ""
    return path


def _mailbox(address: str) -> tuple[str, str]:
    """Return what two addresses of one mailbox have in common: the case of a local part may matter (RFC 5321, 2.4)."""
    local, _, domain = address.rpartition("@")
    return local, domain.lower()
