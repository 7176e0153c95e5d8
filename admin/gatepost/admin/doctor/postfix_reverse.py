# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of how bounces find their way back through Postfix: by map, by the milter or by REDIRECT."""

from __future__ import annotations

from collections.abc import Iterator

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import Check, Circumstances, Finding, error, info, ok, warning
from gatepost.admin.doctor.postfix import asks, lists_with, once_wired, sockets, wire
from gatepost.admin.doctor.postfix_entries import REVERSE, postconf
from gatepost.admin.postfix.config import Service, split
from gatepost.service import rewriting
from gatepost.service.srs_config import ReverseBy


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
            *postconf(circumstances, parameter, entries.in_front(table, value, similar)),
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
                *postconf(circumstances, name, entries.in_front(ours, postfix.expanded(name))),
            )
    yield from _mapped(circumstances)


def _mapped(circumstances: Circumstances) -> Iterator[Finding]:
    """Yield the smtpds behind which no address is mapped, however often a filter hands mail back."""
    postfix = circumstances.postfix

    def maps(service: Service) -> bool:
        return "no_address_mappings" not in postfix.effective_entries(service, "receive_override_options")

    back = [service for service in postfix.smtpds if entries.takes_back(circumstances, service)]
    for service in entries.ingress(circumstances):
        later = bool(entries.filters(postfix, service)) and (not back or any(map(maps, back)))
        if not maps(service) and not later:
            options = postfix.effective_entries(service, "receive_override_options")
            kept = ",".join(option for option in options if option != "no_address_mappings")
            yield error(
                f"{service.key}: receive_override_options has no_address_mappings",
                "Neither here nor behind a content filter are recipients looked up in maps, so bounces that come in "
                "here do not get back to the original senders.",
                *postconf(circumstances, "receive_override_options", kept, service),
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
            *postconf(circumstances, "internal_mail_filter_classes", " ".join([*classes, "bounce"])),
        )


def _reverse_redirect(circumstances: Circumstances) -> Iterator[Finding]:
    missing = [
        service
        for service in entries.ingress(circumstances)
        if asks(circumstances, service, "smtpd_data_restrictions") is None
    ]
    for service in missing:
        value = circumstances.postfix.effective(service, "smtpd_data_restrictions")
        policy = f"check_policy_service {sockets(circumstances).policyd}"
        yield error(
            f'{service.key}: smtpd_data_restrictions does not ask policyd, and srs.reverse is "redirect"',
            "policyd leads a bounce back at DATA, when all recipients are known. Without that bounces do not reach the "
            "original senders.",
            *postconf(circumstances, "smtpd_data_restrictions", f"{policy}, {value}".rstrip(", "), service),
        )
    if not missing:
        yield ok("bounces come back by REDIRECT at DATA")
    always = circumstances.postfix.expanded("always_bcc")
    if always:
        yield warning(
            f'always_bcc is "{always}", and srs.reverse is "redirect"',
            "REDIRECT replaces all recipients, so bounces that are led back have no BCC copy.",
            f'{circumstances.config.path}: srs.reverse = "map"',
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
        others = ", ".join(item for item in split(domains) if item not in ours)
        yield warning(
            f'virtual_alias_domains is "{postfix.value("virtual_alias_domains")}"',
            wanted.why,
            *postconf(circumstances, "virtual_alias_domains", others),
        )
    else:
        yield ok("virtual_alias_domains leaves gatepost out")


CHECKS = (
    Check("reverse-map", "Postfix", once_wired(reverse)),
    Check("alias-domains", "Postfix", once_wired(alias_domains)),
)
