# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what becomes of a message: the verdict on each recipient in words, SRS, and the envelope afterwards.

`gatepost check` and `gatepost explain` show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Optional

from gatepost.admin.check_model import NOT_A_BOUNCE, SRS_BOUNCE, UNREWRITABLE, Answer, Envelope, Question, Report
from gatepost.admin.check_notes import on_all, on_daemon, on_export, on_forwarding, on_srs, on_switch
from gatepost.admin.configuration import store_error
from gatepost.admin.srs_commands import bare, verdict
from gatepost.relay import Client, Mail, Organization, Reason, Result, explain
from gatepost.service import flow, replies, reversal, rewriting, upstream_words
from gatepost.service.addresses import routed
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.ledger import LEFT_TO_MTA
from gatepost.service.organizations import RefusalAction
from gatepost.service.reversal import Bounce, Stored
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot, mint_domain
from gatepost.service.srs_config import ReverseBy
from gatepost.service.upstream import why_refused
from gatepost.srs import AddressError

TAKING = (RefusalAction.QUARANTINE, RefusalAction.TAG)
"""The actions that take the message nevertheless."""
_MENDING = (Treatment.REWRITE, Treatment.UNREWRITABLE)
"""What action = "rewrite" makes of what it does not reject."""


def examine(snapshot: Snapshot, question: Question, now: int, stored: Stored) -> Report:
    """Decide on every recipient of *question* as the daemons would. *now*: Unix seconds."""
    config = snapshot.config
    mail = Mail(bare(question.mail_from), _addresses(question.header_from))
    client = snapshot.rules.client(
        question.ip,
        question.certificate_names,
        authenticated=question.authenticated and "authenticated" in config.relay.exempt,
        local=question.local and "local" in config.relay.exempt,
    )
    answers = tuple(_answer(snapshot, client, mail, bare(rcpt), now, stored) for rcpt in question.recipients)
    notes: tuple[str, ...] = tuple(
        f"The MTA may take {rcpt} for an address elsewhere; the milter asks it, policyd takes it for outside."
        for rcpt in map(bare, question.recipients)
        if routed(rcpt)
    )
    notes += tuple(on_all(snapshot, client, mail, answers))
    if not config.organizations:
        notes = (*notes, "No organization is declared, so gatepost refuses nothing and rewrites nothing.")
    return Report(
        question=question,
        mail=mail,
        requirements=config.relay.requirements,
        bypassed=snapshot.bypassed(),
        notes=notes,
        answers=answers,
    )


def _addresses(header_from: Sequence[str]) -> tuple[str, ...]:
    if not header_from:
        return ()
    from gatepost.milter.transaction import header_addresses  # loads email

    return header_addresses(header_from)


def _answer(snapshot: Snapshot, client: Client, mail: Mail, rcpt: str, now: int, stored: Stored) -> Answer:
    judgement = flow.judge(snapshot, client, mail, rcpt, headers_seen=True)
    words = explain(judgement.verdict, client, mail, rcpt, snapshot.config.relay.requirements)
    before, reason = Envelope(mail.reverse_path, rcpt), judgement.verdict.reason.value
    enforced = judgement
    if not judgement.enforce:
        enforced = flow.judge(snapshot.with_all_enforcing(), client, mail, rcpt, headers_seen=True)
    answer = Answer(before, judgement, enforced, words, words.decision, reason)
    try:
        found = reversal.reverse(snapshot, rcpt, now, stored)
    except store_error() as error:
        return _put_off(answer, error)
    refusal = flow.srs_refusal(found.bounce, lambda: False)
    if refusal is not None:
        return _srs_refused(snapshot, answer, found.bounce, refusal, now)
    if found.bounce is Bounce.ORIGINAL:
        return _bounce(snapshot, answer, found.original, now)
    return _with_upstream(snapshot, _relay(snapshot, client, answer, now))


def _put_off(answer: Answer, error: Exception) -> Answer:
    """Answer for a compact SRS address while the store is away."""
    rcpt = answer.before.rcpt
    return answer._replace(
        decision=f"Put off: {rcpt} is a compact SRS address, and the store cannot be asked for its original.",
        reason="store-away",
        refused=True,
        failed=f"SRS: {error}.",
        reply=str(replies.STORE_AWAY),
        remedies=("Mend the store (store.url); the client sends the message again.",),
    )


def _srs_refused(
    snapshot: Snapshot, answer: Answer, bounce: Bounce, refusal: tuple[replies.Reply, str], now: int
) -> Answer:
    """Answer for an SRS address in a domain of ours that is not, or not any more, good."""
    rcpt, (reply, reason) = answer.before.rcpt, refusal
    remedy = {
        Bounce.FORGED: "If a key that is gone made it, append that key at the end of srs.secret_file.",
        Bounce.UNKNOWN: "If another host made it, give both one store.url, of PostgreSQL, or that one "
        'srs.form = "long".',
        Bounce.EXPIRED: "Raise srs.validity_days if bounces are to be taken back for longer.",
    }[bounce]
    return answer._replace(
        decision=decision_for(reason, rcpt),
        reason=reason,
        refused=True,
        failed=f"SRS: {verdict(snapshot, bounce, rcpt, now)}.",
        reply=str(reply),
        remedies=(remedy,),
        notes=(_refusing(snapshot, "", "smtpd_recipient_restrictions"),),
    )


def decision_for(reason: str, rcpt: str) -> str:
    """Return in words what was decided for *reason*, one of those that the relay rule does not have."""
    if reason.startswith("upstream-"):
        return f"Refused: Exchange Online would refuse mail to {rcpt}, and SRS cannot mend it ([upstream] refuse)."
    other = f"Refused: {rcpt} has the form of this host's SRS addresses, but is not good."
    return {
        NOT_A_BOUNCE: f"Refused: {rcpt} is an SRS address made here, which takes bounces only (null sender).",
        UNREWRITABLE: f"Refused: {rcpt} is outside, so P1 must be rewritten by SRS, and cannot be.",
        LEFT_TO_MTA: f"Left to Postfix: {rcpt} is outside, and no organization is meant.",
        "too-many-tags": "Refused: the message came with more X-Gatepost-Relay headers than gatepost removes.",
    }.get(reason, other if reason.startswith("srs-") else f"{rcpt}: {reason or 'no reason is recorded'}.")


def _refusing(snapshot: Snapshot, when: str, restrictions: str, without: str = "") -> str:
    if snapshot.config.srs.reverse is ReverseBy.MILTER:
        return f"The milter refuses this{when}."
    otherwise = f"; where only the maps are asked, {without}" if without else ""
    return f"policyd refuses this{when} where {restrictions} asks it{otherwise}."


def _bounce(snapshot: Snapshot, answer: Answer, original: str, now: int) -> Answer:
    """Answer for an SRS address that this host made and that is good: bounces go to *original* (S9)."""
    mail_from, rcpt = answer.before.mail_from, answer.before.rcpt
    if not flow.may_write_to_srs(snapshot, mail_from):
        return answer._replace(
            decision=decision_for(NOT_A_BOUNCE, rcpt),
            reason=NOT_A_BOUNCE,
            refused=True,
            failed=f"SRS: P1 is {mail_from}, so this is no bounce.",
            reply=str(replies.BOUNCES_ONLY),
            remedies=(
                f"Whoever means the original sender writes to {original}.",
                'With srs.accept_from = "everyone" such addresses take other mail, too: vacation replies, challenges.',
            ),
            notes=(_refusing(snapshot, " at DATA", "smtpd_data_restrictions", "the message is taken"),),
        )
    after = Envelope(_returning(snapshot, mail_from, now), original)
    there = flow.at_upstream(snapshot, Mail(after.mail_from), original)
    answer = answer._replace(
        judgement=answer.judgement._replace(upstream=there),
        decision=returned_decision(rcpt, original),
        reason=SRS_BOUNCE,
        envelope=after,
        enforced=after,
    )
    return _with_upstream(snapshot, answer)


def returned_decision(rcpt: str, original: str) -> str:
    """Return in words that mail to an SRS address goes back to the original sender."""
    return f"No relay: {rcpt} is an SRS address made here, and its mail goes to {original}."


def mended_decision(refusal: str) -> str:
    """Return *refusal*, the decision on what the relay rule refuses, for what an SRS sender lets through."""
    return f"Mended by SRS{refusal[len('Refused') :]}"


def _returning(snapshot: Snapshot, mail_from: str, now: int) -> str:
    """Return the P1 of mail that goes on to an original sender and is no bounce (accept_from)."""
    config = snapshot.config
    rewrites = config.egress is not None or config.srs.reverse is ReverseBy.MILTER
    if rewrites and rewriting.egress(snapshot, mail_from) is Egress.REWRITE:
        return rewriting.relayed(snapshot, mail_from, None, now).address
    return mail_from


def _relay(snapshot: Snapshot, client: Client, answer: Answer, now: int) -> Answer:
    """Answer for any other recipient: the relay rule decides, and SRS rewrites what is relayed."""
    before, judgement = answer.before, answer.judgement
    result = judgement.verdict.result
    if result is Result.INSIDE:
        notes = tuple(on_forwarding(snapshot, before, now))
        return answer._replace(notes=notes, envelope=before, enforced=before)
    passed = None if judgement.enforce else _monitored(snapshot, judgement, before, now)
    notes = (
        *on_switch(snapshot, judgement),
        *on_daemon(snapshot, judgement),
        *on_srs(snapshot, judgement, before),
    )
    answer = answer._replace(effective=judgement.enforce, notes=notes, envelope=passed)
    if result is Result.REFUSE:
        answer = _refused(snapshot, client, answer)
        if answer.action not in TAKING and not answer.mended:
            return answer
    try:
        leaving = _leaving(snapshot, before, judgement.verdict.organization, now)
    except AddressError as error:
        return answer._replace(
            decision=decision_for(UNREWRITABLE, before.rcpt),
            reason=UNREWRITABLE,
            refused=True,
            mended=False,
            action=None,
            failed=f"SRS: P1 must be rewritten, and {error}.",
            reply=str(replies.UNREWRITABLE),
            remedies=("Let the application use a shorter, well-formed P1, or one in an accepted domain.",),
            also=(),
        )
    return answer._replace(envelope=passed or leaving, enforced=leaving)


def _with_upstream(snapshot: Snapshot, answer: Answer) -> Answer:
    """Return *answer* with what Exchange Online will say, and with its refusal where that comes from here."""
    there, judgement = snapshot.upstream, answer.judgement
    mail_from, rcpt = (answer.envelope or answer.before).mail_from, answer.before.rcpt
    helps = tuple(upstream_words.remedies(snapshot, judgement, answer.before.mail_from, mended=answer.mended))
    if there is not None and answer.reason == Reason.NULL_SENDER.value and answer.refused:
        helps = tuple(upstream_words.for_null_sender(snapshot, rcpt))
        answer = answer._replace(notes=(*answer.notes, upstream_words.NOT_ENOUGH) if helps else answer.notes)
    if there is None or judgement.upstream is None:
        return answer._replace(upstream_remedies=helps)
    sentence = upstream_words.decision(there, judgement.upstream, mail_from)
    if answer.if_enforced.treatment is not Treatment.UPSTREAM:
        return answer._replace(notes=(*answer.notes, sentence), upstream_remedies=helps)
    reason = why_refused(judgement.upstream)
    return answer._replace(
        decision=decision_for(reason, rcpt),
        reason=reason if judgement.enforce else answer.reason,
        refused=True,
        action=None,
        effective=judgement.enforce,
        failed=sentence,
        reply=str(replies.RELAY_DENIED),
        remedies=helps,
        also=(),
        envelope=None if judgement.enforce else answer.envelope,
        enforced=None,
    )


def _refused(snapshot: Snapshot, client: Client, answer: Answer) -> Answer:
    """Answer for what the relay rule refuses; relay.action says what is done about it."""
    verdict, words, notes = answer.judgement.verdict, answer.explanation, answer.notes
    answer = answer._replace(refused=True, failed=words.failed, remedies=words.remedies, also=words.also)
    if flow.left_to_mta(snapshot, verdict):
        return answer._replace(reason=LEFT_TO_MTA, decision=decision_for(LEFT_TO_MTA, answer.before.rcpt))
    action = snapshot.action(verdict.organization)
    if action is RefusalAction.REWRITE and answer.if_enforced.treatment in _MENDING:
        decision = mended_decision(words.decision)
        return answer._replace(decision=decision, action=action, refused=False, mended=True, remedies=(), also=())
    offered = tuple(_offer_of_rewrite(snapshot, client, answer))
    answer = answer._replace(notes=(*notes, *on_export(snapshot, answer)), remedies=(*offered, *answer.remedies))
    reply = str({RefusalAction.TEMPFAIL: replies.RELAY_DEFERRED}.get(action, replies.RELAY_DENIED))
    return answer._replace(action=action, reply="" if action in TAKING else reply)


def _offer_of_rewrite(snapshot: Snapshot, client: Client, answer: Answer) -> Iterator[str]:
    """Yield action = "rewrite" where it would mend what is refused, and Exchange Online asks for such a P1."""
    config, there, organization = snapshot.config, snapshot.upstream_by_p1, answer.judgement.verdict.organization
    if there is None or organization is None or config.srs.only_spf or not rewriting.rewrites(snapshot):
        return
    settings = replace(config.settings[organization.name], action=RefusalAction.REWRITE)
    config = replace(config, settings={**config.settings, organization.name: settings})
    changed = replace(snapshot, config=config).with_all_enforcing()
    mail, rcpt = Mail(answer.before.mail_from), answer.before.rcpt
    if flow.judge(changed, client, mail, rcpt, headers_seen=True).treatment is Treatment.REWRITE:
        domain = mint_domain(config, there.organization)
        yield (
            f'Set organization[{organization.name}].action = "rewrite", or relay.action for all that have none of '
            f"their own: SRS then gives such mail a P1 in {domain}, and Exchange Online takes it."
        )


def _leaving(snapshot: Snapshot, before: Envelope, organization: Optional[Organization], now: int) -> Envelope:
    """Return relayed mail as it leaves in mode enforce. Raises AddressError where P1 can't be rewritten."""
    leaving = rewriting.leaving(snapshot, before.mail_from)
    if leaving is Egress.OUT or not rewriting.rewrites(snapshot):
        return before
    rewritten = rewriting.relayed(snapshot, before.mail_from, organization, now)
    if leaving is Egress.IMPOSSIBLE:
        raise AddressError(f"it is too long for an SRS address in {snapshot.longest_mint_domain}")
    return Envelope(rewritten.address, before.rcpt)


def _monitored(snapshot: Snapshot, judgement: Judgement, before: Envelope, now: int) -> Envelope:
    """Return the message as it leaves although nothing is enforced: the egress hop serves all organisations alike."""
    if snapshot.config.egress and rewriting.egress(snapshot, before.mail_from) is Egress.REWRITE:
        rewritten = rewriting.relayed(snapshot, before.mail_from, judgement.verdict.organization, now)
        return Envelope(rewritten.address, before.rcpt)
    return before
