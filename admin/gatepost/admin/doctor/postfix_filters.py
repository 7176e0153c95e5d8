# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of content filters and certificates: what comes back from a filter, and what clients show of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    edit,
    error,
    info,
    instance,
    ok,
    reload_postfix,
    warning,
)
from gatepost.admin.doctor.postfix import asks, our_milter, setup, wire
from gatepost.admin.doctor.postfix_entries import postconf
from gatepost.admin.doctor.postfix_policy import DATA, RCPT, RELAY
from gatepost.admin.postfix.command_filter import WITH_ORCPT, filtered
from gatepost.admin.postfix.config import Service
from gatepost.admin.postfix.hop import BEHIND_FILTER
from gatepost.admin.postfix.relaying import restrictions
from gatepost.relay import RuleSet
from gatepost.service.srs_config import ReverseBy

_WHY = {item.name: item.why for item in BEHIND_FILTER}
_WEAK = ("md5", "sha1")


def reinjection(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether what a content filter hands back is left alone: it was judged when it came in."""
    postfix = circumstances.postfix
    back = [service for service in postfix.smtpds if entries.takes_back(circumstances, service)]
    wrong = 0
    for service in back:
        for finding in _judged_again(circumstances, service):
            wrong += 1
            yield finding
    if back and not wrong:
        yield ok(f"what a content filter hands back is left alone: {entries.named(back)}")


def _judged_again(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    postfix = circumstances.postfix
    milter = our_milter(circumstances, service)
    if milter and "no_milters" not in postfix.effective_entries(service, "receive_override_options"):
        others = [item for item in entries.milters(postfix.effective(service, "smtpd_milters")) if item != milter]
        yield error(
            f"{service.key}: takes mail back from a content filter, and has gatepost's milter",
            _WHY["smtpd_milters"],
            *_override(circumstances, service, "smtpd_milters", ",".join(item.text for item in others)),
        )
    value = postfix.effective(service, "smtpd_command_filter")
    if circumstances.config.egress and "ORCPT" not in filtered(postfix, value, WITH_ORCPT):
        yield error(
            f"{service.key}: takes mail back from a content filter, and its smtpd_command_filter takes ORCPT out",
            _WHY["smtpd_command_filter"],
            *_override(circumstances, service, "smtpd_command_filter", ""),
        )
    for name in (RELAY, RCPT, DATA):
        if asks(circumstances, service, name):
            yield error(
                f"{service.key}: takes mail back from a content filter, and asks policyd in {name}",
                "Judged again its client is 127.0.0.1, which no connector is for: what ingress let pass is refused.",
                *_override(circumstances, service, name, "" if name == DATA else "permit_mynetworks,reject"),
            )


def _override(circumstances: Circumstances, service: Service, name: str, value: str) -> list[str]:
    option = instance(circumstances)
    if re.search(r"\s", value):  # which -P refuses
        return [setup(circumstances)]
    return [f"postconf{option} -P '{service.key}/{name}={value}'", reload_postfix(circumstances)]


def proxy_filter(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the milter can do its work on a service with smtpd_proxy_filter, where milters may change nothing."""
    postfix = circumstances.postfix
    config = circumstances.config
    for service in entries.ingress(circumstances):
        proxy = postfix.effective(service, "smtpd_proxy_filter")
        if proxy and config.srs.reverse is ReverseBy.REDIRECT:
            yield error(
                f'{service.key}: smtpd_proxy_filter = {proxy}, and srs.reverse is "redirect"',
                "Before a proxy filter Postfix heeds no REDIRECT: bounces do not reach the original senders.",
                edit(circumstances, '[srs] reverse = "map"'),
                setup(circumstances),
            )
        if not proxy or our_milter(circumstances, service) is None:
            continue
        if config.relay.requirements is RuleSet.LEGACY:
            yield error(
                f'{service.key}: smtpd_proxy_filter = {proxy}, and relay.requirements is "legacy"',
                "Before a proxy filter Postfix shows milters no headers (MILTER_README), so From is never seen.",
                edit(circumstances, '[relay] requirements = "2023-11-01"'),
            )
        if config.egress is None:
            yield error(
                f"{service.key}: smtpd_proxy_filter = {proxy}",
                "Before a proxy filter Postfix lets milters change nothing (MILTER_README): the rule is enforced, and "
                "no sender gets its SRS address. The egress hop gives it on the way out.",
                setup(circumstances),
                edit(circumstances, "add [egress]"),
            )
        else:
            yield ok(f"{service.key}: behind smtpd_proxy_filter the egress hop rewrites")


# Certificates of clients


def _certificate_of_its_own(circumstances: Circumstances) -> list[str]:
    """Return how to give smtpd a certificate, without which it offers no TLS, where it has none."""
    names = ("smtpd_tls_chain_files", "smtpd_tls_cert_file", "smtpd_tls_eccert_file")
    if any(circumstances.postfix.expanded(name) not in ("", "none") for name in names):
        return []
    return postconf(circumstances, "smtpd_tls_chain_files", "KEY-AND-CERTIFICATE.pem")[:1]


def client_certificates(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether clients are asked for the certificates that connectors name."""
    names = sorted(
        connector.tls_sender_certificate_name
        for item in circumstances.config.organizations.values()
        for connector in item.connectors
        if connector.enabled and connector.tls_sender_certificate_name
    )
    if not names:
        return
    services = entries.ingress(circumstances)
    asking = [service for service in services if _asks_for_certificate(circumstances, service)]
    if not asking:
        wanted = wire(circumstances, "smtpd_tls_ask_ccert")
        yield error(
            f"no smtpd asks for certificates, and connectors are for {', '.join(names)}",
            (wanted.why if wanted else "") + " What these hosts send is refused.",
            *_certificate_of_its_own(circumstances),
            *postconf(circumstances, "smtpd_tls_ask_ccert", "yes")[:1],
            *postconf(circumstances, "smtpd_tls_security_level", "may"),
        )
        return
    found = list(_certificate_details(circumstances, asking))
    yield from found
    untrusted = [service for service in asking if not _trusts(circumstances, service)]
    if untrusted:
        yield error(
            f"{entries.named(untrusted)}: neither smtpd_tls_CAfile nor smtpd_tls_CApath is set",
            "No client's certificate is trusted, and the names in one that is not do not count (R10).",
            *postconf(circumstances, "smtpd_tls_CAfile", "/etc/ssl/certs/ca-certificates.crt"),
        )
    elif not found:
        yield ok(f"clients are asked for certificates: {entries.named(asking)}")


def _asks_for_certificate(circumstances: Circumstances, service: Service) -> bool:
    def on(name: str) -> bool:
        return circumstances.postfix.effective(service, name) == "yes"

    level = circumstances.postfix.effective(service, "smtpd_tls_security_level")
    tls = level in ("may", "encrypt") or (not level and (on("smtpd_use_tls") or on("smtpd_enforce_tls")))
    return (tls or on("smtpd_tls_wrappermode")) and (on("smtpd_tls_ask_ccert") or on("smtpd_tls_req_ccert"))


def _trusts(circumstances: Circumstances, service: Service) -> bool:
    names = ("smtpd_tls_CAfile", "smtpd_tls_CApath")
    postfix = circumstances.postfix
    appended = postfix.effective(service, "tls_append_default_CA") == "yes"
    return appended or any(postfix.effective(service, name) for name in names)


def _certificate_details(circumstances: Circumstances, asking: list[Service]) -> Iterator[Finding]:
    postfix = circumstances.postfix
    digest = postfix.expanded("smtpd_tls_fingerprint_digest")
    if digest in _WEAK:
        wanted = wire(circumstances, "smtpd_tls_fingerprint_digest")
        yield warning(
            f"smtpd_tls_fingerprint_digest = {digest}",
            wanted.why if wanted else "",
            *postconf(circumstances, "smtpd_tls_fingerprint_digest", "sha256")[:1],
            reload_postfix(circumstances),
            Edit("the fingerprints in relay_clientcerts and check_ccert_access must become SHA-256, too"),
        )
    without = [service for service in asking if not any(asks(circumstances, service, name) for name in (RELAY, RCPT))]
    if without and circumstances.config.relay.enforced_by == "milter":
        yield warning(
            f"{entries.named(without)}: clients are asked for certificates, and policyd is not asked",
            "policyd tells the milter which certificate a client has: without it only its subject CN counts, not the "
            "names in its SAN.",
            setup(circumstances),
        )
    permits = ("permit_tls_clientcerts", "permit_tls_all_clientcerts", "check_ccert_access")
    relays = (item.name for service in asking for item in restrictions(postfix, service, RELAY))
    if circumstances.config.relay.enforced_by == "milter" and not set(permits) & set(relays):
        yield info(
            f"{RELAY} has no permit_tls_clientcerts",
            "Hosts that a connector knows by certificate relay only if they are in mynetworks, too: Postfix refuses "
            "the others, whatever gatepost says.",
            "# permit_tls_clientcerts there, before reject_unauth_destination, and their fingerprints in "
            "relay_clientcerts",
        )
    level = postfix.entries("smtpd_tls_loglevel")
    logged = any(item in ("peercert", "2", "3", "4") for item in level)
    wanted = wire(circumstances, "smtpd_tls_loglevel")
    if wanted and not logged:
        yield info(
            f"smtpd_tls_loglevel = {', '.join(level)}",
            wanted.why,
            *postconf(circumstances, "smtpd_tls_loglevel", wanted.value),
        )


CHECKS = (
    Check("content-filter", "Postfix", reinjection),
    Check("proxy-filter", "Postfix", proxy_filter),
    Check("client-certificates-asked", "Postfix", client_certificates),
)
