# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost check` adds to a verdict: when the mode changes, who refuses, why P1 stays, which copies leave."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gatepost.admin.check_model import Answer, Envelope
from gatepost.admin.configuration import in_words
from gatepost.admin.srs_commands import left_out
from gatepost.relay import Client, Mail, Result, RuleSet
from gatepost.service import flow, reversal, rewriting
from gatepost.service.addresses import domain_of, parse_address
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.rewriting import Egress
from gatepost.service.snapshot import Snapshot
from gatepost.srs import Address, AddressError

_DECLARED = re.compile(r'accepted_domain\]\] domain = "[^"]*" under organization\[(.*?)\]')
"""Whose accepted domains a remedy adds to."""
_TURNED_AWAY = (Treatment.REFUSE, Treatment.DEFER, Treatment.UPSTREAM, Treatment.UNREWRITABLE)


def on_switch(snapshot: Snapshot, judgement: Judgement) -> Iterator[str]:
    """Yield from when on the mode is enforce, where that is yet to come."""
    config, organization = snapshot.config, judgement.verdict.organization
    enforce_from = config.settings[organization.name].enforce_from if organization else config.relay.enforce_from
    if enforce_from and not judgement.enforce:
        yield f"The mode is enforce from {in_words(enforce_from)} on (enforce_from)."


def on_daemon(snapshot: Snapshot, judgement: Judgement) -> tuple[str, ...]:
    relay = snapshot.config.relay
    if relay.enforced_by == "milter":
        if relay.requirements is RuleSet.LEGACY and judgement.verdict.result is Result.REFUSE:
            return ("Under the rule set legacy that falls at the end of the headers, for the whole message.",)
        return ()
    if relay.requirements is RuleSet.LEGACY:
        return ("policyd applies the relay rule here and never sees P2: the rule set legacy needs the milter.",)
    if judgement.verdict.result is Result.REFUSE and not judgement.verdict.meant:
        return ("No organization is meant, so policyd leaves it to Postfix (reject_unauth_destination).",)
    if judgement.verdict.result is Result.RELAY and not rewriting.rewrites(snapshot):
        return ("P1 leaves as it is: policyd rewrites nothing, and there is no [egress].",)
    return ()


def on_export(snapshot: Snapshot, answer: Answer) -> Iterator[str]:
    """Yield where else the change can be made that refused mail needs, if a remedy is about what is exported."""
    for name in sorted(set(_DECLARED.findall(" ".join(answer.remedies)))):
        settings = snapshot.config.settings.get(name)
        if settings and settings.exchange_export.accepted_domains():
            files = ", ".join(file.name for file in settings.exchange_export.paths)
            yield f"What {name} has from Exchange Online ({files}) is changed there, and exported anew."


def on_srs(snapshot: Snapshot, judgement: Judgement, before: Envelope) -> Iterator[str]:
    """Yield why the P1 of relayed mail stays although it is foreign, or may stay."""
    if judgement.verdict.result is Result.REFUSE or not rewriting.rewrites(snapshot) or not before.mail_from:
        return
    leaving, domain = rewriting.leaving(snapshot, before.mail_from), domain_of(before.mail_from)
    if leaving is Egress.REWRITE and snapshot.config.srs.only_spf:
        yield (
            f"srs.only_spf: P1 is rewritten only where {domain} publishes an SPF record that does not cover"
            " srs.outgoing_addresses. No DNS is asked here."
        )
    elif leaving is Egress.OUT and snapshot.config.organizations and not reversal.ours(snapshot, domain):
        yield f"SRS leaves P1 alone: {left_out(snapshot, domain)}."


def on_forwarding(snapshot: Snapshot, before: Envelope, now: int) -> Iterator[str]:
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


def on_all(snapshot: Snapshot, client: Client, mail: Mail, answers: tuple[Answer, ...]) -> Iterator[str]:
    """Yield what holds for the recipients together, where the milter has to part them."""
    if snapshot.config.relay.enforced_by != "milter":
        return
    treatments = [flow.judge(snapshot, client, mail, answer.before.rcpt).treatment for answer in answers]
    taken = [item for item in treatments if item not in _TURNED_AWAY]
    if not all(flow.together(snapshot, taken[0], item) for item in taken):
        yield (
            "The recipients need different treatment, so in one message the milter takes those like the first "
            "and answers 452 4.5.3 for the others, which the client then sends again by themselves."
        )
