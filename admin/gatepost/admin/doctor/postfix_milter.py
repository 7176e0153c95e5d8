# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how Postfix hands mail to gatepost's milter, and what it does while that is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, error, info, ok, warning
from gatepost.admin.doctor.postfix import once_wired, our_milter, wire
from gatepost.admin.doctor.postfix_entries import Entry, postconf
from gatepost.admin.postfix.config import Service

_PASSING = ("tempfail", "shutdown")
"""Milter default actions that make a client try again."""
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
        yield error(
            f"{service.key}: smtpd_milters {named}",
            f"{wanted.why} What comes in here is neither judged nor rewritten.",
            *postconf(circumstances, "smtpd_milters", entries.in_front(wanted.value, value, similar), service),
        )
    with_it = [service for service in services if service not in without]
    for service in with_it:
        options = postfix.effective_entries(service, "receive_override_options")
        if "no_milters" in options:
            without.append(service)
            kept = ",".join(option for option in options if option != "no_milters")
            yield error(
                f"{service.key}: receive_override_options has no_milters",
                "What comes in here is neither judged nor rewritten.",
                *postconf(circumstances, "receive_override_options", kept, service),
            )
    with_it = [service for service in with_it if service not in without]
    if with_it:
        yield ok(f"smtpd_milters has gatepost: {entries.named(with_it)}")
    for service in with_it:
        exceptions = postfix.effective(service, "smtpd_milter_maps")
        if exceptions:
            yield info(
                f"{service.key}: smtpd_milter_maps = {exceptions}",
                "For the clients in it Postfix asks other milters than those in smtpd_milters, or none.",
            )


def _similar_milter(circumstances: Circumstances, service: Service, entry: Entry) -> bool:
    return entries.named_like_gatepost(circumstances, entry.address, [circumstances.config.milter.listen])


def milter_for_sendmail_command(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether mail from sendmail(1) passes the milter."""
    wanted = wire(circumstances, "non_smtpd_milters")
    if wanted is None:
        return
    value = circumstances.postfix.expanded("non_smtpd_milters")
    if _for_sendmail_command(circumstances):
        yield ok("non_smtpd_milters has gatepost")
    else:
        yield warning(
            f'non_smtpd_milters is "{value}", without gatepost' if value else "non_smtpd_milters is empty",
            f"{wanted.why} Without it such mail leaves with the sender that it came with.",
            *postconf(circumstances, "non_smtpd_milters", entries.in_front(wanted.value, value)),
        )


def _for_sendmail_command(circumstances: Circumstances) -> Optional[Entry]:
    """Return gatepost's entry in non_smtpd_milters."""
    chrooted = entries.cleanup_is_chrooted(circumstances.postfix)
    milters = entries.milters(circumstances.postfix.expanded("non_smtpd_milters"))
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
    local = _for_sendmail_command(circumstances)
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
    value = postfix.effective(service, name) if service else postfix.expanded(name)
    others = entries.milters(value)
    if own or len(others) > 1:  # what the others' milters are to do may be meant so
        kept = [option for option in entry.options if not option.startswith("default_action")]
        mended = f"{{ {', '.join([entry.address, *kept, 'default_action=tempfail'])} }}"
        value = ", ".join(mended if item == entry else item.text for item in others)
        commands = postconf(circumstances, name, value, service)
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
