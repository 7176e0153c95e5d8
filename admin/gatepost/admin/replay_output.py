# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out what `gatepost replay` found, for a person at a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Optional

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gatepost.admin.configuration import printable
from gatepost.admin.replay_blocks import Block, blocks
from gatepost.admin.replay_count import Count, Section
from gatepost.admin.replay_log import Log
from gatepost.admin.replay_message import Origin, text
from gatepost.admin.replay_tally import MADE_HERE, Heading, Tally
from gatepost.admin.replay_words import ACTIONS, NOTES, P2, TITLES, UNADVISED, WITHOUT_TLS, actions

_WIDTH = 80
_NARROWEST = 40
_WIDEST = 1000
_DETAILED = (
    *(Heading.REFUSED, Heading.CERTIFICATE_UNNAMED, Heading.P2_UNSEEN),
    *(Heading.UPSTREAM, Heading.MENDED),
)


def print_all(log: Log, tally: Tally, top: int) -> None:
    """Print what was found: a sentence, tables, what to change, and what was left out."""
    for line in summary(log, tally):
        _paragraph(line, bold=True)
    if not log.tls and any(tally.sections[heading].messages for heading in (Heading.REFUSED, Heading.MENDED)):
        _paragraph(WITHOUT_TLS)
    for line in seen(tally):
        _paragraph(line)
    for name, action in actions(tally).items():
        if action not in ACTIONS:
            continue
        whose = f"of {name}" if name else "of no organization"
        _paragraph(f'Refused mail {whose} {ACTIONS[action]} (action = "{action.value}").')
    for heading in _DETAILED:
        section = tally.sections[heading]
        if section.messages:
            _section(tally, heading, section, top)
    refused = tally.sections[Heading.REFUSED]
    if any(reason != "no-connector" for _, reason in refused.reasons.counts):
        click.echo()
        _paragraph(P2)
    click.echo()
    for line in left_out(log, tally):
        _paragraph(line)


def summary(log: Log, tally: Tally) -> Iterator[str]:
    """Yield what the replay comes to: what would be refused, then what is counted beside it."""
    refused = tally.sections[Heading.REFUSED]
    begin, end = (printable(text(head).rpartition(" ")[0]) for head in (log.first, log.last))
    of = f"{_messages(tally.messages, tally.recipients)} that clients sent between {begin} and {end}"
    who = _number(refused.hosts, "host")
    if not refused.messages:
        yield f"None of {of} would be refused."
    else:
        number = f"{refused.messages:,} ({_recipients(refused.recipients)}, from {who})"
        yield f"Of {of}, {number} would be refused."
    for heading in _DETAILED[1:]:
        section = tally.sections[heading]
        if section.messages:
            yield f"{TITLES[heading]}: {_messages(section.messages, section.recipients)}."
    if tally.by_enforce:
        yield f"Refused by Exchange Online only until mode enforce rewrites it: {_messages(tally.by_enforce)}."


def seen(tally: Tally) -> Iterator[str]:
    """Yield what the log itself shows of refusals by the next hop."""
    if tally.denied:
        yield f"In the log itself, the next hop refused with 5.7.64 (dsn=5.7.64): {_messages(tally.denied)}."
    if tally.notices:
        yield f"NDRs about these, which cease with the refusals and are not judged: {_messages(tally.notices)}."


def left_out(log: Log, tally: Tally) -> Iterator[str]:
    """Yield what is counted elsewhere, or not at all."""
    yield (
        f"Recipients that are inside, so that nothing is relayed: {tally.inside:,}; relayed as the rules have it: "
        f"{tally.relayed:,}."
    )
    if tally.left:
        yield (
            f"No organization is meant, so policyd leaves it to Postfix (reject_unauth_destination): "
            f"{_recipients(tally.left)}."
        )
    rejected = tally.sections[Heading.REJECTED]
    if rejected.recipients:
        yield (
            f"The MTA did not take {_recipients(rejected.recipients)} that the rules refuse as well. They are in no "
            "table above."
        )
    if tally.made_here:
        yield (
            f"Made by this MTA itself: {_messages(tally.made_here)} (bounces, notifications, copies that local(8) "
            "forwards). No client relays them."
        )
    if tally.hops:
        yield f"Left out, as they came back from a content filter or an egress hop: {_messages(tally.hops)}."
    if tally.restored:
        yield f"With P1 as it was before SRS rewrote it here: {_messages(tally.restored)}."
    if tally.unrestored:
        yield (
            f"With an SRS address in a domain of yours as P1, made with another key than this host's: "
            f"{_messages(tally.unrestored)}, judged as they are. Where postsrsd rewrites P1 on this host, "
            "`gatepost import postsrsd` takes its key over."
        )
    if tally.incomplete:
        yield (
            f"Incomplete, as the log begins or ends amid them: {_messages(tally.incomplete)}, of which "
            f"{tally.unknown:,} could not be judged."
        )
    if log.evicted:
        yield f"Of the incomplete ones {log.evicted:,} were given up early, to keep memory bounded."
    if log.unread:
        yield f"Lines that could not be read: {log.unread:,}."


def _section(tally: Tally, heading: Heading, section: Section, top: int) -> None:
    click.echo()
    _paragraph(f"{TITLES[heading]}: {_messages(section.messages, section.recipients)}", bold=True)
    if heading in NOTES:
        _paragraph(NOTES[heading])
    table = _table("Messages", "Recipients", "Organization", "Reason")
    reasons: dict[tuple[str, str], tuple[int, int]] = {}
    for (organization, reason), (messages, recipients) in section.reasons.top():
        before = reasons.get((tally.owner(organization), reason), (0, 0))
        reasons[tally.owner(organization), reason] = (before[0] + messages, before[1] + recipients)
    for (organization, reason), numbers in reasons.items():
        table.add_row(*_numbers(numbers), _text(organization), reason)
    _print(table)
    _hosts(tally, section, top)
    table = _table("Messages", "Recipients", "P1 domain")
    for (domain,), numbers in section.domains.top()[:top]:
        table.add_row(*_numbers(numbers), _text(domain))
    _print(table)
    _more(section.domains, top, "P1 domains")
    if heading is Heading.MENDED:
        return
    click.echo()
    found, others = blocks(tally, heading, section)
    for block in found[:top]:
        _block(heading, block)
    others += len(found[top:])
    if others or section.others[0]:
        click.echo(f"… and {others:,}{' and more' if section.others[0] else ''} other groups (--top).")


def _hosts(tally: Tally, section: Section, top: int) -> None:
    table = _table("Messages", "Recipients", "Of all its messages", "Host", "Name")
    for (ip, name), numbers in section.hosts.top()[:top]:
        sent = tally.hosts.counts.get((ip, name))
        share = f"{100 * numbers[0] / sent[0]:.0f} %" if sent else ""
        table.add_row(*_numbers(numbers), share, _text(ip or MADE_HERE.name), _text(name if ip else ""))
    _print(table)
    _more(section.hosts, top, "hosts")


def _more(count: Count, top: int, what: str) -> None:
    more = len(count.counts) - top
    if more > 0 or count.others[0]:
        click.echo(f"… and {max(more, 0):,}{' and more' if count.others[0] else ''} other {what} (--top).")


def _block(heading: Heading, block: Block) -> None:
    count, advice = _messages(block.messages, block.recipients), block.advice
    number = len(block.origins)
    who = host(block.origins[0]) if number == 1 else f"{block.addresses()} ({number:,} hosts)"
    _paragraph(f"{who}, P1 domain {block.sender_domain}: {count}", bold=True)
    lines = [] if heading in UNADVISED else [("  ", advice.problem)]
    lines += (("  - ", remedy) for remedy in advice.remedies)
    if advice.also:
        lines += [("  ", "and, in any case:"), *(("  - ", sentence) for sentence in advice.also)]
    for indent, sentence in lines:
        for line in _wrapped(sentence, indent):
            click.echo(line)
    for sample in block.samples:
        envelope = f"from=<{sample.reverse_path}> to=<{sample.rcpt}>"
        click.echo(printable(f"    {sample.time} {sample.queue_id} {envelope} {sample.outcome}"))


def host(origin: Origin) -> str:
    """Return a client with its name and what it showed of itself."""
    if not origin.ip:
        return origin.name
    name = origin.name if origin.name not in ("", "unknown", origin.ip) else ""
    certificate = f"certificate {origin.common_name}" if origin.common_name else ""
    known = ", ".join(filter(None, (name, certificate)))
    return f"{origin.ip} ({known})" if known else origin.ip


def _messages(messages: int, recipients: Optional[int] = None) -> str:
    number = f"{messages:,} message{'s' if messages != 1 else ''}"
    return number if recipients in (None, messages) else f"{number} to {_recipients(recipients or 0)}"


def _recipients(number: int) -> str:
    return f"{number:,} recipient{'s' if number != 1 else ''}"


def _number(count: Count, what: str) -> str:
    more = "more than " if count.others[0] else ""
    return f"{more}{len(count.counts):,} {what}{'s' if len(count.counts) != 1 else ''}"


def _numbers(numbers: tuple[int, int]) -> tuple[str, str]:
    return f"{numbers[0]:,}", f"{numbers[1]:,}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        right = column in ("Messages", "Recipients", "Of all its messages")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table


def _text(shown: str) -> Text:
    return Text(printable(shown))


def _print(table: Table) -> None:
    """Print a table as wide as it needs to be: a name that is cut or folded is of no use for a search."""
    click.echo()
    console = Console(width=_WIDEST, highlight=False, emoji=False, markup=False)
    console.width = console.measure(table).maximum
    console.print(table)


def _paragraph(sentences: str, *, bold: bool = False) -> None:
    click.secho("\n".join(_wrapped(sentences)), bold=bold)


def _wrapped(sentences: str, indent: str = "") -> Sequence[str]:
    return wrap(
        printable(sentences),
        _width(),
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    """Return COLUMNS, the terminal's width, or 80, but no more than is easily read."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return max(min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH) if known else _WIDTH, _NARROWEST)
