# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out the answer of `gatepost check`, for a person at 80 columns or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from textwrap import wrap
from typing import Optional

import click

from gatepost.admin.check import Answer, Envelope, Report
from gatepost.admin.configuration import printable
from gatepost.relay import Result
from gatepost.service.config import Mode

WIDTH = 80
_COLUMN = 38


def as_text(report: Report) -> str:
    """Return the answer for a person. What is styled reads the same without."""
    parts = [_head(report)]
    parts += ["\n".join(_recipient(answer)) for answer in report.answers]
    if report.notes:
        parts.append("\n".join(_items("Note: ", report.notes, indent="")))
    if report.bypassed:
        text = "BYPASS IS ON: none of this takes effect, all mail passes gatepost untouched (gatepost bypass off)."
        parts.append("\n".join(click.style(line, fg="red", bold=True) for line in _wrapped(text, "")))
    return "\n\n".join(parts)


def _head(report: Report) -> str:
    question = report.question
    client = question.ip or "unknown address"
    if question.authenticated:
        client += ", authenticated (SASL)"
    lines = [*_wrapped(client, "Client       ")]
    names = ", ".join(question.certificate_names) or "none that is trusted"
    lines += _wrapped(printable(names), "Certificate  ")
    if question.helo:
        lines += _wrapped(f"{printable(question.helo)} (information only, it never counts)", "HELO         ")
    return "\n".join([*lines, f"Rule set     {report.requirements.value}"])


def _recipient(answer: Answer) -> Iterator[str]:
    yield click.style(
        printable(f"To {answer.before.rcpt}: {_word(answer)}"), bold=True, fg="red" if answer.refused else "green"
    )
    yield from _wrapped(printable(answer.decision), "  ")
    yield ""
    yield from _side_by_side(answer.explanation.p1, answer.explanation.p2)
    yield ""
    yield "  Conditions tried"
    yield from _items("- ", answer.explanation.steps)
    if answer.failed:
        yield from _wrapped(printable(answer.failed), "  ")
    if answer.remedies:
        yield ""
        yield "  What to change" + (" (any one of these may do)" if len(answer.remedies) > 1 else "")
        yield from _items("- ", answer.remedies)
    yield ""
    yield "  What happens"
    yield from _items("- ", _happens(answer))
    if answer.envelope:
        yield from _envelope("Envelope afterwards", answer.envelope)
    if not answer.effective and answer.enforced and answer.enforced != answer.envelope:
        yield from _envelope("Envelope in mode enforce", answer.enforced)


def _word(answer: Answer) -> str:
    if answer.refused:
        return _turned_away(answer) if answer.effective else "would be refused (mode monitor)"
    return {Result.INSIDE: "let through, no relay", Result.EXEMPT: "relayed, exempt"}.get(
        answer.judgement.verdict.result, "relayed"
    )


def _turned_away(answer: Answer) -> str:
    return "put off" if answer.reply.startswith("4") else "refused"


def _happens(answer: Answer) -> Iterator[str]:
    """Yield what the client or the recipient notices, the mode considered."""
    organization = answer.judgement.verdict.organization
    where = f"organization {organization.name}" if organization else "relay.mode"
    refusal = f"{_turned_away(answer)} with {answer.reply}" if answer.reply else "left to Postfix's own restrictions"
    if answer.refused and answer.effective:
        yield f"The recipient is {refusal}."
    elif answer.refused:
        yield f"Mode monitor ({where}): logged and counted, and let through. In mode enforce: {refusal}."
    elif answer.effective:
        yield "The MTA takes it" + (", P1 rewritten by SRS." if _rewritten(answer) else "; P1 stays as it is.")
    elif answer.enforced != answer.envelope:
        yield f"Mode monitor ({where}): the MTA takes it and P1 stays. In mode enforce SRS rewrites P1."
    else:
        yield f"The MTA takes it, in mode monitor ({where}) as in mode enforce."
    yield from map(printable, answer.notes)


def _rewritten(answer: Answer) -> bool:
    return answer.envelope is not None and answer.envelope.mail_from != answer.before.mail_from


def _envelope(title: str, envelope: Envelope) -> Iterator[str]:
    yield ""
    yield f"  {title}"
    yield printable(f"    MAIL FROM:<{envelope.mail_from}>")
    yield printable(f"    RCPT TO:<{envelope.rcpt}>")


def _side_by_side(p1: str, p2: str) -> Iterator[str]:
    """Yield P1 and P2 in two columns; one below the other where an address is too long for that."""
    left, right = _column(p1), _column(p2)
    if any(len(line) > _COLUMN for line in (*left, *right)):
        yield from _wrapped(p1, "  P1, envelope sender  ")
        yield from _wrapped(p2, "  P2, header From      ")
        return
    for first, second in zip_longest(("P1, envelope sender", *left), ("P2, header From", *right), fillvalue=""):
        yield f"  {first:<{_COLUMN}}  {second}".rstrip()


def _column(text: str) -> list[str]:
    return wrap(text, _COLUMN, break_long_words=False, break_on_hyphens=False)


def _items(mark: str, texts: Iterable[str], indent: str = "  ") -> Iterator[str]:
    for text in texts:
        yield from _wrapped(text, indent + mark)


def _wrapped(text: str, start: str) -> list[str]:
    """Return *text* in lines of WIDTH behind *start*; a word is never broken, so addresses can be copied."""
    following = " " * len(start)
    return wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )


def as_json(report: Report) -> str:
    """Return the answer for a program."""
    question = report.question
    document = {
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
        "recipients": [_as_object(answer) for answer in report.answers],
    }
    return json.dumps(document, indent=2)


def _as_object(answer: Answer) -> dict[str, object]:
    judged = answer.judgement.verdict
    return {
        "rcpt": answer.before.rcpt,
        "result": judged.result.value,
        "reason": judged.reason.value,
        "refused": answer.refused,
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
        "notes": answer.notes,
        "envelope": _envelope_object(answer.envelope),
        "envelope_if_enforced": _envelope_object(answer.enforced),
    }


def _envelope_object(envelope: Optional[Envelope]) -> Optional[dict[str, str]]:
    return {"mail_from": envelope.mail_from, "rcpt": envelope.rcpt} if envelope else None
