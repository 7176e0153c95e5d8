# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how bounces find their way back through Postfix: by map, by the milter or by REDIRECT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Finding,
    edit,
    error,
    info,
    instance,
    ok,
    reload_postfix,
    warning,
)
from gatepost.admin.doctor.postfix import asks, lists_with, mended, once_wired, sockets, wire
from gatepost.admin.doctor.postfix_entries import REVERSE, postconf
from gatepost.admin.postfix.config import Service, split
from gatepost.service import rewriting
from gatepost.service.srs_config import ReverseBy

_OPTIONS = "receive_override_options"


def reverse(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether bounces find their way back, by what srs.reverse says."""
    how = circumstances.config.srs.reverse
    if not circumstances.config.organizations:
        return
    if how is ReverseBy.MAP:
        yield from _reverse_map(circumstances)
    elif how is ReverseBy.MILTER:
        yield from _reverse_milter(circumstances)
    else:
        yield from _reverse_redirect(circumstances)


def _reverse_map(circumstances: Circumstances) -> Iterator[Finding]:
    postfix = circumstances.postfix
    wanted = wire(circumstances, "virtual_alias_maps") or wire(circumstances, "recipient_canonical_maps")
    parameter = wanted.parameter if wanted else "virtual_alias_maps"
    table = wanted.value if wanted else sockets(circumstances).map(REVERSE)
    there = [name for name in lists_with(circumstances, REVERSE) if not name.startswith("sender")]
    if not (there or rewriting.rewrites(circumstances.snapshot)):
        yield info(
            f"{parameter} does not have gatepost's map reverse",
            "Nothing here makes SRS addresses. Bounces to those that another host makes are not led back by this one.",
        )
        return
    value = postfix.expanded(parameter)
    if not there:
        similar = [
            item.text
            for item in entries.lookups(value)
            if item.map == REVERSE
            and entries.named_like_gatepost(circumstances, item.address, circumstances.config.policyd.listen)
        ]
        named = "does not have gatepost's map reverse"
        if similar:
            listens = ", ".join(map(str, circumstances.config.policyd.listen))
            named = f"has {', '.join(similar)}, where policyd does not listen ({listens})"
        yield error(
            f"{parameter} {named}",
            "Bounces of rewritten mail do not reach the original senders: Postfix refuses them, for it knows no such "
            "recipient.",
            *(postconf if similar else mended)(
                circumstances, parameter, entries.edited(postfix, parameter, dict.fromkeys(similar, ""), first=table)
            ),
        )
        return
    for name in there:
        first, *rest = split(postfix.expanded(name))
        if any(entries.is_map(circumstances, item, REVERSE) for item in entries.lookups(first)):
            yield ok(f"bounces come back by {name}")
        else:
            ours = next(item for item in rest if "reverse" in item or "tcp:" in item)
            yield warning(
                f"{name}: gatepost's map stands behind {first}",
                "A table before it that has an entry for the whole domain takes bounces away from gatepost.",
                *mended(circumstances, name, entries.edited(postfix, name, {ours: ""}, first=ours)),
            )
    yield from _mapped(circumstances, there)


def _mapped(circumstances: Circumstances, names: Sequence[str]) -> Iterator[Finding]:
    """Yield where addresses are not looked up, however often a filter hands mail back: by smtpd, pickup or cleanup."""
    postfix = circumstances.postfix

    def passes_on(service: Service) -> bool:
        return "no_address_mappings" in postfix.effective_entries(service, _OPTIONS)

    def looks_up(cleanup: Optional[Service]) -> bool:
        tables = [table for name in names for table in entries.lookups(entries.seen(postfix, cleanup, name))]
        return any(entries.is_map(circumstances, table, REVERSE) for table in tables)

    back = [service for service in postfix.smtpds if entries.takes_back(circumstances, service)]
    later = not back or any(not passes_on(item) and looks_up(entries.cleanup_of(postfix, item)) for item in back)
    lacking: dict[str, Service] = {}
    passing: dict[str, list[Service]] = {}
    for service in (None, *entries.ingress(circumstances), *entries.pickups(postfix)):
        if service and entries.filters(postfix, service) and later:
            continue
        cleanup = entries.cleanup_of(postfix, service)
        if service and passes_on(service):
            passing.setdefault(service.key if _OPTIONS in service.overrides else "", []).append(service)
        elif cleanup and not looks_up(cleanup):
            lacking[cleanup.key] = cleanup
    for services in passing.values():
        kept = entries.edited(postfix, _OPTIONS, {"no_address_mappings": ""}, services[0]).replace(", ", ",")
        yield error(
            f"{entries.named(services)}: {_OPTIONS} has no_address_mappings",
            "Neither here nor behind a content filter are recipients looked up in maps, so bounces that come in "
            "here do not get back to the original senders.",
            *postconf(circumstances, _OPTIONS, kept, services[0]),
        )
    for cleanup in lacking.values():
        for name in names:
            value = postfix.effective(cleanup, name)
            option = instance(circumstances)
            remove = [f"postconf{option} -PX '{cleanup.key}/{name}'", reload_postfix(circumstances)]
            yield error(
                f'{cleanup.key}: {name} is "{value}", without gatepost\'s map reverse',
                "cleanup(8) looks recipients up, by this list and not by that of main.cf: bounces that it gets do not "
                "go back to the original senders.",
                *(mended(circumstances, name, value, cleanup) if value else remove),
            )


def _reverse_milter(circumstances: Circumstances) -> Iterator[Finding]:
    postfix = circumstances.postfix
    classes = postfix.entries("internal_mail_filter_classes")
    if "bounce" in classes:
        yield ok('bounces come back by the milter (srs.reverse = "milter")')
    else:
        yield error(
            f'internal_mail_filter_classes is "{" ".join(classes)}", and srs.reverse is "milter"',
            "Most bounces are made by this Postfix itself. Without the class bounce they pass no milter, so they do "
            "not reach the original senders.",
            *postconf(
                circumstances,
                "internal_mail_filter_classes",
                entries.edited(postfix, "internal_mail_filter_classes", {}, last="bounce"),
            ),
        )


def _reverse_redirect(circumstances: Circumstances) -> Iterator[Finding]:
    missing = [
        service
        for service in entries.ingress(circumstances)
        if asks(circumstances, service, "smtpd_data_restrictions") is None
    ]
    for service in missing:
        policy = f"check_policy_service {sockets(circumstances).policyd}"
        value = entries.edited(circumstances.postfix, "smtpd_data_restrictions", {}, service, first=policy)
        yield error(
            f'{service.key}: smtpd_data_restrictions does not ask policyd, and srs.reverse is "redirect"',
            "policyd leads a bounce back at DATA, when all recipients are known. Without that bounces do not reach the "
            "original senders.",
            *mended(circumstances, "smtpd_data_restrictions", value, service),
        )
    if not missing:
        yield ok("bounces come back by REDIRECT at DATA")
    always = circumstances.postfix.expanded("always_bcc")
    if always:
        yield warning(
            f'always_bcc is "{always}", and srs.reverse is "redirect"',
            "REDIRECT replaces all recipients, so bounces that are led back have no BCC copy.",
            edit(circumstances, 'srs.reverse = "map"'),
        )


def alias_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether policyd is asked which domains exist."""
    wanted = wire(circumstances, "virtual_alias_domains")
    postfix = circumstances.postfix
    if wanted is None or "virtual_alias_maps" not in list(lists_with(circumstances, REVERSE)):
        return
    domains = postfix.expanded("virtual_alias_domains")
    ours = [item.text for item in entries.lookups(domains) if entries.is_map(circumstances, item, REVERSE)]
    if ours:
        others = entries.edited(postfix, "virtual_alias_domains", dict.fromkeys(ours, ""))
        yield warning(
            f'virtual_alias_domains is "{postfix.value("virtual_alias_domains")}"',
            wanted.why,
            *mended(circumstances, "virtual_alias_domains", others),
        )
    else:
        yield ok("virtual_alias_domains leaves gatepost out")


CHECKS = (
    Check("reverse-map", "Postfix", once_wired(reverse)),
    Check("alias-domains", "Postfix", once_wired(alias_domains)),
)
