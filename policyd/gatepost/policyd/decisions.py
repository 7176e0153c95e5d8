# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide on a policy request and on a map look-up.

Pure: the snapshot, the time and what came before on the connection are arguments. Postfix itself puts
`<recipient>: Recipient address rejected: ` between the status code and the text of a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Optional

from gatepost.policyd import recording
from gatepost.policyd.attributes import Attributes, certificate, text
from gatepost.policyd.recording import Passed
from gatepost.relay import Client, Mail, Result, known_client
from gatepost.service import addresses, flow, log, replies, reversal, rewriting
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.ledger import DEFER, LEFT_TO_MTA, MEND, PASS, QUARANTINE, REJECT, RETURN, TURNED_DOWN
from gatepost.service.ledger import Entry as LedgerEntry
from gatepost.service.organizations import RefusalAction
from gatepost.service.reversal import Bounce, Stored
from gatepost.service.rewriting import Egress, Rewritten
from gatepost.service.snapshot import Snapshot
from gatepost.service.srs_config import ReverseBy
from gatepost.service.upstream import log_fields, why_refused
from gatepost.srs import AddressError


class Action(Enum):
    """What Postfix is told to do, as in metrics and log lines."""

    DUNNO = "dunno"
    OK = "ok"
    REJECT = "reject"
    DEFER = "defer"
    HOLD = "hold"
    REDIRECT = "redirect"

    def __init__(self, label: str) -> None:
        self.label = label
        """For metrics. `value` is a descriptor, which costs more."""


class Answer(NamedTuple):
    """The answer to a policy request: *text* follows `action=`.

    log: the line for the log, "" for none. bounce: what the recipient turned out to be, where that decided.
    judgement: the relay rule's, where that was asked. refused, passed: for the ledger, the recipient that is refused
    here, and those that the message goes on with; one that is held is refused until then, for Postfix may refuse it
    yet. noted: the reference that the milter shall find for this recipient.
    """

    action: Action
    text: str
    log: str = ""
    bounce: Optional[Bounce] = None
    judgement: Optional[Judgement] = None
    refused: Optional[LedgerEntry] = None
    passed: tuple[LedgerEntry, ...] = ()
    noted: str = ""


DUNNO = Answer(Action.DUNNO, "DUNNO")


class Transaction(NamedTuple):
    """What the RCPT requests of one message, known by *instance*, have shown on a policy connection.

    complete: no earlier recipient was taken unseen. bounce: the first recipient that was let through to be
    reversed; held: the first one for which the message is held; other: the first one of any other kind; "" where there
    was none. Postfix uses one connection for all requests about a message, unless that was idle for 300 s or 1000 s
    old, or its worker was replaced: then it is incomplete. reference: the message's in the ledger. passed: the
    recipients let through, as far as they are recorded; let_through: how many there are, recorded or not.
    """

    instance: bytes = b""
    complete: bool = False
    bounce: str = ""
    held: str = ""
    other: str = ""
    reference: str = ""
    passed: tuple[Passed, ...] = ()
    let_through: int = 0


class Aids(NamedTuple):
    """What a decision asks beside the snapshot.

    new_reference: makes the random reference of a message. stored: the store. guessing: tells of a client, by its IP
    address, whether it has named too many forged SRS recipients. noted: the reference that another worker has noted for
    the recipient of a request just before, "" for none.
    """

    new_reference: Callable[[], str]
    stored: Stored
    guessing: Callable[[str], bool]
    noted: Callable[[Attributes], str] = lambda _: ""


class Found(Enum):
    """Result of a map look-up, in socketmap_table(5)'s words."""

    OK = "OK"
    NOTFOUND = "NOTFOUND"
    TEMP = "TEMP"
    PERM = "PERM"

    def __init__(self, word: str) -> None:
        self.word = word
        self.label = word.lower()
        """For metrics. `value` is a descriptor, which costs more than the rest of an answer."""


class Entry(NamedTuple):
    """The answer to a map look-up. bounce: what the key was as an SRS address, in the map `reverse`."""

    found: Found
    text: str = ""
    bounce: Optional[Bounce] = None


NOTFOUND = Entry(Found.NOTFOUND)

NONE = "none"
"""The form of a `Rewritten` that is the sender itself."""
_BOUNCED = f"error:{replies.UNREWRITABLE.status} {replies.UNREWRITABLE.text}"
"""The transport for mail in the queue that can't be rewritten: Postfix's error(8) bounces it at once."""
LATER = "retry:4.4.3 gatepost: the SPF record of the sender's domain is not known yet"
"""The same, and it puts the mail off."""


def decide(
    snapshot: Snapshot, request: Attributes, before: Transaction, now: int, aids: Aids
) -> tuple[Answer, Transaction]:
    """Answer a policy request.

    before: what this connection knows of the message; the second result is what it knows afterwards. now:
    Unix seconds. What aids.stored raises passes through.
    """
    state = request.get(b"protocol_state")
    if state not in (b"RCPT", b"DATA", b"VRFY") or snapshot.bypassed():
        return DUNNO, before
    if state == b"VRFY":  # would else tell right hashes from wrong ones
        bounce = _bounce(snapshot, text(request, b"recipient"), now, aids)
        refused = _refused(snapshot, request, bounce, "", now, aids)
        return refused._replace(refused=None) if refused else DUNNO, before
    instance = request.get(b"instance", b"")
    if not instance or instance != before.instance:
        # Postfix names a queue ID from the first recipient on that it has taken.
        complete = state == b"RCPT" and not request.get(b"queue_id")
        reference = aids.new_reference() if snapshot.config.relay.enforced_by == "policyd" else ""
        before = Transaction(instance, complete, reference=reference)
    if state == b"DATA":
        answer = _data(snapshot, request, before, now, aids)
        queue_id = text(request, b"queue_id")
        if _records(snapshot) and not before.passed and _single(request):  # another worker saw RCPT, and is gone
            reference = aids.noted(request) or before.reference
            alone = before._replace(complete=True, reference=reference)
            before = _rcpt(snapshot, request, alone, now, aids)[1]
        passed = () if answer.action in (Action.REJECT, Action.DEFER) else before.passed
        if _single(request):  # those beside it Postfix has refused
            passed = tuple(item for item in passed if item.recipient == text(request, b"recipient").lower())
        recorded = tuple(recording.entry(snapshot, *item, queue_id=queue_id) for item in passed)
        return answer._replace(passed=recorded), before._replace(passed=())
    return _rcpt(snapshot, request, before, now, aids)


def _bounce(snapshot: Snapshot, rcpt: str, now: int, aids: Aids) -> Bounce:
    """Tell what a recipient is as an SRS address. One that can't be read here takes no mail: nothing would judge it."""
    if reversal.unreadable(snapshot, rcpt):
        return Bounce.FORGED
    return reversal.reverse(snapshot, rcpt, now, aids.stored).bounce


def _rcpt(
    snapshot: Snapshot, request: Attributes, before: Transaction, now: int, aids: Aids
) -> tuple[Answer, Transaction]:
    rcpt = text(request, b"recipient")
    bounce = _bounce(snapshot, rcpt, now, aids)
    refused = _refused(snapshot, request, bounce, before.reference, now, aids)
    if refused is not None:
        return refused, before._replace(reference=refused.refused.reference) if refused.refused else before
    returning = bounce is Bounce.ORIGINAL
    if _must_wait(snapshot, request, before, rcpt, returning):
        line = _line(request, "defer", reason="srs-beside-others")
        return Answer(Action.DEFER, str(replies.SRS_APART), line), before
    answer = DUNNO if returning else _relay(snapshot, request, rcpt, before.reference, now)
    if answer.action in (Action.REJECT, Action.DEFER):
        return answer, before
    # HOLD is for the whole message: no other recipient may be in it, nor one that was taken unseen.
    held = answer.action is Action.HOLD
    unseen = not before.complete and _may_hold(snapshot)
    if unseen or (before.bounce or before.other if held else before.held):
        line = _line(request, "defer", reason="held-beside-others")
        return Answer(Action.DEFER, str(replies.TRY_APART), line), before
    action = QUARANTINE if held else RETURN if returning else _action(answer)
    after = Transaction(
        instance=before.instance,
        complete=before.complete,
        bounce=before.bounce or (rcpt if action == RETURN else ""),
        held=before.held or (rcpt if held else ""),
        other=before.other or (rcpt if action in (PASS, MEND) else ""),
        reference=before.reference,
        passed=(*before.passed, _passed(request, answer, before, now, action)) if _records(snapshot) else (),
        let_through=before.let_through + 1,
    )
    return answer._replace(noted=before.reference) if after.passed else answer, after


def _action(answer: Answer) -> str:
    """Return what is done for a recipient that goes on, as the ledger has it."""
    verdict = answer.judgement.verdict if answer.judgement else None
    return MEND if answer.action is Action.OK and verdict and verdict.result is Result.REFUSE else PASS


def _passed(request: Attributes, answer: Answer, before: Transaction, now: int, action: str) -> Passed:
    """Return what is kept of a recipient that goes on, for DATA to record."""
    verdict = answer.judgement.verdict if answer.judgement else None
    left = verdict is not None and verdict.result is Result.REFUSE and not verdict.meant
    reason = LEFT_TO_MTA if left else ""
    return Passed(recording.recorded(request), before.reference, now, action, answer.judgement, reason)


def _may_hold(snapshot: Snapshot) -> bool:
    return RefusalAction.QUARANTINE in snapshot.actions and snapshot.config.relay.enforced_by == "policyd"


def _records(snapshot: Snapshot) -> bool:
    """Tell whether what is let through is recorded here, as the milter does elsewhere."""
    return bool(snapshot.config.ledger.days) and snapshot.config.relay.enforced_by == "policyd"


def _refused(
    snapshot: Snapshot, request: Attributes, bounce: Bounce, reference: str, now: int, aids: Aids
) -> Optional[Answer]:
    """Return the refusal of an SRS recipient. Hosts of one's own may name as many wrong ones as they like.

    reference: the message's, "" where it has none yet.
    """

    def guessing() -> bool:
        return aids.guessing(text(request, b"client_address")) and not _client(snapshot, request).enabled

    refusal = flow.srs_refusal(bounce, guessing)
    if refusal is None:
        return None
    reply, reason = refusal
    if reply.code < 500:
        return Answer(Action.DEFER, str(reply), _line(request, "defer", reason=reason))
    entry = recording.entry(snapshot, request, reference or aids.new_reference(), now, REJECT, reason=reason)
    return Answer(Action.REJECT, str(reply), _line(request, "reject", reason=reason), bounce, refused=entry)


def _must_wait(snapshot: Snapshot, request: Attributes, before: Transaction, rcpt: str, returning: bool) -> bool:
    """Tell whether *rcpt* must be put off: beside it, what happens at DATA would hit other recipients too.

    REDIRECT replaces all recipients. A sender that SRS recipients don't take is refused there with the whole message,
    so it is split first, and everybody but the SRS recipient still gets it.
    """
    redirect = snapshot.config.srs.reverse is ReverseBy.REDIRECT
    if not redirect and flow.may_write_to_srs(snapshot, text(request, b"sender")):
        return False
    if returning:
        return bool(before.other) or (redirect and before.bounce not in ("", rcpt))
    return bool(before.bounce)


def _relay(
    snapshot: Snapshot, request: Attributes, rcpt: str, reference: str, now: int, *, may_hold: bool = True
) -> Answer:
    """Apply the relay rule where policyd is what applies it; *rcpt* is no SRS address of ours.

    may_hold: what would be held is refused where that can't be done.
    """
    routed = addresses.routed(rcpt)
    if snapshot.config.relay.enforced_by != "policyd" or not ("@" in rcpt or routed):  # Postfix adds its own domain
        return DUNNO
    mail = Mail(reverse_path=text(request, b"sender"))
    # x%example.com@mail.contoso.com may lead outside, which only Postfix knows: it is no inside recipient here.
    judgement = flow.judge(snapshot, _client(snapshot, request), mail, "" if routed else rcpt)
    verdict = judgement.verdict
    names = {
        "organization": verdict.organization.name if verdict.organization else "",
        "reason": verdict.reason.value,
        **log_fields(judgement.upstream),
        **(snapshot.certificates.log_fields(certificate(request)) if verdict.result is Result.REFUSE else {}),
    }
    if judgement.treatment is Treatment.UNREWRITABLE and snapshot.config.egress is not None:
        names["reason"] = reason = "sender-unrewritable"
        entry = recording.entry(snapshot, request, reference, now, REJECT, judgement, reason)
        return _turned_down(request, entry, replies.UNREWRITABLE, judgement, names)
    if judgement.treatment is Treatment.UPSTREAM and judgement.upstream and not routed:
        names.update(reason=why_refused(judgement.upstream), reference=reference)
        entry = recording.entry(snapshot, request, reference, now, REJECT, judgement, names["reason"])
        return _turned_down(request, entry, replies.RELAY_DENIED.with_reference(reference), judgement, names)
    if verdict.result is Result.RELAY and judgement.enforce:
        return Answer(Action.OK, "OK", _line(request, "ok", **names), judgement=judgement)
    if verdict.result is not Result.REFUSE or not verdict.meant:
        return Answer(Action.DUNNO, "DUNNO", judgement=judgement)
    if not judgement.enforce:
        line = _line(request, "monitor", **names, reference=reference)
        return Answer(Action.DUNNO, "DUNNO", line, judgement=judgement)
    if judgement.treatment is Treatment.REWRITE:  # the egress hop does it
        return Answer(Action.OK, "OK", _line(request, "ok", **names), judgement=judgement)
    names["reference"] = reference
    action = snapshot.action(verdict.organization)
    if action is RefusalAction.QUARANTINE and may_hold:
        entry = recording.entry(snapshot, request, reference, now, REJECT, judgement)
        held = f"HOLD gatepost: {verdict.reason.value} [{reference}]"
        return Answer(Action.HOLD, held, _line(request, QUARANTINE, **names), judgement=judgement, refused=entry)
    later = action is RefusalAction.TEMPFAIL
    entry = recording.entry(snapshot, request, reference, now, DEFER if later else REJECT, judgement)
    reply = replies.RELAY_DEFERRED if later else replies.RELAY_DENIED
    return _turned_down(request, entry, reply.with_reference(reference), judgement, names)


def _turned_down(
    request: Attributes, entry: LedgerEntry, reply: replies.Reply, judgement: Judgement, names: dict[str, str]
) -> Answer:
    """Return the answer by which a recipient is refused, or put off, as its *entry* for the ledger says."""
    action = Action.DEFER if entry.action == DEFER else Action.REJECT
    return Answer(action, str(reply), _line(request, entry.action, **names), judgement=judgement, refused=entry)


def _client(snapshot: Snapshot, request: Attributes) -> Client:
    exempt = "authenticated" in snapshot.config.relay.exempt
    names = snapshot.certificates.names_of(certificate(request))
    authenticated = exempt and bool(request.get(b"sasl_username"))
    return known_client(snapshot.rules, text(request, b"client_address"), names, authenticated=authenticated)


def _data(snapshot: Snapshot, request: Attributes, before: Transaction, now: int, aids: Aids) -> Answer:
    """Answer at DATA, where Postfix names the recipient only if it took exactly one.

    With several, and RCPT requests missed, a non-null sender passes: a service that is listed in
    smtpd_data_restrictions alone would put off all such mail for ever. A null sender, which seldom has
    several recipients, waits in redirect mode: its bounce would else end in the `bounces` mailbox (S9).
    """
    single = _single(request)
    redirect = snapshot.config.srs.reverse is ReverseBy.REDIRECT
    rcpt = rcpt_at_data(request, before)
    reversed_ = reversal.reverse(snapshot, rcpt, now, aids.stored)
    returning = reversed_.bounce is Bounce.ORIGINAL
    named = {**request, b"recipient": rcpt.encode("utf-8", "surrogateescape")}
    if not (returning or request.get(b"queue_id")) and _may_hold(snapshot):
        answer = _unheld(snapshot, request, before, now, aids)
        if answer is not None:
            return answer
    if not flow.may_write_to_srs(snapshot, text(request, b"sender")):
        if not (returning or reversal.unreadable(snapshot, rcpt)):
            return DUNNO
        reason = "srs-not-a-bounce"
        reference = before.reference or aids.new_reference()
        entry = recording.entry(snapshot, named, reference, now, REJECT, reason=reason)
        return Answer(Action.REJECT, str(replies.BOUNCES_ONLY), _line(request, "reject", reason=reason), refused=entry)
    # Where nothing else was let in beside it, several recipients are one SRS address, given more than once.
    if redirect and returning and (single or (before.complete and not before.other)):
        line = _line(named, "redirect", reason="srs-bounce", redirect=reversed_.original)
        return Answer(Action.REDIRECT, f"REDIRECT {addresses.unquoted(reversed_.original)}", line, reversed_.bounce)
    if redirect and not single and not before.complete and not request.get(b"sender"):
        return Answer(Action.DEFER, str(replies.HISTORY_LOST), _line(request, "defer", reason="history-unknown"))
    return DUNNO


def _unheld(snapshot: Snapshot, request: Attributes, before: Transaction, now: int, aids: Aids) -> Optional[Answer]:
    """Refuse what was to be held and has no queue ID by now: Postfix has not heeded HOLD, for it goes straight on.

    That is behind smtpd_proxy_filter, where no queue ID tells at RCPT either that others were taken unseen.
    """
    single = _single(request)
    taken = text(request, b"recipient_count")
    if (
        not single
        and not before.held
        and not (taken.isascii() and taken.isdigit() and len(taken) < 10 and int(taken) <= before.let_through)
    ):
        return Answer(Action.DEFER, str(replies.HISTORY_LOST), _line(request, "defer", reason="history-unknown"))
    rcpt = text(request, b"recipient") if single else before.held
    named = {**request, b"recipient": rcpt.encode("utf-8", "surrogateescape")}
    reference = aids.noted(named) or before.reference
    answer = _relay(snapshot, named, rcpt, reference, now, may_hold=False)
    return answer._replace(judgement=None) if answer.action is Action.REJECT else None  # counted at RCPT


def rcpt_at_data(request: Attributes, before: Transaction) -> str:
    """Return the recipient that a request at DATA is about: the only one, or the SRS address let through before."""
    return text(request, b"recipient") if _single(request) else before.bounce


def _single(request: Attributes) -> bool:
    return request.get(b"recipient_count") == b"1" and bool(request.get(b"recipient"))


def look_up(snapshot: Snapshot, map_name: str, key: str, now: int, stored: Stored) -> Entry:
    """Answer a look-up in the maps `reverse` and `egress`; *now* in Unix seconds. What *stored* raises passes through.

    Postfix asks for a whole address first, then for its parts (`user`, `@domain`), which never match. What is
    not to be reversed is NOTFOUND and no failure: a failing map stalls mail, and policy refuses at RCPT what
    is forged.
    """
    if map_name == "reverse":
        return _reverse(snapshot, key, now, stored)
    if map_name == "egress":
        return _egress(snapshot, key)
    return Entry(Found.PERM, "unknown map: only reverse, forward and egress are served")


def _reverse(snapshot: Snapshot, key: str, now: int, stored: Stored) -> Entry:
    if key.find("@") < 1:
        return NOTFOUND
    found = reversal.reverse(snapshot, key, now, stored)
    if found.bounce is Bounce.ORIGINAL:
        return Entry(Found.OK, found.original, found.bounce)
    return NOTFOUND if found.bounce is Bounce.NOT_SRS else Entry(Found.NOTFOUND, bounce=found.bounce)


def _egress(snapshot: Snapshot, key: str) -> Entry:
    egress = snapshot.config.egress
    if egress is None or key.find("@") < 1 or snapshot.bypassed():
        return NOTFOUND
    leaving = rewriting.egress(snapshot, key)
    if leaving is Egress.REWRITE:
        return Entry(Found.OK, egress.transport)
    return NOTFOUND if leaving is Egress.OUT else Entry(Found.OK, _BOUNCED)


def forward(snapshot: Snapshot, key: str, now: int) -> Optional[Rewritten]:
    """Answer the map `forward`: what the sender *key* is rewritten to, None where it stays.

    For sender_canonical_maps and Sendmail, which rewrite at once: in the organisation's name, for who forwarded is not
    known there. What can't be rewritten becomes itself: a canonical map can't refuse, and after NOTFOUND Postfix would
    ask for the address without its extension. Sendmail's rules know that answer, and refuse.
    """
    if key.find("@") < 1 or snapshot.bypassed():
        return None
    leaving = rewriting.egress(snapshot, key)
    if leaving is Egress.OUT:
        return None
    try:
        return rewriting.relayed(snapshot, key, None, now)
    except AddressError:
        return Rewritten(key, NONE)


def _line(request: Attributes, action: str, *, redirect: str = "", **more: str) -> str:
    """Return the log line of a decision; empty values are left out."""
    name = text(request, b"helo_name")
    helo = log.helo(name) if name else ""
    fields = {
        "action": action,
        "from": log.address(text(request, b"sender")),
        "to": log.address(text(request, b"recipient")),
        "redirect": log.address(redirect) if redirect else "",
        "client": text(request, b"client_address"),
        **({"helo": helo} if action in TURNED_DOWN else {}),
        **more,
    }
    queue_id = text(request, b"queue_id") or "NOQUEUE"
    return f"{queue_id}: " + ", ".join(f"{name}={value}" for name, value in fields.items() if value)
