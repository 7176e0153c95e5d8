# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how Postfix asks policyd: where, in which order, and what it does when there is no answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, error, info, ok, warning
from gatepost.admin.doctor.postfix import mended, once_wired, sockets, topology, wire
from gatepost.admin.doctor.postfix_domains import lets_connectors_relay
from gatepost.admin.doctor.postfix_entries import postconf
from gatepost.admin.postfix.config import Service
from gatepost.admin.postfix.relaying import GUARDS, Restriction, restrictions, sasl_only
from gatepost.admin.postfix.wiring import AWAY, Topology

RELAY, RCPT, DATA = "smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_data_restrictions"
_ENDING = ("reject_unauth_destination", "reject")
_PUTTING_OFF = ("defer_unauth_destination", "defer", "defer_if_permit")
_FOR_STRANGERS = ("reject_unauth_destination", "defer_unauth_destination")
_ACTION = "smtpd_policy_service_default_action"


def _at(circumstances: Circumstances, service: Service, name: str) -> tuple[list[Restriction], Optional[int]]:
    """Return a restriction list of *service*, and where in it policyd is asked."""
    chrooted = circumstances.postfix.is_chrooted(service)
    found = restrictions(circumstances.postfix, service, name)
    at = (index for index, item in enumerate(found) if entries.is_policy(circumstances, item, chrooted=chrooted))
    return found, next(at, None)


def _asked_first(circumstances: Circumstances, service: Service, name: str) -> list[str]:
    """Return the commands that put policyd first in a list: its entry as it is, else one in place of mistaken ones."""
    items, at = _at(circumstances, service, name)
    mistaken = [str(item) for item in items if _seems_ours(circumstances, item)]
    ours = f"check_policy_service {sockets(circumstances).policyd}" if at is None else str(items[at])
    gone = dict.fromkeys(mistaken if at is None else [ours], "")
    value = entries.edited(circumstances.postfix, name, gone, service, first=ours)
    return (postconf if gone else mended)(circumstances, name, value, service)


def _seems_ours(circumstances: Circumstances, item: Restriction) -> bool:
    entry = entries.policy(item)
    return entry is not None and entries.named_like_gatepost(
        circumstances, entry.address, circumstances.config.policyd.listen
    )


def policy(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether every smtpd that takes mail from others asks policyd, about recipients and at DATA."""
    if topology(circumstances) is Topology.POSTSRSD_REPLACEMENT:
        return
    services = entries.ingress(circumstances)
    missing = [found for service in services for found in _unasked(circumstances, service)]
    yield from missing
    asking = [item for item in services if any(_at(circumstances, item, name)[1] is not None for name in (RELAY, RCPT))]
    if asking and not missing:
        yield ok(f"policyd is asked: {entries.named(asking)}")


def _unasked(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    enforces = circumstances.config.relay.enforced_by == "policyd"
    main, other = (RELAY, RCPT) if enforces else (RCPT, RELAY)
    exempt = "authenticated" in circumstances.config.relay.exempt and sasl_only(circumstances.postfix, service, main)
    if _at(circumstances, service, main)[1] is None and not (enforces and exempt):
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
    listens = ", ".join(map(str, circumstances.config.policyd.listen))
    for item in restrictions(circumstances.postfix, service, name):
        entry = entries.policy(item)
        if entry and _seems_ours(circumstances, item):
            return f": {entry.address} is not where it listens ({listens})"
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
        checks = [item for item in items[:at] if item.name.startswith("check_") or item.table]
        tables = [str(item) for item in checks if item.name != _HELO]
        if tables:
            yield info(
                f"{service.key}: in {name} policyd stands behind {', '.join(tables)}",
                "Where one of these says OK, policyd is not asked. Leave it so if none does.",
                *_asked_first(circumstances, service, name),
            )
        if enforces and name == RELAY:
            yield from _refused_before(circumstances, service, items[:at])
            yield from _behind(circumstances, service, items[at + 1 :])
    if enforces:
        yield from _refused_elsewhere(circumstances, service)


_HELO = "check_helo_access"


def _refused_before(circumstances: Circumstances, service: Service, items: list[Restriction]) -> Iterator[Finding]:
    """Yield what refuses connectors' hosts before policyd can say OK."""
    guards = [item.name for item in items if item.name in GUARDS]
    if guards:
        yield error(
            f"{service.key}: in {RELAY} policyd stands behind {', '.join(guards)}",
            "Whatever is for outside is refused there, before policyd can let a connector's host relay.",
            *_asked_first(circumstances, service, RELAY),
        )


def _refused_elsewhere(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    """Yield what refuses connectors' hosts in the other list that mail has to pass."""
    items, at = _at(circumstances, service, RCPT)
    before = [item.name for item in items[:at]]
    guards = [name for name in before if name in _FOR_STRANGERS]
    if not guards or _at(circumstances, service, RELAY)[1] is None:
        return
    permitted = "permit_mynetworks" in before[: before.index(guards[0])]
    if not (permitted and lets_connectors_relay(circumstances, service)):
        yield error(
            f"{service.key}: {RCPT} has {guards[0]}",
            f"Mail has to pass both lists: what policyd lets a connector's host relay in {RELAY} is refused here.",
            *postconf(
                circumstances,
                RCPT,
                entries.edited(circumstances.postfix, RCPT, dict.fromkeys(guards, ""), service),
                service,
            ),
        )


def _behind(circumstances: Circumstances, service: Service, items: list[Restriction]) -> Iterator[Finding]:
    """Yield what is wrong behind policyd, which says DUNNO to what is none of its business."""
    names = [item.name for item in items]
    ending = next((name for name in names if name in (*_ENDING, *_PUTTING_OFF, "permit")), None)
    gone = {name: "" for name in names if name in (*_PUTTING_OFF, "permit")}
    value = entries.edited(circumstances.postfix, RELAY, gone, service, last="reject_unauth_destination")
    mended = postconf(circumstances, RELAY, value, service)
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


def default_action(circumstances: Circumstances) -> Iterator[Finding]:
    """What becomes of mail while policyd is away."""
    postfix = circumstances.postfix
    enforces = circumstances.config.relay.enforced_by == "policyd"
    fine: dict[str, list[Service]] = {}
    told = set()
    for service in entries.ingress(circumstances):
        for name in (RELAY, RCPT, DATA):
            items, at = _at(circumstances, service, name)
            if at is None:
                continue
            entry = entries.policy(items[at])
            own = entry.option("default_action") if entry else ""
            action = own or postfix.effective(service, _ACTION)
            word = action.split()[0].lower() if action else ""
            if word.startswith("4") or word.startswith("defer"):
                fine.setdefault(action, []).append(service)
                continue
            refuses = word.startswith("5") or word == "reject"
            where = f"{name}: {entry.text}" if entry and own else f"{_ACTION} = {action}"
            if (service.key, where) in told:
                continue
            told.add((service.key, where))
            why = (
                "While policyd is away, be it for a restart, all mail is refused for good."
                if refuses
                else "While policyd is away all of mynetworks relays unjudged."
                if enforces
                else "While policyd is away forged SRS addresses pass, and the milter does not hear of certificates."
            )
            yield (error if refuses or enforces else warning)(
                f"{service.key}: {where}", why, *_putting_off(circumstances, service, name, items[at])
            )
    if fine:
        yield ok(f"policyd away: {', '.join(fine)}")


def _putting_off(circumstances: Circumstances, service: Service, name: str, item: Restriction) -> list[str]:
    """Return the commands after which mail is put off: of the entry where it has an action of its own."""
    entry = entries.policy(item)
    if entry is None or not entry.option("default_action"):
        return postconf(circumstances, _ACTION, AWAY, service)
    kept = [option for option in entry.options if "default_action" not in option]
    options = [entry.address, *(f"{{ {option} }}" for option in kept), f"{{ default_action = {AWAY} }}"]
    new = f"{item.name} {{ {', '.join(options)} }}"
    return postconf(
        circumstances, name, entries.edited(circumstances.postfix, name, {str(item): new}, service), service
    )


CHECKS = (
    Check("policy", "Postfix", once_wired(policy)),
    Check("policy-order", "Postfix", once_wired(order)),
    Check("policy-default-action", "Postfix", once_wired(default_action)),
)
