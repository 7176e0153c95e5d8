# SPDX-License-Identifier: GPL-3.0-or-later
"""A verdict on a message that is described by options: `gatepost check`."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Optional

import click

from gatepost.admin.configuration import (
    in_words,
    open_store,
    problems_reported,
    snapshot_with_placeholder,
    with_requirements,
)
from gatepost.admin.srs_commands import bare, left_out, unix_time, verdict
from gatepost.relay import Client, Explanation, Mail, Organization, Result, RuleSet, explain
from gatepost.service import flow, replies, reversal, rewriting
from gatepost.service.addresses import domain_of, parse_address, routed
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.reversal import Bounce, Stored
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot
from gatepost.service.srs_config import ReverseBy
from gatepost.service.store import StoreError
from gatepost.srs import Address, AddressError


@dataclass(frozen=True)
class Question:
    """A client and its message as the options give them. mail_from: "" or `<>` is the null sender."""

    ip: Optional[str]
    helo: Optional[str]
    certificate_names: tuple[str, ...]
    authenticated: bool
    mail_from: str
    header_from: Optional[str]
    recipients: tuple[str, ...]


@dataclass(frozen=True)
class Envelope:
    """The addresses of a message after gatepost."""

    mail_from: str
    rcpt: str


@dataclass(frozen=True)
class Answer:
    """What becomes of the message for one recipient.

    refused: the rules refuse it, by relay rule or SRS. reply: the SMTP reply then, "" where gatepost leaves the
    refusal to Postfix. effective: what is refused or rewritten really is; else the mode is monitor. before: the
    envelope that came; envelope: what the MTA goes on with, None for nothing; enforced: that in mode enforce.
    """

    before: Envelope
    judgement: Judgement
    explanation: Explanation
    decision: str
    refused: bool = False
    effective: bool = True
    failed: str = ""
    reply: str = ""
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    envelope: Optional[Envelope] = None
    enforced: Optional[Envelope] = None


@dataclass(frozen=True)
class Report:
    """The whole answer. notes: what is not about one recipient."""

    question: Question
    mail: Mail
    requirements: RuleSet
    bypassed: bool
    notes: tuple[str, ...]
    answers: tuple[Answer, ...]


def run(path: Path, question: Question, requirements: Optional[str], at: Optional[datetime], *, as_json: bool) -> int:
    """Print the answer to *question*; return the exit status."""
    _check_usage(question)
    with problems_reported():
        snapshot, missing_secret = snapshot_with_placeholder(path)
    if requirements:
        snapshot = with_requirements(snapshot, RuleSet(requirements))
    report = examine(snapshot, question, unix_time(at))
    if missing_secret and any(
        answer.enforced and answer.enforced.mail_from != report.mail.reverse_path for answer in report.answers
    ):
        note = f"There is no SRS secret yet ({missing_secret}), so the hash of the SRS address is a placeholder."
        report = replace(report, notes=(*report.notes, note))
    from gatepost.admin import check_output

    click.echo(check_output.as_json(report) if as_json else check_output.as_text(report))
    return 1 if any(answer.refused for answer in report.answers) else os.EX_OK


def _check_usage(question: Question) -> None:
    if question.ip is not None:
        try:
            ipaddress.ip_address(question.ip)
        except ValueError:
            raise click.UsageError(f'--ip: "{question.ip}" is no IP address') from None
    if any(bracket in bare(question.mail_from) for bracket in "<>"):
        raise click.UsageError(f'--mail-from: "{question.mail_from}" is no address; a name goes into --header-from')
    for rcpt in question.recipients:
        if "@" not in rcpt:
            raise click.UsageError(f'--rcpt: "{rcpt}" has no domain')


def examine(snapshot: Snapshot, question: Question, now: int) -> Report:
    """Decide on every recipient of *question* as the daemons would. *now*: Unix seconds."""
    config = snapshot.config
    mail = Mail(bare(question.mail_from), _addresses(question.header_from))
    client = snapshot.rules.client(
        question.ip,
        question.certificate_names,
        authenticated=question.authenticated and "authenticated" in config.relay.exempt,
    )
    stored = open_store(config).found
    answers = tuple(_answer(snapshot, client, mail, bare(rcpt), now, stored) for rcpt in question.recipients)
    notes: tuple[str, ...] = tuple(
        f"The MTA may take {rcpt} for an address elsewhere; the milter asks it, policyd takes it for outside."
        for rcpt in map(bare, question.recipients)
        if routed(rcpt)
    )
    notes += tuple(_together(snapshot, client, mail, answers))
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


def _addresses(header_from: Optional[str]) -> tuple[str, ...]:
    if not header_from:
        return ()
    from gatepost.milter.transaction import header_addresses  # loads email.utils

    return header_addresses([header_from])


def _answer(snapshot: Snapshot, client: Client, mail: Mail, rcpt: str, now: int, stored: Stored) -> Answer:
    judgement = flow.judge(snapshot, client, mail, rcpt, headers_seen=True)
    words = explain(judgement.verdict, client, mail, rcpt, snapshot.config.relay.requirements)
    before = Envelope(mail.reverse_path, rcpt)
    try:
        found = reversal.reverse(snapshot, rcpt, now, stored)
    except StoreError as error:
        return _put_off(judgement, words, before, error)
    refusal = flow.srs_refusal(found.bounce, lambda: False)
    if refusal is not None:
        return _srs_refused(snapshot, judgement, words, before, found.bounce, refusal[0], now)
    if found.bounce is Bounce.ORIGINAL:
        return _bounce(snapshot, judgement, words, before, found.original, now)
    return _relay(snapshot, judgement, words, before, now)


def _put_off(judgement: Judgement, words: Explanation, before: Envelope, error: StoreError) -> Answer:
    """Answer for a compact SRS address while the store is away."""
    return Answer(
        before,
        judgement,
        words,
        f"Put off: {before.rcpt} is a compact SRS address, and the store cannot be asked for its original.",
        refused=True,
        failed=f"SRS: {error}.",
        reply=str(replies.STORE_AWAY),
        remedies=("Mend the store (store.url); the client sends the message again.",),
    )


def _srs_refused(
    snapshot: Snapshot,
    judgement: Judgement,
    words: Explanation,
    before: Envelope,
    bounce: Bounce,
    reply: replies.Reply,
    now: int,
) -> Answer:
    """Answer for an SRS address in a domain of ours that is not, or not any more, good."""
    remedy = {
        Bounce.FORGED: "If a key that is gone made it, append that key at the end of srs.secret_file.",
        Bounce.UNKNOWN: "If another host made it, give both one store.url, of PostgreSQL, or that one "
        'srs.form = "long".',
        Bounce.EXPIRED: "Raise srs.validity_days if bounces are to be taken back for longer.",
    }[bounce]
    return Answer(
        before,
        judgement,
        words,
        f"Refused: {before.rcpt} has the form of this host's SRS addresses, but is not good.",
        refused=True,
        failed=f"SRS: {verdict(snapshot, bounce, before.rcpt, now)}.",
        reply=str(reply),
        remedies=(remedy,),
        notes=(_refusing(snapshot, "", "smtpd_recipient_restrictions"),),
    )


def _refusing(snapshot: Snapshot, when: str, restrictions: str, without: str = "") -> str:
    if snapshot.config.srs.reverse is ReverseBy.MILTER:
        return f"The milter refuses this{when}."
    otherwise = f"; where only the maps are asked, {without}" if without else ""
    return f"policyd refuses this{when} where {restrictions} asks it{otherwise}."


def _bounce(
    snapshot: Snapshot, judgement: Judgement, words: Explanation, before: Envelope, original: str, now: int
) -> Answer:
    """Answer for an SRS address that this host made and that is good: bounces go to *original* (S9)."""
    if not flow.may_write_to_srs(snapshot, before.mail_from):
        return Answer(
            before,
            judgement,
            words,
            f"Refused: {before.rcpt} is an SRS address made here, which takes bounces only (null sender).",
            refused=True,
            failed=f"SRS: P1 is {before.mail_from}, so this is no bounce.",
            reply=str(replies.BOUNCES_ONLY),
            remedies=(
                f"Whoever means the original sender writes to {original}.",
                'With srs.accept_from = "everyone" such addresses take other mail, too: vacation replies, challenges.',
            ),
            notes=(_refusing(snapshot, " at DATA", "smtpd_data_restrictions", "the message is taken"),),
        )
    after = Envelope(_returning(snapshot, before.mail_from, now), original)
    return Answer(
        before,
        judgement,
        words,
        f"No relay: {before.rcpt} is an SRS address made here, and its mail goes to {original}.",
        envelope=after,
        enforced=after,
    )


def _returning(snapshot: Snapshot, mail_from: str, now: int) -> str:
    """Return the P1 of mail that goes on to an original sender and is no bounce (accept_from)."""
    config = snapshot.config
    rewrites = config.egress is not None or config.srs.reverse is ReverseBy.MILTER
    if rewrites and rewriting.egress(snapshot, mail_from) is Egress.REWRITE:
        return rewriting.relayed(snapshot, mail_from, None, now).address
    return mail_from


def _relay(snapshot: Snapshot, judgement: Judgement, words: Explanation, before: Envelope, now: int) -> Answer:
    """Answer for any other recipient: the relay rule decides, and SRS rewrites what is relayed."""
    result, organization = judgement.verdict.result, judgement.verdict.organization
    if result is Result.INSIDE:
        notes = tuple(_forwarded(snapshot, before, now))
        return Answer(before, judgement, words, words.decision, notes=notes, envelope=before, enforced=before)
    passed = None if judgement.enforce else _monitored(snapshot, judgement, before, now)
    answer = Answer(
        before,
        judgement,
        words,
        words.decision,
        effective=judgement.enforce,
        notes=(*_switch(snapshot, judgement), *_notes(snapshot, judgement), *_srs_notes(snapshot, judgement, before)),
        envelope=passed,
    )
    if result is Result.REFUSE:
        reply = (
            str(replies.RELAY_DENIED)
            if judgement.verdict.meant or snapshot.config.relay.enforced_by == "milter"
            else ""
        )
        return replace(answer, refused=True, failed=words.failed, reply=reply, remedies=words.remedies)
    try:
        leaving = _leaving(snapshot, before, organization, now)
    except AddressError as error:
        return replace(
            answer,
            refused=True,
            decision=f"Refused: the rules let {before.rcpt} be relayed, but P1 cannot be rewritten by SRS.",
            failed=f"SRS: P1 must be rewritten, and {error}.",
            reply=str(replies.UNREWRITABLE),
            remedies=("Let the application use a shorter, well-formed P1, or one in an accepted domain.",),
        )
    return replace(answer, envelope=passed or leaving, enforced=leaving)


def _leaving(snapshot: Snapshot, before: Envelope, organization: Optional[Organization], now: int) -> Envelope:
    """Return relayed mail as it leaves in mode enforce. Raises AddressError where P1 can't be rewritten."""
    leaving = rewriting.leaving(snapshot, before.mail_from)
    if leaving is Egress.OUT or not _rewrites(snapshot):
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


def _rewrites(snapshot: Snapshot) -> bool:
    """Tell whether anything rewrites P1 here: the milter, or the egress hop."""
    return snapshot.config.relay.enforced_by == "milter" or snapshot.config.egress is not None


def _switch(snapshot: Snapshot, judgement: Judgement) -> Iterator[str]:
    """Yield from when on the mode is enforce, where that is yet to come."""
    config, organization = snapshot.config, judgement.verdict.organization
    enforce_from = config.settings[organization.name].enforce_from if organization else config.relay.enforce_from
    if enforce_from and not judgement.enforce:
        yield f"The mode is enforce from {in_words(enforce_from)} on (enforce_from)."


def _notes(snapshot: Snapshot, judgement: Judgement) -> tuple[str, ...]:
    relay = snapshot.config.relay
    if relay.enforced_by == "milter":
        if relay.requirements is RuleSet.LEGACY and judgement.verdict.result is Result.REFUSE:
            return ("Under the rule set legacy that falls at the end of the headers, for the whole message.",)
        return ()
    if relay.requirements is RuleSet.LEGACY:
        return ("policyd applies the relay rule here and never sees P2: the rule set legacy needs the milter.",)
    if judgement.verdict.result is Result.REFUSE and not judgement.verdict.meant:
        return ("No organization is meant, so policyd leaves it to Postfix (reject_unauth_destination).",)
    if judgement.verdict.result is Result.RELAY and not _rewrites(snapshot):
        return ("P1 leaves as it is: policyd rewrites nothing, and there is no [egress].",)
    return ()


def _srs_notes(snapshot: Snapshot, judgement: Judgement, before: Envelope) -> Iterator[str]:
    """Yield why the P1 of relayed mail stays although it is foreign, or may stay."""
    if judgement.verdict.result is Result.REFUSE or not _rewrites(snapshot) or not before.mail_from:
        return
    leaving, domain = rewriting.leaving(snapshot, before.mail_from), domain_of(before.mail_from)
    if leaving is Egress.REWRITE and snapshot.config.srs.only_spf:
        yield (
            f"srs.only_spf: P1 is rewritten only where {domain} publishes an SPF record that does not cover"
            " srs.outgoing_addresses. No DNS is asked here."
        )
    elif leaving is Egress.OUT and snapshot.config.organizations and not reversal.ours(snapshot, domain):
        yield f"SRS leaves P1 alone: {left_out(snapshot, domain)}."


def _forwarded(snapshot: Snapshot, before: Envelope, now: int) -> Iterator[str]:
    """Yield what P1 becomes where the recipient, inside, sends its mail on to outside (S3)."""
    if snapshot.config.egress is None or rewriting.egress(snapshot, before.mail_from) is not Egress.REWRITE:
        return
    try:
        address = parse_address(before.rcpt)
        mailbox = Address(address.local.partition("+")[0], domain_of(before.rcpt) or "")
    except AddressError:
        return
    if snapshot.rules.accepted(mailbox.domain):
        sender = rewriting.forwarded(snapshot, before.mail_from, mailbox, now).address
        yield f"If {mailbox} is forwarded to outside, that copy leaves with P1 {sender}."


def _together(snapshot: Snapshot, client: Client, mail: Mail, answers: tuple[Answer, ...]) -> Iterator[str]:
    """Yield what holds for the recipients together, where the milter has to part them."""
    if snapshot.config.relay.enforced_by != "milter":
        return
    treatments = [flow.judge(snapshot, client, mail, answer.before.rcpt).treatment for answer in answers]
    taken = [item for item in treatments if item not in (Treatment.REFUSE, Treatment.UNREWRITABLE)]
    if not all(flow.together(snapshot, taken[0], item) for item in taken):
        yield (
            "The recipients need different treatment, so in one message the milter takes those like the first "
            "and answers 452 4.5.3 for the others, which the client then sends again by themselves."
        )
