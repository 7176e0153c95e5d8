# SPDX-License-Identifier: GPL-3.0-or-later
"""Says of the groups of a replayed log what is wrong and what to change."""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.admin.replay_count import Group
from gatepost.admin.replay_tally import MADE_HERE, Heading, Tally
from gatepost.relay import Mail, explain
from gatepost.service import upstream_words
from gatepost.service.organizations import RefusalAction

TITLES = {
    Heading.REFUSED: "Would be refused",
    Heading.CERTIFICATE_UNNAMED: "Would be refused, unless their certificate lets them through",
    Heading.P2_UNSEEN: "Would be refused, unless the From header (P2) lets them through",
    Heading.MENDED: 'Would be mended: relayed with an SRS address (action = "rewrite")',
    Heading.UPSTREAM: "Would be refused by Exchange Online ([upstream])",
    Heading.REJECTED: "Refused by the rules, and by the MTA as it is",
}
NOTES = {
    Heading.CERTIFICATE_UNNAMED: (
        "The client showed a certificate that the MTA trusts, and the log does not name it. Postfix does so with "
        '"smtpd_tls_loglevel = 1,peercert", Sendmail with "LogLevel=12"; replay what is logged from then on.'
    ),
    Heading.P2_UNSEEN: (
        "The rule set is legacy, under which P2 counts too. No mail log has P2; with gatepost running in mode monitor, "
        "`gatepost report start --type P2SenderAttribution` tells who relies on it."
    ),
    Heading.MENDED: (
        "The rule refuses it for its P1 only, so in mode enforce SRS gives it another one. Nothing has to change."
    ),
    Heading.UPSTREAM: "As in mode enforce: what SRS rewrites so that Exchange Online takes it is not in here.",
}
WITHOUT_TLS = (
    "The log has no line on TLS, so certificates are not known, and these numbers are upper limits: some clients may "
    'have one that lets them through. Postfix logs them with "smtpd_tls_loglevel = 1,peercert", Sendmail with '
    '"LogLevel=12".'
)
P2 = (
    "P2 does not count since 2023-11-01, and no mail log has it. Which of these messages relied on it before: "
    "`gatepost report start --type P2SenderAttribution`, once gatepost has run in mode monitor for some days."
)
ACTIONS = {
    RefusalAction.TEMPFAIL: "is put off with 451",
    RefusalAction.QUARANTINE: "is taken and held in the MTA's hold queue",
    RefusalAction.TAG: "goes on with a header that says so",
}
UNADVISED = (Heading.CERTIFICATE_UNNAMED, Heading.MENDED)
"""What is said of all mail under these headings is in NOTES."""
_SENTENCES = 2


@dataclass(frozen=True)
class Advice:
    """What is wrong with a group, and the likeliest remedies. also: what is needed beside one of these."""

    problem: str
    remedies: tuple[str, ...]
    also: tuple[str, ...] = ()


def advise(tally: Tally, heading: Heading, group: Group) -> Advice:
    """Return what the rules say of a group's first sample."""
    if heading in UNADVISED:
        return Advice(NOTES[heading], ())
    if heading is Heading.UPSTREAM:
        return _upstream(tally, group)
    sample = group.samples[0]
    client, mail = tally.client(group.origin), Mail(sample.reverse_path)
    verdict = tally.judged(group.origin, sample.reverse_path, sample.rcpt).verdict
    words = explain(verdict, client, mail, sample.rcpt, tally.snapshot.config.relay.requirements)
    return Advice(words.failed, words.remedies[:_SENTENCES], words.also[:_SENTENCES])


def actions(tally: Tally) -> dict[str, RefusalAction]:
    """Return what is done with refused mail of each organisation ("" none) that has any, if it is not rejected."""
    rules, found = tally.snapshot.rules, {}
    for heading in (Heading.REFUSED, Heading.MENDED):
        for name, _ in tally.sections[heading].reasons.counts:
            found[name] = tally.snapshot.action(rules.organizations[name] if name else None)
    return {name: action for name, action in sorted(found.items()) if action is not RefusalAction.REJECT}


def _upstream(tally: Tally, group: Group) -> Advice:
    sample, there = group.samples[0], tally.snapshot.upstream
    for origin in (group.origin, MADE_HERE):  # what a client sent to inside may leave as a forwarded copy
        judgement = tally.judged(origin, sample.reverse_path, sample.rcpt)
        if there and judgement.upstream:
            remedies = upstream_words.remedies(tally.snapshot, judgement, sample.reverse_path)
            decision = upstream_words.decision(there, judgement.upstream, sample.reverse_path)
            return Advice(decision, tuple(remedies)[:_SENTENCES])
    return Advice("", ())
