# SPDX-License-Identifier: GPL-3.0-or-later
"""What setup leaves to the administrator: what it cannot know, and what it will not decide for him."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service
from gatepost.admin.postfix.filters import FILTERS, filter_actions, is_loopback, leads_outside
from gatepost.admin.postfix.relaying import RELAY_LISTS, hosts_only, verdict
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, domain_list, listed_domains
from gatepost.admin.postfix.wiring import Topology
from gatepost.admin.setup.combine import is_srs_map
from gatepost.admin.setup.plan import (
    Role,
    authenticates,
    has_certificate_names,
    hop_of,
    is_on_loopback,
    role,
    srs_domains,
)
from gatepost.admin.setup.sockets import sockets
from gatepost.service.config import Config
from gatepost.service.snapshot import mint_domain
from gatepost.service.srs_config import ReverseBy


def advice(config: PostfixConfig, gatepost: Config, topology: Topology) -> list[str]:
    """Return what is to be done or known beside the changes, a paragraph each."""
    found = [*_local_domains(config, gatepost), *_unlisted(config, topology), *_settings(gatepost, topology)]
    if has_certificate_names(gatepost) and topology is not Topology.POSTSRSD_REPLACEMENT:
        found += _certificates(config, topology)
    if topology.has_milter:
        found += _milters(config, gatepost, topology)
    if topology is not Topology.POSTSRSD_REPLACEMENT:
        found += _given_back(config, gatepost)
    else:
        found += _postsrsd(config, gatepost, topology)
    if topology in (Topology.RELAY_HUB, Topology.EXCHANGE_ONLINE):
        found += _changed_senders(config, gatepost)
    if topology is Topology.FORWARDER:
        found += _filters(config, gatepost)
    if topology is Topology.POLICY_ONLY:
        found += _guarded_twice(config, gatepost)
    if topology is Topology.POLICY_ONLY and "defer_unauth_destination" in config.entries("smtpd_relay_restrictions"):
        found.append(
            "smtpd_relay_restrictions ends in defer_unauth_destination: what nobody let relay is put off, not"
            " refused, and"
            " clients try for days. With reject_unauth_destination in its place they are told at once."
        )
    if topology is Topology.EXCHANGE_ONLINE or (topology is Topology.FORWARDER and gatepost.upstream):
        found += _exchange_online(config, gatepost)
    return found


def missing_local_domains(config: PostfixConfig, gatepost: Config) -> tuple[list[str], list[str]]:
    """Return the domains that relay.local_domains lacks, and entries whose domains cannot be listed."""
    tables, missing, unlisted = Tables(config), [], []
    for name in DOMAIN_LISTS:
        try:
            for domain, is_domain in listed_domains(tables, name):
                if not is_domain:
                    unlisted.append(f"{name}: {domain}")
                elif domain not in missing and not _is_declared(gatepost, domain):
                    missing.append(domain)
        except PostfixError as error:
            unlisted.append(f"{name}: {error}")
    return missing, unlisted


def _is_declared(gatepost: Config, domain: str) -> bool:
    accepted = [item for organization in gatepost.organizations.values() for item in organization.accepted_domains]
    return domain in gatepost.relay.local_domains or any(
        domain == item.domain or (item.match_subdomains and domain.endswith(f".{item.domain}")) for item in accepted
    )


def _local_domains(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    missing, unlisted = missing_local_domains(config, gatepost)
    if missing:
        listed = ", ".join(f'"{domain}"' for domain in (*gatepost.relay.local_domains, *missing))
        yield (
            f"Postfix keeps mail for {', '.join(missing)}, and {gatepost.path.name} does not say so: mail to"
            f" {'it' if len(missing) == 1 else 'them'} counts as relaying. In [relay] there:\n"
            f"local_domains = [{listed}]"
            + ("" if gatepost.organizations else "\nwithout those that you declare as accepted domains.")
        )
    for entry in unlisted:
        yield f"{entry} cannot be listed: if it has domains besides accepted ones, add them to relay.local_domains."


def _unlisted(config: PostfixConfig, topology: Topology) -> Iterator[str]:
    if topology is not Topology.FORWARDER:
        return
    tables = Tables(config)
    for table in config.entries("transport_maps"):
        try:
            tables.entries(table)
        except PostfixError:
            yield (
                f"transport_maps: {table} cannot be listed. An entry in it for a domain outside leads mail past the"
                f" egress"
                " hop, unrewritten."
            )


def _settings(gatepost: Config, topology: Topology) -> Iterator[str]:
    policyd = gatepost.relay.enforced_by == "policyd"
    if topology is Topology.POLICY_ONLY and not policyd:
        yield (
            f'{gatepost.path.name}: relay.enforced_by is "milter", so policyd leaves the rule to it. Make it "policyd".'
        )
    if topology.has_milter and policyd:
        yield (
            f'{gatepost.path.name}: relay.enforced_by is "policyd", so the milter leaves the rule alone, and policyd is'
            ' asked too late to let anybody relay. Set it to "milter", or choose --topology policy-only.'
        )
    if topology.has_milter and gatepost.srs.reverse is not ReverseBy.MAP:
        yield f'{gatepost.path.name}: srs.reverse is not "map", though main.cf has the map; take the line out.'
    if gatepost.egress and topology in (Topology.RELAY_HUB, Topology.EXCHANGE_ONLINE):
        yield (
            f"{gatepost.path.name} has [egress], and topology {topology.value} has no hop: what has inside and outside"
            " recipients would leave unrewritten. Take [egress] out, or choose --topology forwarder."
        )
    if topology is Topology.EXCHANGE_ONLINE and gatepost.upstream is None:
        yield f"{gatepost.path.name}: there is no [upstream], so gatepost cannot say what Exchange Online will take."


def _offers_tls(config: PostfixConfig, service: Service) -> bool:
    yes = ("smtpd_use_tls", "smtpd_enforce_tls", "smtpd_tls_wrappermode")
    level = config.effective(service, "smtpd_tls_security_level")
    return level not in ("", "none") or any(config.effective(service, name) == "yes" for name in yes)


def _certificates(config: PostfixConfig, topology: Topology) -> Iterator[str]:
    if not any(_offers_tls(config, item) for item in config.smtpds):
        yield (
            "A connector has a certificate name, but no smtpd offers TLS: smtpd_tls_security_level,"
            " smtpd_tls_cert_file and"
            " smtpd_tls_CAfile (the authorities whose certificates count) are for you to set."
        )
    permits = [entry for item in config.smtpds for entry in config.effective_entries(item, "smtpd_relay_restrictions")]
    if "permit_tls_all_clientcerts" in permits:
        yield (
            "permit_tls_all_clientcerts lets whoever has a certificate of an authority that you trust relay, as long as"
            " gatepost is in mode monitor or bypass is on. permit_tls_clientcerts with relay_clientcerts is safer."
        )
    elif "permit_tls_clientcerts" not in permits and topology is not Topology.POLICY_ONLY:
        yield (
            "Clients that a connector knows by certificate, and that are not in mynetworks, need"
            " permit_tls_clientcerts in"
            " smtpd_relay_restrictions and their fingerprints in relay_clientcerts; examples/postfix/relay-hub shows"
            " both."
        )


def _milters(config: PostfixConfig, gatepost: Config, topology: Topology) -> Iterator[str]:
    ingress = _ingress(config, gatepost)
    yield from _milter_maps(config, ingress)
    for service in ingress:
        if "no_milters" in config.effective_entries(service, "receive_override_options"):
            yield (
                f"{service.key} in master.cf has receive_override_options with no_milters: what comes in there is"
                f" neither"
                " judged nor rewritten."
            )
        if config.effective(service, "smtpd_proxy_filter") and topology is not Topology.FORWARDER:
            yield (
                f"{service.key} in master.cf has smtpd_proxy_filter: its milters never see the end of a message, so"
                f" the rule"
                " is applied, but no sender is rewritten. --topology forwarder rewrites it as it leaves."
            )
    canonical = [
        entry for entry in config.entries("sender_canonical_maps") if "1000" in entry or "srs" in entry.lower()
    ]
    if canonical:
        yield (
            f"sender_canonical_maps has {', '.join(canonical)}: if that is postsrsd, it rewrites every sender before"
            " gatepost sees it. Take it and its recipient_canonical_maps out, or choose --topology"
            " postsrsd-replacement."
        )


def _ingress(config: PostfixConfig, gatepost: Config) -> list[Service]:
    hop = hop_of(gatepost)
    return [service for service in config.smtpds if role(config, service, hop) is Role.INGRESS]


def _milter_maps(config: PostfixConfig, ingress: Sequence[Service]) -> Iterator[str]:
    maps = dict.fromkeys(config.effective(service, "smtpd_milter_maps") for service in ingress)
    for value in filter(None, maps):
        yield (
            f"smtpd_milter_maps is {value}: what comes from clients that it names, be it with DISABLE or with other"
            " milters, is neither judged nor rewritten. Take them out of it, or add gatepost's milter there."
        )


def _changed_senders(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    """Yield what would change SRS addresses, for cleanup(8) maps the sender that a milter has set."""
    tables = Tables(config)
    for domain in sorted({mint_domain(gatepost, item) for item in gatepost.organizations.values()}):
        masquerading = config.entries("masquerade_domains")
        if "envelope_sender" in config.entries("masquerade_classes") and _is_masqueraded(domain, masquerading):
            yield (
                f"masquerade_domains strips SRS addresses of their domain {domain}, and their bounces find nobody:"
                f" postconf -e 'masquerade_domains = !{domain}, {', '.join(masquerading)}'"
            )
        for name in ("sender_canonical", "canonical"):
            if "envelope_sender" in config.entries(f"{name}_classes"):
                for table in config.entries(f"{name}_maps"):
                    if not is_srs_map(table) and _maps(tables, table, domain):
                        yield (
                            f"{name}_maps: {table} changes SRS addresses in {domain}, and their bounces find nobody:"
                            " leave +SRS= and SRS0= out of it."
                        )


def _is_masqueraded(domain: str, entries: Sequence[str]) -> bool:
    first = next((entry for entry in entries if f".{domain}".endswith(f".{entry.lstrip('!')}")), domain)
    return first != domain and not first.startswith("!")


def _maps(tables: Tables, table: str, domain: str) -> bool:
    keys = (f"bounces+SRS=aaaa=aa=example.net=somebody@{domain}", f"bounces@{domain}", f"@{domain}")
    try:
        return any(tables.query(table, key) is not None for key in keys)
    except PostfixError:
        return False


def _given_back(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    """Yield the services that a filter may give mail back to, though nothing says so."""
    for service in _ingress(config, gatepost):
        own = service.overrides.get("mynetworks") and config.effective_entries(service, "mynetworks")
        if any(config.effective(service, name) for name in FILTERS) or authenticates(service):
            continue
        if is_on_loopback(service) or (own and hosts_only(own)):
            yield (
                f"{service.key} in master.cf counts as a way in: what comes there is judged by its client's address. If"
                " a content filter gives mail back there, it would be judged twice, and refused; then say so, and run"
                f" this again: postconf -P '{service.key}/content_filter='"
            )


def _filters(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    """Yield what is called a filter, and hands mail to another host that gives none back here."""
    hop = hop_of(gatepost)
    if any(role(config, service, hop) is Role.FROM_FILTER for service in config.smtpds):
        return
    found = [("content_filter", config.expanded("content_filter")), *filter_actions(config)]
    for where, destination in found:
        if destination and leads_outside(config, destination) and not is_loopback(destination):
            yield (
                f"{where} hands mail to {destination}, which wins over the egress hop: what is forwarded that way"
                " leaves unrewritten. What goes out by way of another host: relayhost, which holds behind the hop."
            )


def _guarded_twice(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    relay, recipient = RELAY_LISTS
    for service in _ingress(config, gatepost):
        guard = verdict(config, service, recipient)
        if guard and str(guard).endswith("_unauth_destination") and config.effective(service, relay):
            yield (
                f"{recipient} has {guard}, as {relay} does: what policyd lets relay from hosts outside mynetworks is"
                f" refused there all the same. Take it out of {recipient}; {relay} does for both."
            )
            return


def _postsrsd(config: PostfixConfig, gatepost: Config, topology: Topology) -> Iterator[str]:
    found = [entry for entry in config.entries("recipient_canonical_maps") if is_srs_map(entry)]
    if sockets(config, gatepost, topology).map("reverse") in found:
        return
    for entry in found:
        if entry.startswith("socketmap:"):
            yield (
                f"recipient_canonical_maps has {entry}, whose place gatepost takes. If it is a postsrsd with"
                ' original-envelope = "database", only that one knows whom bounces of its last 21 days are for: leave'
                " it running, and once this is applied write its entry behind gatepost's, where it stays."
            )


def _exchange_online(config: PostfixConfig, gatepost: Config) -> Iterator[str]:
    if not (config.expanded("relayhost") or config.expanded("default_transport").partition(":")[2]):
        yield (
            "relayhost is empty. All mail is to go to the tenant's MX:"
            " postconf -e 'relayhost = [contoso-com.mail.protection.outlook.com]:25' with your own."
        )
    tables = Tables(config)
    for organization in gatepost.organizations.values():
        for item in organization.accepted_domains:
            if not _is_kept(tables, item.domain) and item.domain not in srs_domains(gatepost):
                yield f"{item.domain} is not in relay_domains, so this server takes no mail for it from outside."


def _is_kept(tables: Tables, domain: str) -> bool:
    try:
        return domain_list(tables, domain) is not None
    except PostfixError:
        return True
