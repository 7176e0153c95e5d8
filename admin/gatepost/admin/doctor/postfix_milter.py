# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how Postfix hands mail to gatepost's milter, and what it does while that is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, error, info, ok, warning
from gatepost.admin.doctor.postfix import mended, once_wired, our_milter, wire
from gatepost.admin.doctor.postfix_entries import Entry, postconf
from gatepost.admin.postfix.config import PostfixError, Service
from gatepost.admin.postfix.tables import Tables

_PASSING = ("tempfail", "shutdown")
"""Milter default actions that make a client try again."""
_STRANGERS = ("240.0.0.1", "3fff:ffff::1")
"""Addresses that no host has: what a table says of them it says of everybody."""
_ACTIONS = {
    "accept": "While gatepost is away, be it for a restart, all mail passes unjudged and unrewritten.",
    "reject": "While gatepost is away, be it for a restart, mail is refused for good and bounces at its senders.",
    "quarantine": "While gatepost is away all mail is held in the queue until somebody releases it by hand.",
}


def milter(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether every smtpd that takes mail from others hands it to the milter."""
    wanted = wire(circumstances, "smtpd_milters")
    if wanted is None:
        return
    postfix = circumstances.postfix
    services = entries.ingress(circumstances)
    without = [service for service in services if our_milter(circumstances, service) is None]
    for service in without:
        value = postfix.effective(service, "smtpd_milters")
        similar = [item.text for item in entries.milters(value) if _similar_milter(circumstances, service, item)]
        named = f'is "{value}"' if value else "is empty"
        if similar:
            named = f"has {', '.join(similar)}, where gatepost does not listen ({circumstances.config.milter.listen})"
        new = entries.edited(postfix, "smtpd_milters", dict.fromkeys(similar, ""), service, first=wanted.value)
        commands = (postconf if similar else mended)(circumstances, "smtpd_milters", new, service)
        yield error(
            f"{service.key}: smtpd_milters {named}",
            f"{wanted.why} What comes in here is neither judged nor rewritten.",
            *commands,
        )
    with_it = [service for service in services if service not in without]
    for service in with_it:
        options = postfix.effective_entries(service, "receive_override_options")
        if "no_milters" in options:
            without.append(service)
            kept = entries.edited(postfix, "receive_override_options", {"no_milters": ""}, service).replace(", ", ",")
            yield error(
                f"{service.key}: receive_override_options has no_milters",
                "What comes in here is neither judged nor rewritten.",
                *postconf(circumstances, "receive_override_options", kept, service),
            )
    with_it = [service for service in with_it if service not in without]
    if with_it:
        yield ok(f"smtpd_milters has gatepost: {entries.named(with_it)}")
    for service in with_it:
        yield from _exceptions(circumstances, service)


def _exceptions(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    """Yield what smtpd_milter_maps has: milters for some clients in place of those in smtpd_milters."""
    tables, chrooted = Tables(circumstances.postfix), circumstances.postfix.is_chrooted(service)
    for table in circumstances.postfix.effective_entries(service, "smtpd_milter_maps"):
        try:
            answers = [tables.query(table, address) for address in _STRANGERS]
        except PostfixError:
            answers = []
        for answer in filter(None, answers):
            others = entries.milters(answer)
            if not any(entries.is_milter(circumstances, item, chrooted=chrooted) for item in others):
                yield error(
                    f"{service.key}: smtpd_milter_maps: {table} says {answer} for every client",
                    "It wins over smtpd_milters: nobody's mail passes gatepost.",
                    *postconf(
                        circumstances,
                        "smtpd_milter_maps",
                        entries.edited(circumstances.postfix, "smtpd_milter_maps", {table: ""}, service),
                        service,
                    ),
                )
                break
        else:
            yield info(
                f"{service.key}: smtpd_milter_maps = {table}",
                "For the clients in it Postfix asks other milters than those in smtpd_milters, or none.",
            )


def _similar_milter(circumstances: Circumstances, service: Service, entry: Entry) -> bool:
    return entries.named_like_gatepost(circumstances, entry.address, [circumstances.config.milter.listen])


def milter_for_sendmail_command(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether mail from sendmail(1) passes the milter: cleanup(8) has it, and pickup(8) does not leave it out."""
    wanted = wire(circumstances, "non_smtpd_milters")
    if wanted is None:
        return
    postfix, name = circumstances.postfix, "non_smtpd_milters"
    found = []
    for cleanup in entries.unique(entries.cleanup_of(postfix, item) for item in entries.pickups(postfix)):
        if _for_sendmail_command(circumstances, cleanup):
            continue
        value = entries.seen(postfix, cleanup, name)
        where = f"{cleanup.key}: " if cleanup and name in cleanup.overrides else ""
        found.append(
            warning(
                where + (f'{name} is "{value}", without gatepost' if value else f"{name} is empty"),
                f"{wanted.why} Without it such mail leaves with the sender that it came with.",
                *mended(circumstances, name, entries.edited(postfix, name, {}, cleanup, first=wanted.value), cleanup),
            )
        )
    for service in entries.pickups(postfix):
        if "no_milters" in postfix.effective_entries(service, "receive_override_options"):
            new = entries.edited(postfix, "receive_override_options", {"no_milters": ""}, service).replace(", ", ",")
            found.append(
                warning(
                    f"{service.key}: receive_override_options has no_milters",
                    "Mail from sendmail(1) leaves with the sender that it came with.",
                    *postconf(circumstances, "receive_override_options", new, service),
                )
            )
    yield from found
    if not found:
        yield ok("non_smtpd_milters has gatepost")


def _for_sendmail_command(circumstances: Circumstances, cleanup: Optional[Service]) -> Optional[Entry]:
    """Return gatepost's entry in non_smtpd_milters as *cleanup* has it."""
    postfix = circumstances.postfix
    chrooted = cleanup is not None and postfix.is_chrooted(cleanup)
    milters = entries.milters(entries.seen(postfix, cleanup, "non_smtpd_milters"))
    return next((item for item in milters if entries.is_milter(circumstances, item, chrooted=chrooted)), None)


def milter_default_action(circumstances: Circumstances) -> Iterator[Finding]:
    """What becomes of mail while the milter is away."""
    postfix = circumstances.postfix
    used = []
    for service in entries.ingress(circumstances):
        entry = our_milter(circumstances, service)
        if entry:
            action = entry.option("default_action") or postfix.effective(service, "milter_default_action")
            used.append((service, action))
            if action not in _PASSING:
                yield _bad_action(circumstances, "smtpd_milters", entry, action, service)
    local = _for_sendmail_command(circumstances, postfix.service("cleanup", "unix"))
    if local:
        action = local.option("default_action") or postfix.expanded("milter_default_action")
        if action not in (*_PASSING, *(action for _, action in used)):
            yield _bad_action(circumstances, "non_smtpd_milters", local, action)
    fine = [(service, action) for service, action in used if action in _PASSING]
    if fine:
        actions = sorted({action for _, action in fine})
        yield ok(f"gatepost's milter away: {', '.join(actions)} ({entries.named([service for service, _ in fine])})")


def _bad_action(
    circumstances: Circumstances, name: str, entry: Entry, action: str, service: Optional[Service] = None
) -> Finding:
    postfix = circumstances.postfix
    own = entry.option("default_action")
    if own or len(entries.milters(entries.seen(postfix, service, name))) > 1:  # what the others are to do may be meant
        kept = [option for option in entry.options if not option.startswith("default_action")]
        new = f"{{ {', '.join([entry.address, *kept, 'default_action=tempfail'])} }}"
        commands = postconf(circumstances, name, entries.edited(postfix, name, {entry.text: new}, service), service)
    else:
        commands = postconf(circumstances, "milter_default_action", "tempfail", service)
    where = entry.text if own else f"milter_default_action = {action}"
    text = f"{service.key}: {where}" if service else f"{name}: {where}"
    kind = warning if action == "quarantine" else error
    return kind(text, _ACTIONS.get(action, "Postfix does not know this action."), *commands)


CHECKS = (
    Check("milter", "Postfix", once_wired(milter)),
    Check("milter-for-sendmail-command", "Postfix", once_wired(milter_for_sendmail_command)),
    Check("milter-default-action", "Postfix", once_wired(milter_default_action)),
)
