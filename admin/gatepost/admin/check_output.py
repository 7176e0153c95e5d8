# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out the answer of `gatepost check`, for a person at 80 columns or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from textwrap import wrap
from typing import Optional

import click

from gatepost.admin.check import TAKING
from gatepost.admin.check_model import Answer, Envelope, Question, Report
from gatepost.admin.configuration import printable
from gatepost.relay import Result, RuleSet
from gatepost.service.flow import Treatment
from gatepost.service.ledger import LEFT_TO_MTA
from gatepost.service.organizations import Mode, RefusalAction

WIDTH = 80
MENDED = "let through with an SRS sender"
_COLUMN = 38
_MENDED = 'P1 rewritten by SRS (action = "rewrite"); else the rules refuse it'


def as_text(report: Report) -> str:
    """Return the answer for a person. What is styled reads the same without."""
    parts = [_head(report)]
    parts += ["\n".join(_recipient(answer)) for answer in report.answers]
    if report.notes:
        parts.append("\n".join(_items("Note: ", report.notes, indent="")))
    return "\n\n".join([*parts, *bypass(report)])


def bypass(report: Report) -> Iterator[str]:
    """Yield a paragraph where nothing of the answer is in force."""
    if report.bypassed:
        text = "BYPASS IS ON: none of this takes effect, all mail passes gatepost untouched (gatepost bypass off)."
        yield "\n".join(click.style(line, fg="red", bold=True) for line in wrapped(text, ""))


def _head(report: Report) -> str:
    taken = [printable(text) for text in report.question.taken]
    lines = [line for text in taken for line in wrapped(text, "Taken        ")]
    return "\n".join([*lines, *([""] if lines else []), *client(report.question), *rule_set(report.requirements)])


def client(question: Question) -> Iterator[str]:
    """Yield who sends the message."""
    address = question.ip or "unknown address"
    if question.authenticated:
        address += ", authenticated (SASL)"
    if question.local:
        address += ", by sendmail(1) on this host"
    yield from field("Client", address)
    yield from field("Certificate", ", ".join(question.certificate_names) or "none that is trusted")
    if question.helo:
        yield from field("HELO", f"{question.helo} (information only, it never counts)")


def rule_set(requirements: RuleSet) -> Iterator[str]:
    yield from field("Rule set", requirements.value)


def field(name: str, text: str) -> list[str]:
    """Return a line, or more, about the whole message."""
    return wrapped(printable(text), f"{name:<13}")


def _recipient(answer: Answer) -> Iterator[str]:
    yield heading(answer.before.rcpt, word(answer), refused=answer.refused)
    yield from wrapped(printable(answer.decision), "  ")
    yield from reasoning(answer)
    yield ""
    yield from listed("What happens", _happens(answer))
    yield from for_upstream(answer)
    if answer.envelope:
        yield from envelope("Envelope afterwards", answer.envelope)
    if not answer.effective and answer.enforced and answer.enforced != answer.envelope:
        yield from envelope("Envelope in mode enforce", answer.enforced)


def heading(rcpt: str, word: str, *, refused: bool) -> str:
    return click.style(printable(f"To {rcpt}: {word}"), bold=True, fg="red" if refused else "green")


def reasoning(answer: Answer) -> Iterator[str]:
    """Yield P1 and P2 side by side, what was tried, what failed and what to change."""
    yield ""
    yield from _side_by_side(answer.explanation.p1, answer.explanation.p2)
    yield ""
    yield "  Conditions tried"
    if any("condition" in step for step in answer.explanation.steps):
        yield "  (1: certificate or P1 in an accepted domain; 2: connector matches the client)"
    yield from _items("- ", answer.explanation.steps)
    if answer.failed:
        yield from wrapped(printable(answer.failed), "  ")
    if answer.remedies:
        yield ""
        several = " (any one of these may do)" if len(answer.remedies) > 1 else ""
        yield from listed(f"What to change{several}", answer.remedies)
    if answer.also:
        yield from listed("And, in any case" + (" (any one of these)" if len(answer.also) > 1 else ""), answer.also)


def for_upstream(answer: Answer) -> Iterator[str]:
    """Yield what to change at the way on to Exchange Online."""
    if answer.upstream_remedies:
        yield ""
        several = " (any one of these may do)" if len(answer.upstream_remedies) > 1 else ""
        yield from listed(f"What to change for Exchange Online{several}", map(printable, answer.upstream_remedies))


def word(answer: Answer) -> str:
    """Return in a word or two what becomes of the message."""
    if answer.reason == LEFT_TO_MTA:
        return "left to Postfix"
    if answer.refused:
        return _turned_away(answer) if answer.effective else f"would be {_turned_away(answer)} (mode monitor)"
    if answer.mended:
        return MENDED if answer.effective else f"would be {MENDED} (mode monitor)"
    return {Result.INSIDE: "let through, no relay", Result.EXEMPT: "relayed, exempt"}.get(
        answer.judgement.verdict.result, "relayed"
    )


def _turned_away(answer: Answer) -> str:
    if answer.action in TAKING:
        return "held" if answer.action is RefusalAction.QUARANTINE else "let through with a header"
    return "put off" if answer.reply.startswith("4") else "refused"


def _happens(answer: Answer) -> Iterator[str]:
    """Yield what the client or the recipient notices, the mode considered."""
    organization = answer.judgement.verdict.organization
    where = f"organization {organization.name}" if organization else "relay.mode"
    if answer.refused and answer.effective:
        yield f"{consequence(answer)}."
    elif answer.mended and answer.effective:
        yield f"The MTA takes it, {_MENDED}."
    elif answer.mended:
        yield f"Mode monitor ({where}): logged and counted, and let through with P1 as it is."
        yield f"In mode enforce: let through, {_MENDED}."
    elif answer.refused:
        enforced = consequence(answer)
        yield f"Mode monitor ({where}): logged and counted, and let through."
        yield f"In mode enforce: {enforced[0].lower()}{enforced[1:]}."
    elif answer.effective:
        yield "The MTA takes it" + (", P1 rewritten by SRS." if _rewritten(answer) else "; P1 stays as it is.")
    elif answer.enforced != answer.envelope:
        yield f"Mode monitor ({where}): the MTA takes it and P1 stays. In mode enforce SRS rewrites P1."
    else:
        yield f"The MTA takes it, in mode monitor ({where}) as in mode enforce."
    yield from map(printable, answer.notes)


def consequence(answer: Answer) -> str:
    """Return what is done about what the rules refuse, without a full stop."""
    if answer.action is RefusalAction.QUARANTINE:
        return (
            "The whole message is taken and held in the MTA's hold queue (action = quarantine), until somebody "
            "releases it (postsuper -H) or deletes it (postsuper -d)"
        )
    if answer.action is RefusalAction.TAG:
        from gatepost.milter.session import TAG  # loads most of the milter

        return f"The whole message is let through with the header {TAG}: refused; reason={answer.reason} (action = tag)"
    if not answer.reply:
        return "The recipient is left to Postfix's own restrictions"
    by = " (upstream.refuse)" if answer.if_enforced.treatment is Treatment.UPSTREAM else ""
    return f"The recipient is {_turned_away(answer)} with {answer.reply}{by}"


def _rewritten(answer: Answer) -> bool:
    return answer.envelope is not None and answer.envelope.mail_from != answer.before.mail_from


def envelope(title: str, envelope: Envelope) -> Iterator[str]:
    yield ""
    yield f"  {title}"
    yield printable(f"    MAIL FROM:<{envelope.mail_from}>")
    yield printable(f"    RCPT TO:<{envelope.rcpt}>")


def _side_by_side(p1: str, p2: str) -> Iterator[str]:
    """Yield P1 and P2 in two columns; one below the other where an address is too long for that."""
    left, right = _column(p1), _column(p2)
    if any(len(line) > _COLUMN for line in (*left, *right)):
        yield from wrapped(p1, "  P1, envelope sender  ")
        yield from wrapped(p2, "  P2, header From      ")
        return
    for first, second in zip_longest(("P1, envelope sender", *left), ("P2, header From", *right), fillvalue=""):
        yield f"  {first:<{_COLUMN}}  {second}".rstrip()


def _column(text: str) -> list[str]:
    return wrap(text, _COLUMN, break_long_words=False, break_on_hyphens=False)


def listed(title: str, texts: Iterable[str]) -> Iterator[str]:
    yield f"  {title}"
    yield from _items("- ", texts)


def _items(mark: str, texts: Iterable[str], indent: str = "  ") -> Iterator[str]:
    for text in texts:
        yield from wrapped(text, indent + mark)


def wrapped(text: str, start: str) -> list[str]:
    """Return *text* in lines of WIDTH behind *start*; a word is never broken, so addresses can be copied."""
    following = " " * len(start)
    return wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )


def as_json(report: Report) -> str:
    """Return the answer for a program."""
    question = report.question
    document = {
        **({"taken_from_message": question.taken} if question.taken else {}),
        "client": {
            "ip": question.ip,
            "helo": question.helo,
            "certificate_names": question.certificate_names,
            "authenticated": question.authenticated,
        },
        "mail_from": report.mail.reverse_path,
        "header_from": report.mail.header_from,
        "requirements": report.requirements.value,
        "bypass": report.bypassed,
        "refused": any(answer.refused for answer in report.answers),
        "notes": report.notes,
        "recipients": [as_object(answer) for answer in report.answers],
    }
    return json.dumps(document, indent=2)


def as_object(answer: Answer) -> dict[str, object]:
    """Return the answer for one recipient for a program."""
    judged = answer.judgement.verdict
    return {
        "rcpt": answer.before.rcpt,
        "result": judged.result.value,
        "reason": answer.reason,
        "refused": answer.refused,
        "action": answer.outcome,
        "mode": (Mode.ENFORCE if answer.judgement.enforce else Mode.MONITOR).value,
        "organization": judged.organization.name if judged.organization else None,
        "connector": judged.connector.name if judged.connector else None,
        "accepted_domain": judged.accepted_domain.domain if judged.accepted_domain else None,
        "reply": answer.reply or None,
        "decision": answer.decision,
        "failed": answer.failed or None,
        "p1": answer.explanation.p1,
        "p2": answer.explanation.p2,
        "steps": answer.explanation.steps,
        "remedies": answer.remedies,
        "also": answer.also,
        "upstream_remedies": answer.upstream_remedies,
        "notes": answer.notes,
        "upstream": answer.upstream or None,
        "envelope": _envelope_object(answer.envelope),
        "envelope_if_enforced": _envelope_object(answer.enforced),
    }


def _envelope_object(envelope: Optional[Envelope]) -> Optional[dict[str, str]]:
    return {"mail_from": envelope.mail_from, "rcpt": envelope.rcpt} if envelope else None
