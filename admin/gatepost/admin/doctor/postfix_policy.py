# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how Postfix asks policyd: where, in which order, and what it does when there is no answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, error, info, ok, warning
from gatepost.admin.doctor.postfix import once_wired, sockets, topology, wire
from gatepost.admin.doctor.postfix_entries import Restriction, postconf
from gatepost.admin.postfix.config import Service, split
from gatepost.admin.postfix.wiring import Topology

RELAY, RCPT, DATA = "smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions"
_ENDING = ("reject_unauth_destination", "reject")
_PUTTING_OFF = ("defer_unauth_destination", "defer", "defer_if_permit")


def _at(circumstances: Circumstances, service: Service, name: str) -> tuple[list[Restriction], Optional[int]]:
    """Return a restriction list of *service*, and where in it policyd is asked."""
    chrooted = circumstances.postfix.is_chrooted(service)
    found = entries.restrictions(circumstances.postfix, service, name)
    at = (index for index, item in enumerate(found) if entries.is_policy(circumstances, item, chrooted=chrooted))
    return found, next(at, None)


def _asked_first(circumstances: Circumstances, service: Service, name: str) -> list[str]:
    """Return the commands that put policyd first in a list."""
    value = circumstances.postfix.effective(service, name)
    policy = f"check_policy_service {sockets(circumstances).policyd}"
    others = _without_policy(circumstances, value)
    return postconf(circumstances, name, ", ".join([policy, others] if others else [policy]), service)


def _without_policy(circumstances: Circumstances, value: str) -> str:
    """Return a restriction list without gatepost's policy service, and without one that only seems to be."""
    items, parts = split(value), []
    while items:
        item = items.pop(0)
        if item.startswith("check_") and items:
            argument = items.pop(0)
            listens = circumstances.config.policyd.listen
            if item == "check_policy_service" and entries.named_like_gatepost(circumstances, argument, listens):
                continue
            item = f"{item} {argument}"
        parts.append(item)
    return ", ".join(parts)


def policy(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether every smtpd that takes mail from others asks policyd, about recipients and at DATA."""
    if topology(circumstances) is Topology.POSTSRSD_REPLACEMENT:
        return
    services = entries.ingress(circumstances)
    missing = [found for service in services for found in _unasked(circumstances, service)]
    yield from missing
    if services and not missing:
        yield ok(f"policyd is asked: {entries.named(services)}")


def _unasked(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    enforces = circumstances.config.relay.enforced_by == "policyd"
    main, other = (RELAY, RCPT) if enforces else (RCPT, RELAY)
    if _at(circumstances, service, main)[1] is None:
        elsewhere = _at(circumstances, service, other)[1] is not None
        wanted = wire(circumstances, main)
        why = wanted.why if wanted else ""
        if enforces and elsewhere:
            yield warning(
                f"{service.key}: policyd is asked in {other}, not in {main}",
                "Its refusals count there, its OK does not: a connector's host relays only if mynetworks has it, too.",
                *_asked_first(circumstances, service, main),
            )
        elif not elsewhere:
            text = f"{service.key}: {main} does not ask policyd{_mistaken(circumstances, service, main)}"
            if enforces:
                why = f"The relay rule is policyd's here, so nothing enforces it. {why}"
            yield (error if enforces else warning)(text, why, *_asked_first(circumstances, service, main))
    if _at(circumstances, service, DATA)[1] is None and circumstances.config.srs.accept_from == "bounces":
        wanted = wire(circumstances, DATA)
        yield warning(
            f"{service.key}: {DATA} does not ask policyd{_mistaken(circumstances, service, DATA)}",
            f"{wanted.why if wanted else ''} Without it anybody can write to original senders through SRS addresses.",
            *_asked_first(circumstances, service, DATA),
        )


def _mistaken(circumstances: Circumstances, service: Service, name: str) -> str:
    """Return, in words, the policy service of a list that seems to mean policyd and does not lead to it."""
    listens = circumstances.config.policyd.listen
    for item in entries.restrictions(circumstances.postfix, service, name):
        if item.name != "check_policy_service":
            continue
        if entries.named_like_gatepost(circumstances, item.policy.address, listens):
            return f": {item.policy.address} is not where it listens ({', '.join(map(str, listens))})"
    return ""


def order(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether anything before policyd lets mail past it, and what stands behind its OK."""
    enforces = circumstances.config.relay.enforced_by == "policyd"
    fine = []
    for service in entries.ingress(circumstances):
        found = list(_order(circumstances, service, enforces=enforces))
        yield from found
        asked = any(_at(circumstances, service, name)[1] is not None for name in (RELAY, RCPT, DATA))
        if asked and not found:
            fine.append(service)
    if fine:
        yield ok(f"nothing stands before policyd: {entries.named(fine)}")


def _order(circumstances: Circumstances, service: Service, *, enforces: bool) -> Iterator[Finding]:
    for name in (RELAY, RCPT, DATA):
        items, at = _at(circumstances, service, name)
        if at is None:
            continue
        permits = [str(item) for item in items[:at] if item.name.startswith("permit")]
        if permits:
            judged = "Your own hosts relay unjudged: what is permitted there never gets to policyd."
            unseen = (
                "What is permitted there never gets to policyd: forged SRS addresses pass, and the milter does not "
                "hear of certificates."
            )
            yield (error if enforces and name == RELAY else warning)(
                f"{service.key}: in {name} policyd stands behind {', '.join(permits)}",
                judged if enforces and name == RELAY else unseen,
                *_asked_first(circumstances, service, name),
            )
        tables = [str(item) for item in items[:at] if item.name.startswith("check_") and item.name != _HELO]
        if tables:
            yield info(
                f"{service.key}: in {name} policyd stands behind {', '.join(tables)}",
                "Where one of these says OK, policyd is not asked. Leave it so if none does.",
                *_asked_first(circumstances, service, name),
            )
        if enforces and name == RELAY:
            yield from _behind(circumstances, service, [item.name for item in items[at + 1 :]])


_HELO = "check_helo_access"


def _behind(circumstances: Circumstances, service: Service, names: list[str]) -> Iterator[Finding]:
    """Yield what is wrong behind policyd, which says DUNNO to what is none of its business."""
    ending = next((name for name in names if name in (*_ENDING, *_PUTTING_OFF, "permit")), None)
    value = ", ".join(
        item for item in split(_joined(circumstances, service), ",") if item.strip() not in (*_PUTTING_OFF, "permit")
    )
    mended = postconf(circumstances, RELAY, f"{value}, reject_unauth_destination", service)
    if ending in _PUTTING_OFF:
        yield warning(
            f"{service.key}: {RELAY} ends in {ending}",
            "Mail that nobody let relay is put off for days where it should be refused.",
            *mended,
        )
    elif ending not in _ENDING:
        yield error(
            f"{service.key}: {RELAY} has no reject_unauth_destination behind policyd",
            "policyd says DUNNO to what has nothing to do with an organization. With nothing behind it Postfix refuses "
            "to take mail, or relays for everybody.",
            *mended,
        )


def _joined(circumstances: Circumstances, service: Service) -> str:
    return ",".join(map(str, entries.restrictions(circumstances.postfix, service, RELAY)))


def default_action(circumstances: Circumstances) -> Iterator[Finding]:
    """What becomes of mail while policyd is away."""
    postfix = circumstances.postfix
    enforces = circumstances.config.relay.enforced_by == "policyd"
    fine: dict[str, list[Service]] = {}
    for service in entries.ingress(circumstances):
        for name in (RELAY, RCPT, DATA):
            items, at = _at(circumstances, service, name)
            if at is None:
                continue
            own = items[at].policy.option("default_action")
            action = own or postfix.effective(service, "smtpd_policy_service_default_action")
            word = action.split()[0].lower() if action else ""
            if word.startswith("4") or word.startswith("defer"):
                fine.setdefault(action, []).append(service)
                continue
            refuses = word.startswith("5") or word == "reject"
            where = f"{name}: {items[at].policy.text}" if own else f"smtpd_policy_service_default_action = {action}"
            why = (
                "While policyd is away, be it for a restart, all mail is refused for good."
                if refuses
                else "While policyd is away all of mynetworks relays unjudged."
                if enforces
                else "While policyd is away forged SRS addresses pass, and the milter does not hear of certificates."
            )
            yield (error if refuses or enforces else warning)(
                f"{service.key}: {where}",
                why,
                *postconf(
                    circumstances,
                    "smtpd_policy_service_default_action",
                    "451 4.3.0 Service unavailable, try again later",
                    service,
                ),
            )
    if fine:
        yield ok(f"policyd away: {', '.join(fine)}")


CHECKS = (
    Check("policy", "Postfix", once_wired(policy)),
    Check("policy-order", "Postfix", once_wired(order)),
    Check("policy-default-action", "Postfix", once_wired(default_action)),
)
