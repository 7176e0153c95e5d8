# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger says of a message, in words: decided then, and what happened. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from gatepost.admin.check import decision_for, mended_decision, returned_decision
from gatepost.admin.check_model import MONITOR, SRS_BOUNCE, UNREWRITABLE, Answer, Envelope, Question
from gatepost.admin.report_summary import exemption
from gatepost.milter.session import TAG as TAG_HEADER
from gatepost.relay import Connector, Mail, Organization, Reason, Result, RuleSet, Verdict, decision
from gatepost.service import replies
from gatepost.service.flow import SRS_REFUSALS
from gatepost.service.ledger import DEFER, LEFT_TO_MTA, MEND, PASS, QUARANTINE, REJECT, RETURN, REWRITE, TAG, Entry

_TOGETHER = "together"
"""The outcome of a recipient that was refused with another one of its message."""
_REPLIES = {
    **{reason: reply for reply, reason in filter(None, SRS_REFUSALS.values())},
    "srs-not-a-bounce": replies.BOUNCES_ONLY,
    UNREWRITABLE: replies.UNREWRITABLE,
    "too-many-tags": replies.TOO_MANY_TAGS,
}
_WORDS = {
    REJECT: "refused",
    _TOGETHER: "refused with the whole message",
    DEFER: "put off",
    QUARANTINE: "held",
    TAG: "let through with a header",
    MEND: "let through with an SRS sender",
    MONITOR: "let through in mode monitor, though the rules refuse it",
    LEFT_TO_MTA: "left to Postfix",
    RETURN: "given back to the original sender",
    REWRITE: "relayed",
    PASS: "relayed",
}


@dataclass(frozen=True)
class Then:
    """What was decided and done about one recipient.

    outcome: of `Answer.outcome`, or "" where only the egress hop saw the message. envelopes: with what the MTA went on.
    """

    entry: Entry
    outcome: str
    word: str
    decision: str
    happened: tuple[str, ...]
    envelopes: tuple[Envelope, ...]

    @property
    def refused(self) -> bool:
        return self.outcome in (REJECT, _TOGETHER, DEFER, QUARANTINE, TAG)


def question_of(entries: list[Entry]) -> Question:
    """Return what came, of the entries of one message.

    What comes later, header From or certificate, an entry of a refusal at RCPT has not.
    """
    first = max(entries, key=lambda entry: (bool(entry.requirements), -entry.time))  # the egress hop knows no client
    why = exemption(*entries)
    return Question(
        ip=first.client or None,
        helo=first.helo or None,
        certificate_names=_listed(entry.certificate_names for entry in entries),
        authenticated=why is Reason.AUTHENTICATED,
        local=why is Reason.LOCAL_SUBMISSION,
        mail_from=first.reverse_path,
        header_from=_listed(entry.header_from for entry in entries),
        recipients=tuple(entry.recipient for entry in entries),
    )


def _listed(recorded: Iterable[str]) -> tuple[str, ...]:
    """Return the items of the first list that is recorded."""
    return tuple(filter(None, next(filter(None, recorded), "").split(", ")))


def then(entry: Entry) -> Then:
    """Return what *entry* says, in words."""
    verdict = _verdict(entry)
    outcome = _outcome(entry, verdict)
    return Then(
        entry=entry,
        outcome=outcome,
        word=_word(entry, outcome, verdict),
        decision=_decision(entry, outcome, verdict),
        happened=tuple(_happened(entry, outcome)),
        envelopes=tuple(_envelopes(entry, outcome)),
    )


def _verdict(entry: Entry) -> Optional[Verdict]:
    """Return the verdict of the rule set in force, as far as `decision` asks for it; None: none is recorded."""
    legacy = entry.verdict_legacy if entry.requirements == RuleSet.LEGACY.value else ""
    in_force = legacy or entry.verdict_current
    try:
        result, reason = Result(in_force), Reason(entry.reason)
    except ValueError:
        return None
    organization = Organization(entry.organization, ()) if entry.organization else None
    connector = Connector(entry.connector) if entry.connector else None
    return Verdict(result, reason, organization, connector, None, (), True)


def _outcome(entry: Entry, verdict: Optional[Verdict]) -> str:
    if entry.action == REJECT and entry.reason not in _REPLIES and verdict and verdict.result is not Result.REFUSE:
        return _TOGETHER
    if not entry.requirements:
        return ""
    if entry.action not in (PASS, REWRITE):
        return entry.action
    if entry.reason == LEFT_TO_MTA:
        return LEFT_TO_MTA
    return MONITOR if verdict and verdict.result is Result.REFUSE else entry.action


def _word(entry: Entry, outcome: str, verdict: Optional[Verdict]) -> str:
    if not outcome:
        return "rewritten on the egress hop"
    if outcome in (PASS, REWRITE) and verdict and verdict.result is not Result.RELAY:
        return "let through, no relay" if verdict.result is Result.INSIDE else "relayed, exempt"
    return _WORDS.get(outcome, entry.action)


def _decision(entry: Entry, outcome: str, verdict: Optional[Verdict]) -> str:
    if outcome == RETURN:
        return returned_decision(entry.recipient, entry.forwarded_to)
    if not outcome:
        return "SRS rewrote P1. Only the egress hop saw this message; how it came in is not known."
    if verdict is None:
        return decision_for(entry.reason, entry.recipient)
    mail = Mail(entry.reverse_path, tuple(filter(None, entry.header_from.split(", "))))
    text = decision(verdict, mail, entry.recipient, RuleSet(entry.requirements))
    return mended_decision(text) if outcome == MEND else text


def _happened(entry: Entry, outcome: str) -> list[str]:
    header = f"{TAG_HEADER}: refused; reason={entry.reason}; reference={entry.reference}"
    sentence = {
        REJECT: f"The recipient was refused with {_reply(entry, replies.RELAY_DENIED)}.",
        _TOGETHER: "The recipient was refused with another one of this message, whose refusal held for all of it.",
        DEFER: f"The recipient was put off with {_reply(entry, replies.RELAY_DEFERRED)}.",
        QUARANTINE: "The whole message was taken and held in the MTA's hold queue (action = quarantine).",
        TAG: f"The whole message was let through with the header {header} (action = tag).",
        MEND: 'The MTA took it with an SRS sender (action = "rewrite"); the rules refuse it else.',
        MONITOR: "Mode monitor: it was logged and counted, and let through.",
        LEFT_TO_MTA: "policyd left it to Postfix's own restrictions, which took it.",
        RETURN: "The MTA took it for the original sender.",
    }.get(outcome, "The MTA took it.")
    happened = [sentence]
    if entry.rewritten:
        happened.append("SRS rewrote P1.")
    if entry.forwarded_to and outcome != RETURN:
        happened.append(f"A copy was forwarded to {entry.forwarded_to}.")
    return happened


def _reply(entry: Entry, by_rule: replies.Reply) -> str:
    by_srs = _REPLIES.get(entry.reason)
    return str(by_srs or by_rule.with_reference(entry.reference))


def _envelopes(entry: Entry, outcome: str) -> list[Envelope]:
    if outcome in (REJECT, _TOGETHER, DEFER):
        return []
    recipients = entry.forwarded_to.split(", ") if entry.forwarded_to else [entry.recipient]
    return [Envelope(entry.rewritten or entry.reverse_path, rcpt) for rcpt in recipients]


def difference(then: Then, today: Answer) -> str:
    """Return how the outcome of *today*, for the same message, differs from what was recorded, "" where it does not.

    Whether SRS rewrites is left out: that may rest on DNS, and on where a copy went.
    """
    verdict, entry = today.judgement.verdict, then.entry
    if then.outcome in ("", _TOGETHER):
        return ""
    now, before = (PASS if outcome == REWRITE else outcome for outcome in (today.outcome, then.outcome))
    if now == MONITOR and verdict.result is not Result.REFUSE:  # for Exchange Online's sake
        now = PASS
    returned = (now, before) == (RETURN, PASS) and entry.verdict_current == Result.INSIDE.value  # by the map, later
    if now != before and not returned:
        words = {**_WORDS, PASS: "let through"}
        return f"With today's configuration it would be {words[now]}."
    owner = verdict.organization.name if verdict.organization else ""
    if returned or before == RETURN or today.reason == SRS_BOUNCE:
        return ""
    if today.reason != entry.reason:
        return "With today's configuration the outcome would be the same, for another reason."
    if owner != entry.organization and entry.reason not in _REPLIES:
        return f"With today's configuration the outcome would be the same, for {owner or 'no organization'}."
    return ""
