# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts a report's entries, says in words what they come to, and what to change. Pure.

Entries come one by one in the order of time, perhaps millions of them: what is counted by client, domain or group keeps
only the keys that come most often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Optional

from gatepost.admin.report import Messages, client_of, sender_domain, utc
from gatepost.admin.report_model import Group, Job, ReportType, Summary
from gatepost.relay import Client, Mail, Reason, Result, Rules, RuleSet, attribute, domain_of, explain
from gatepost.service.ledger import DEFER, MEND, NOT_RELAYED, QUARANTINE, REJECT, TAG, Entry
from gatepost.service.report_store import Found

GROUPS = 50
KEYS = 50_000
"""How many keys one count may have before the rarest are put together."""
SHOWN = 1000
P2_DOMAINS = 10
_SRS = {
    "srs-forged": "The recipient has the form of this host's SRS addresses, but its hash is wrong.",
    "srs-expired": "The recipient is an SRS address of this host that has expired.",
    "srs-unknown": "The recipient has the form of this host's compact SRS addresses, but the store has no such one.",
    "srs-not-a-bounce": "The recipient is an SRS address of this host, which takes only bounces (null sender).",
    "srs-beside-others": "The recipient is an SRS address of this host, which takes no other recipient beside it.",
    "sender-unrewritable": "P1 must be rewritten by SRS, and is too long or no address.",
    "too-many-tags": "The message came with more X-Gatepost-Relay headers than gatepost removes.",
}
_LONGER = "Raise srs.validity_days if bounces are to be taken back for longer."
_SRS_REMEDIES = {
    "srs-forged": ("If a key that is gone made it, append that key at the end of srs.secret_file.",),
    "srs-expired": (_LONGER,),
    "srs-unknown": ("If another host made it, give both one store.url, of PostgreSQL.",),
    "srs-not-a-bounce": ("Whoever means the original sender writes to that one's own address.",),
    "sender-unrewritable": ("Let the application use a shorter, well-formed P1, or one in an accepted domain.",),
}
_WAY_IN_UNKNOWN = (
    "P1 is in no accepted domain, so SRS rewrote it. Only the egress hop saw this mail; how it came in is not known."
)
_DONE = {REJECT: "refused", DEFER: "put off", QUARANTINE: "held", TAG: "tagged", MEND: "rewritten"}
NO_MAIL = "The ledger has no mail of that time, so nothing can be said of it."
_HERE = ("", "127.0.0.1", "::1")
"""Of what address sendmail(1) is."""
_UPSTREAM = "Exchange Online would refuse it, and SRS cannot mend it, so it is refused here ([upstream] refuse)."
_BY_NOW = "Relayed by the configuration in force; nothing has to be changed any more."


class Tally:
    """Counts by key. Of more than 2 * KEYS keys the KEYS rarest are dropped: `others` is what they counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.others = 0

    def add(self, key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        if len(self.counts) > 2 * KEYS:
            kept = self._sorted()[:KEYS]
            self.others += sum(self.counts.values()) - sum(count for _, count in kept)
            self.counts = dict(kept)

    def top(self) -> tuple[tuple[str, int], ...]:
        """Return the commonest keys, and last, where there are more, what all the others come to."""
        ordered = self._sorted()
        rest = self.others + sum(count for _, count in ordered[SHOWN:])
        return (*ordered[:SHOWN], *((("all others", rest),) if rest else ()))

    def number(self) -> str:
        """Return how many keys there are, in words."""
        return f"more than {KEYS:,}" if self.others else f"{len(self.counts):,}"

    def described(self) -> str:
        """Return how many keys there are, which are hosts."""
        return f"{self.number()} host{'s' if len(self.counts) != 1 else ''}"

    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass
class _Collected:
    """What a group has by now. *sample*: its first entry."""

    sample: Entry
    domains: dict[str, None] = field(default_factory=dict)
    messages: int = 0
    recipients: int = 0


class Summarizer:
    """Counts entries for the summary of a report, by day, client, domain and group.

    p2_unseen: how many more messages a report on P2 might have, for nobody saw theirs; whoever knows sets it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._messages = Messages()
        self._days = Tally()
        self.clients = Tally()
        self._domains = Tally()
        self.bounced = Tally()
        self._groups: dict[tuple[str, ...], _Collected] = {}
        self.messages = self.recipients = self.would_refuse = self.by_p2 = self.p2_unseen = 0
        self.done = dict.fromkeys(_DONE, 0)

    def add(self, found: Found) -> None:
        """Count *found*, an entry of the report."""
        entry = found.entry
        self.recipients += 1
        group = self._group(entry)
        group.recipients += 1
        for address in entry.header_from.split(", ") if len(group.domains) < P2_DOMAINS else ():
            if address:
                group.domains[address.rpartition("@")[2]] = None
        if found.bounces:
            self.bounced.add(entry.rewritten)
        if not self._messages.first(entry.reference):
            return
        self.messages += 1
        group.messages += 1
        self.would_refuse += entry.action not in NOT_RELAYED
        if entry.action in self.done:
            self.done[entry.action] += 1
        self.by_p2 += entry.verdict_current == "refuse" and entry.verdict_legacy == "relay"
        self._days.add(utc(entry.time).date().isoformat())
        self.clients.add(client_of(entry))
        self._domains.add(sender_domain(entry))

    def _group(self, entry: Entry) -> _Collected:
        # What fails by SRS has another remedy than what the relay rule refuses.
        key = (client_of(entry), sender_domain(entry), entry.organization, entry.reason if entry.reason in _SRS else "")
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= 2 * KEYS:
                ordered = sorted(self._groups.items(), key=lambda item: -item[1].messages)
                self._groups = dict(ordered[:KEYS])
            group = self._groups[key] = _Collected(entry)
        return group

    def summary(self, rules: Rules) -> Summary:
        """Return the summary; *rules*, those in force, say what is wrong with each group."""
        largest = sorted(self._groups.values(), key=lambda group: (-group.messages, -group.recipients))[:GROUPS]
        return Summary(
            sentence=_sentence(self._job, self),
            messages=self.messages,
            recipients=self.recipients,
            by_day=tuple((day, self._days.counts.get(day, 0)) for day in _days(self._job)),
            by_client=self.clients.top(),
            by_domain=self._domains.top(),
            groups=tuple(_group(group, rules, self._job.type) for group in largest),
        )


def _group(group: _Collected, rules: Rules, report_type: ReportType) -> Group:
    sample = group.sample
    problem, remedies = _problem(sample, rules, report_type)
    return Group(
        client=client_of(sample),
        helo=sample.helo,
        sender_domain=sender_domain(sample),
        header_from=tuple(group.domains),
        organization=sample.organization,
        messages=group.messages,
        recipients=group.recipients,
        problem=problem,
        remedies=remedies,
    )


def _problem(sample: Entry, rules: Rules, report_type: ReportType) -> tuple[str, tuple[str, ...]]:
    """Return what is wrong with the mail that *sample* stands for, by the rule set 2023-11-01, and its remedies."""
    if sample.reason in _SRS:
        return _SRS[sample.reason], _SRS_REMEDIES.get(sample.reason, ())
    if not sample.requirements:
        return _WAY_IN_UNKNOWN, ()
    client = rebuilt_client(sample, rules)
    mail = Mail(sample.reverse_path, tuple(filter(None, sample.header_from.split(", "))))
    verdict = attribute(client, mail, domain_of(sample.recipient), rules, RuleSet.CURRENT)
    if verdict.result is Result.REFUSE:
        words = explain(verdict, client, mail, sample.recipient, RuleSet.CURRENT)
        return words.failed, (*words.remedies, *words.also)
    if report_type is ReportType.REWRITTEN:
        return "P1 is in no accepted domain, so SRS rewrote it; nothing has to be changed.", ()
    if report_type is ReportType.NON_ACCEPTED_DOMAIN and not _accepted(rules, sample.sender_domain):
        return "P1 is in no accepted domain; the mail is relayed by its certificate or login.", ()
    return (_UPSTREAM if sample.reason.startswith("upstream-") else _BY_NOW), ()


def rebuilt_client(sample: Entry, rules: Rules) -> Client:
    """Return the client of *sample* as *rules* see it."""
    why = exemption(sample)
    return rules.client(
        sample.client or None,
        tuple(filter(None, sample.certificate_names.split(", "))),
        authenticated=why is Reason.AUTHENTICATED,
        local=why is Reason.LOCAL_SUBMISSION,
    )


def exemption(*entries: Entry) -> Optional[Reason]:
    """Return why the client of a message's *entries* was exempt from the rule, None where it was not.

    Where its mail was refused for another reason, the ledger does not have why: it had authenticated, unless it was
    this host.
    """
    reasons = {entry.reason for entry in entries}
    known = [why for why in (Reason.AUTHENTICATED, Reason.LOCAL_SUBMISSION) if why.value in reasons]
    clients = [entry.client for entry in entries if entry.verdict_current == Result.EXEMPT.value]
    if known or not clients:
        return next(iter(known), None)
    return Reason.LOCAL_SUBMISSION if clients[0] in _HERE else Reason.AUTHENTICATED


def _accepted(rules: Rules, domain: str) -> bool:
    accepted = rules.accepted(domain)
    return accepted is not None and rules.counts(accepted)


def limited(summary: Summary, job: Job, begins: Optional[float], refusals: Optional[float] = None) -> Summary:
    """Return *summary* with what the ledger can't know of the time asked for: "not affected" would be too much said.

    begins: of the ledger, in Unix seconds; None: it is empty. refusals: of those in it, where older ones may have had
    to make room.
    """
    if begins is None or utc(begins) >= job.end:
        return replace(summary, sentence=NO_MAIL)
    sentences, first = [summary.sentence], max(utc(begins), job.start)
    if first.date() > job.start.date():
        sentences.append(f"The ledger begins on {first.day} {first:%B %Y}.")
    oldest = first if refusals is None else utc(refusals)
    if oldest.date() > first.date():
        sentences.append(f"Many were refused, so the ledger has refusals only from {oldest.day} {oldest:%B %Y} on.")
    return replace(summary, sentence=" ".join(sentences))


def _sentence(job: Job, counted: Summarizer) -> str:
    when = _period(job)
    if counted.messages == 0:
        return {
            ReportType.P2_SENDER_ATTRIBUTION: _nothing_by_p2(when, counted.p2_unseen),
            ReportType.NON_ACCEPTED_DOMAIN: f"No message {when} came through a connector with an envelope sender (P1) "
            "outside the accepted domains: not affected.",
            ReportType.REFUSED: f"No message {when} was refused, and none would have been in mode enforce.",
            ReportType.REWRITTEN: f"No message {when} had its envelope sender (P1) rewritten.",
        }[job.type]
    who = f"{_number(counted.messages, 'message')} from {counted.clients.described()} {when}"
    if job.type is ReportType.P2_SENDER_ATTRIBUTION:
        text = f"{who} could be relayed only because of the From address (P2). Exchange Online refuses such mail."
        return f"{text} {_unseen(counted.p2_unseen)}".rstrip()
    if job.type is ReportType.NON_ACCEPTED_DOMAIN:
        return f"{who} came through a connector with an envelope sender (P1) that is in no accepted domain."
    if job.type is ReportType.REWRITTEN:
        return f"{who} left with an envelope sender (P1) that SRS rewrote; {_bounced(counted.bounced)}."
    return f"{who} {_refused(counted)}"


def _nothing_by_p2(when: str, unseen: int) -> str:
    if not unseen:
        return f"No message {when} relied on its From address (P2): not affected."
    return f"No message {when} is known to have relied on its From address (P2). {_unseen(unseen)}"


def _unseen(messages: int) -> str:
    if not messages:
        return ""
    them = "it" if messages == 1 else "them"
    return (
        f"Of {_number(messages, 'message')} that the rules refuse, the From address was not seen, so nothing can be "
        f"said of {them}."
    )


def _refused(counted: Summarizer) -> str:
    one = counted.messages == 1
    were = "was" if one else "were"
    done = [f"{count:,} {_DONE[action]}" for action, count in counted.done.items() if count]
    if not done:
        text = f"{were} let through, and would have been refused in mode enforce."
    elif counted.would_refuse:
        text = f"break the rules: {', '.join(done)}, {counted.would_refuse:,} let through in mode monitor."
    elif len(done) == 1:
        text = f"{were} {done[0].partition(' ')[2]}."
    else:
        text = f"break the rules: {', '.join(done)}."
    if counted.by_p2:
        text += f" {'It' if one else f'{counted.by_p2:,} of them'} relied on the From address (P2) alone."
    return text


def _bounced(addresses: Tally) -> str:
    if not addresses.counts:
        return "no bounces came back"
    return f"bounces came back to {addresses.number()} of the rewritten addresses"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _period(job: Job) -> str:
    """Return the days of the report in words; its end is exclusive."""
    first, last = job.start.date(), _last_day(job)
    if first == last:
        return f"on {first.day} {first:%B %Y}"
    start = str(first.day)
    if first.year != last.year:
        start += f" {first:%B %Y}"
    elif first.month != last.month:
        start += f" {first:%B}"
    return f"between {start} and {last.day} {last:%B %Y}"


def _last_day(job: Job) -> date:
    """Return the last day that can have mail: the end is exclusive, and may lie in the future."""
    return max(job.start, min(job.end - timedelta(microseconds=1), job.submitted)).date()


def _days(job: Job) -> Iterator[str]:
    day = job.start.date()
    while day <= _last_day(job):
        yield day.isoformat()
        day += timedelta(days=1)
