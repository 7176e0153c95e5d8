# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost setup postfix` refuses to build on, and what it leaves to the administrator with a word of advice."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from setuphost import EXAMPLES, SetupHost, setup_host

from gatepost.admin.postfix.wiring import Topology, filter_files
from gatepost.admin.setup.advice import advice
from gatepost.admin.setup.refusals import refusals
from gatepost.service.config import load


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetupHost:
    return setup_host(tmp_path, monkeypatch, "relay-hub")


@pytest.fixture
def forwarder(host: SetupHost) -> SetupHost:
    return host.configure("forwarder")


def refused(host: SetupHost, topology: str = "relay-hub") -> list[str]:
    return [item.what for item in refusals(host.read(), load(host.configuration), Topology(topology))]


def advised(host: SetupHost, topology: str = "relay-hub") -> list[str]:
    return advice(host.read(), load(host.configuration), Topology(topology))


def test_refusal_ends_with_status_1_and_changes_nothing(host: SetupHost) -> None:
    host.add("mynetworks = 0.0.0.0/0\n")
    before = host.files()
    result = host.setup("--apply")
    assert result.exit_code == 1
    assert result.output.endswith(
        "\nStopped here, and nothing has been changed\n"
        "* mynetworks has 0.0.0.0/0.\n"
        "  Whoever connects from there may relay through this server: with that it is an open relay, and\n"
        "  gatepost in mode monitor refuses nobody.\n"
        "  Put only networks of your own into it.\n"
    )
    assert host.files() == before


# Open relays


@pytest.mark.parametrize("topology", [topology.value for topology in Topology])
def test_debians_main_cf_is_no_reason_to_refuse(host: SetupHost, topology: str) -> None:
    assert refused(host.configure(topology), topology) == []


@pytest.mark.parametrize("network", ["0.0.0.0/0", "[::]/0", "128.0.0.0/1"])
def test_mynetworks_of_half_the_world_is_refused(host: SetupHost, network: str) -> None:
    assert refused(host.add(f"mynetworks = 127.0.0.0/8, {network}\n")) == [f"mynetworks has {network}"]


def test_private_networks_are_not_refused(host: SetupHost) -> None:
    assert refused(host.add("mynetworks = 10.0.0.0/8, 192.168.0.0/16, [fc00::]/7, [fe80::]/10\n")) == []


def test_mynetworks_of_one_service_is_looked_at(host: SetupHost) -> None:
    host.add("", "2525 inet n - y - - smtpd -o mynetworks=0.0.0.0/0\n")
    assert refused(host) == ["2525/inet: mynetworks has 0.0.0.0/0"]


@pytest.mark.parametrize("entry", ["static:all", "cidr:{{0.0.0.0/0 x}}", "!192.0.2.1, cidr:{{::/0 x}}"])
def test_mynetworks_that_is_a_table_with_everybody_is_refused(host: SetupHost, entry: str) -> None:
    assert refused(host.add(f"mynetworks = {entry}\n")) == [f"mynetworks has {entry.rpartition(', ')[2]}"]


def test_mynetworks_in_a_file_is_read(host: SetupHost) -> None:
    networks = host.directory / "networks"
    networks.write_text("# ours\n192.0.2.0/24 0.0.0.0/0\n")
    assert refused(host.add(f"mynetworks = {networks}\n")) == [f"mynetworks has {networks}"]


def test_table_of_networks_of_ones_own_is_not_refused(host: SetupHost) -> None:
    assert (
        refused(host.add("mynetworks = 127.0.0.0/8, cidr:{{192.0.2.0/24 x} {2001:db8::/32 x}}, hash:/no/file\n")) == []
    )


def test_lists_that_keep_nobody_from_relaying_are_refused(host: SetupHost) -> None:
    assert refused(host.add("smtpd_relay_restrictions = permit_mynetworks\n")) == [
        "main.cf: neither smtpd_relay_restrictions nor smtpd_recipient_restrictions has reject_unauth_destination"
    ]


def test_guard_in_the_list_of_before_postfix_2_10_is_enough(host: SetupHost) -> None:
    host.add(
        "smtpd_relay_restrictions =\n"
        "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination, permit\n"
    )
    assert refused(host) == []


def test_guard_in_a_restriction_class_is_found(host: SetupHost) -> None:
    host.add(
        "smtpd_restriction_classes = ours\nours = permit_mynetworks, reject_unauth_destination\n"
        "smtpd_relay_restrictions = ours\n"
    )
    assert refused(host) == []


def test_permit_before_the_guard_is_refused(host: SetupHost) -> None:
    assert refused(host.add("smtpd_relay_restrictions = permit_mynetworks, permit, reject_unauth_destination\n")) == [
        "main.cf: smtpd_relay_restrictions has permit before reject_unauth_destination"
    ]


def test_guard_that_only_warns_is_none(host: SetupHost) -> None:
    host.add("smtpd_relay_restrictions = permit_mynetworks, warn_if_reject reject_unauth_destination\n")
    (what,) = refused(host)
    assert what.startswith("main.cf: neither smtpd_relay_restrictions nor smtpd_recipient_restrictions has")


@pytest.mark.parametrize(
    "permit",
    [
        "check_client_access static:ok",
        "check_client_access cidr:{{0.0.0.0/0 OK}}",
        "check_sender_access regexp:{{/./ permit}}",
        "static:1",
    ],
)
def test_table_that_permits_everybody_before_the_guard_is_refused(host: SetupHost, permit: str) -> None:
    (what,) = refused(host.add(f"smtpd_relay_restrictions = {permit}, reject_unauth_destination\n"))
    assert what == f"main.cf: smtpd_relay_restrictions has {permit} before reject_unauth_destination"


@pytest.mark.parametrize(
    "entry",
    [
        "warn_if_reject reject_rbl_client dnsbl.example",
        "check_client_access cidr:{{192.0.2.0/24 OK} {0.0.0.0/0 DUNNO}}",
        "check_sender_access regexp:{{/@contoso.com$$/ OK} {/./ permit_mynetworks}}",
        "check_client_access static:{450 4.7.1 later}",
    ],
)
def test_what_permits_no_stranger_before_the_guard_is_not_refused(host: SetupHost, entry: str) -> None:
    assert refused(host.add(f"smtpd_relay_restrictions = {entry}, reject_unauth_destination\n")) == []


def test_service_that_keeps_nobody_from_relaying_is_refused(host: SetupHost) -> None:
    host.add("", "2525 inet n - y - - smtpd -o smtpd_relay_restrictions= -o smtpd_recipient_restrictions=permit\n")
    assert refused(host) == [
        "2525/inet in master.cf: neither smtpd_relay_restrictions nor smtpd_recipient_restrictions has"
        " reject_unauth_destination"
    ]


@pytest.mark.parametrize("entry", ["static:all", "regexp:{{/./ OK}}"])
def test_relay_domains_that_are_all_domains_are_refused(host: SetupHost, entry: str) -> None:
    (what,) = refused(host.add(f"relay_domains = {entry}\n"))
    assert what.endswith("which says yes to every domain")


def test_mailbox_for_all_mail_is_no_open_relay(host: SetupHost) -> None:
    assert refused(host.add("virtual_alias_maps = static:dev@contoso.com\n")) == []


# Lists that others depend on


def test_policyd_in_an_empty_list_before_one_with_the_guard_is_refused(host: SetupHost) -> None:
    host.configure("policy-only").add(
        "smtpd_relay_restrictions =\n"
        "smtpd_recipient_restrictions = permit_mynetworks, check_client_access hash:/etc/postfix/relays,"
        " reject_unauth_destination, reject_rbl_client dnsbl.example\n"
    )
    (refusal,) = refusals(host.read(), load(host.configuration), Topology.POLICY_ONLY)
    assert refusal.what == (
        "main.cf: smtpd_relay_restrictions is empty, and smtpd_recipient_restrictions has reject_unauth_destination"
    )
    assert refusal.remedy == (
        "Have one list for relaying, postconf -e 'smtpd_relay_restrictions = permit_mynetworks, check_client_access"
        " hash:/etc/postfix/relays, reject_unauth_destination', and take reject_unauth_destination out of"
        " smtpd_recipient_restrictions."
    )


def test_submission_service_that_lets_nobody_but_users_relay_is_not_refused(host: SetupHost) -> None:
    host.configure("policy-only").add(
        "", "587 inet n - y - - smtpd\n -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject\n"
    )
    assert refused(host, "policy-only") == []


CLASSES = (
    "sender_canonical_classes is envelope_sender, header_sender, and sender_canonical_maps has hash:/etc/postfix/c"
)


@pytest.mark.parametrize(
    ("main_cf", "expected"),
    [
        ("sender_canonical_maps = hash:/etc/postfix/c\n", [CLASSES]),
        ("sender_canonical_maps = tcp:localhost:10001, hash:/etc/postfix/c\n", [CLASSES]),
        ("sender_canonical_maps = hash:/etc/postfix/c\nsender_canonical_classes = envelope_sender\n", []),
        ("sender_canonical_maps = socketmap:unix:srs:forward\n", []),
        ("sender_canonical_maps = socketmap:unix:gatepost/policyd.sock:forward\n", []),
        ("recipient_canonical_maps = hash:/etc/postfix/c\n", []),
        (
            "recipient_canonical_maps = hash:/etc/postfix/c\n"
            "recipient_canonical_classes = header_recipient,envelope_recipient\n",
            [],
        ),
        (
            "recipient_canonical_maps = hash:/etc/postfix/c\nrecipient_canonical_classes = envelope_recipient\n",
            ["recipient_canonical_classes is envelope_recipient, and recipient_canonical_maps has hash:/etc/postfix/c"],
        ),
    ],
)
def test_canonical_classes_that_other_tables_depend_on_are_not_changed(
    host: SetupHost, main_cf: str, expected: list[str]
) -> None:
    assert refused(host.configure("postsrsd-replacement").add(main_cf), "postsrsd-replacement") == expected


@pytest.mark.parametrize(
    ("main_cf", "remedy"),
    [
        (
            "sender_canonical_maps = hash:/etc/postfix/c\n",
            "postconf -e 'sender_canonical_classes = envelope_sender'; and, as it does header_sender today, name the"
            " table in canonical_maps, too, with canonical_classes = header_sender.",
        ),
        (
            "recipient_canonical_maps = hash:/etc/postfix/c\nrecipient_canonical_classes = envelope_recipient\n",
            "Move the table to canonical_maps, with canonical_classes = envelope_recipient.",
        ),
    ],
)
def test_remedy_keeps_what_the_table_does_today(host: SetupHost, main_cf: str, remedy: str) -> None:
    host.configure("postsrsd-replacement").add(main_cf)
    (refusal,) = refusals(host.read(), load(host.configuration), Topology.POSTSRSD_REPLACEMENT)
    assert refusal.remedy == remedy


OWN_FILTER = "regexp:{{/^XNOOP/ NOOP}}"


@pytest.mark.parametrize("topology", ["relay-hub", "forwarder", "exchange-online", "postsrsd-replacement"])
def test_another_table_of_the_command_filter_is_refused(host: SetupHost, topology: str) -> None:
    host.configure(topology).add(f"smtpd_command_filter = {OWN_FILTER}\n")
    assert refused(host, topology) == [f"main.cf: smtpd_command_filter is {OWN_FILTER}"]


def test_command_filter_of_a_service_of_its_own_is_refused(host: SetupHost) -> None:
    host.add("", f"587 inet n - y - - smtpd -o smtpd_command_filter={OWN_FILTER.replace(' ', '')}\n")
    assert refused(host) == [f"587/inet in master.cf: smtpd_command_filter is {OWN_FILTER.replace(' ', '')}"]


def test_command_filter_that_has_gateposts_rules_besides_its_own_is_not_refused(host: SetupHost) -> None:
    (rules,) = filter_files(Topology.RELAY_HUB).values()
    table = host.directory / "commands"
    table.write_text("\n".join(["# ours", *rules, "/^XNOOP/ NOOP"]))
    assert refused(host.add(f"smtpd_command_filter = regexp:{table}\n")) == []


def test_command_filter_does_not_matter_to_policyd_alone(host: SetupHost) -> None:
    host.configure("policy-only").add(f"smtpd_command_filter = {OWN_FILTER}\n")
    assert refused(host, "policy-only") == []


# The egress hop


@pytest.mark.parametrize("topology", ["relay-hub", "forwarder"])
def test_service_that_calls_itself_the_hop_is_refused(forwarder: SetupHost, topology: str) -> None:
    forwarder.add("", "submission inet n - y - - smtpd -o milter_macro_daemon_name=gatepost-egress\n")
    assert refused(forwarder, topology) == [
        "submission/inet has milter_macro_daemon_name = gatepost-egress, as the egress hop"
    ]


def test_transport_of_ones_own_with_the_hops_name_is_refused(host: SetupHost) -> None:
    host.configure("forwarder", ("gatepost-egress:[127.0.0.1]:10027", "relay:[127.0.0.1]:10027"))
    assert refused(host, "forwarder") == ["relay/unix in master.cf is a service of your own (smtp)"]


@pytest.mark.parametrize("name", ["10027", "0.0.0.0:10027", "[::]:10027", "localhost:10027"])
def test_service_at_the_hops_port_on_all_addresses_is_refused(forwarder: SetupHost, name: str) -> None:
    forwarder.add("", f"{name} inet n - y - - smtpd\n")
    assert refused(forwarder, "forwarder") == [f"{name}/inet in master.cf is a service of your own (smtpd)"]


def test_hop_that_is_there_is_not_refused(forwarder: SetupHost) -> None:
    forwarder.add("", (EXAMPLES / "forwarder/master.cf").read_text())
    assert refused(forwarder, "forwarder") == []


def test_forwarder_without_egress_in_gatepost_toml_is_refused(host: SetupHost) -> None:
    assert refused(host, "forwarder") == ["gatepost.toml has no [egress]"]


def test_transport_for_subdomains_that_are_outside_is_refused(forwarder: SetupHost) -> None:
    table = "inline:{ {.contoso.com=smtp:[192.0.2.9]} }"
    forwarder.add(f"parent_domain_matches_subdomains =\ntransport_maps = {table}\n")
    assert refused(forwarder, "forwarder") == [f"transport_maps: {table} has .contoso.com smtp:[192.0.2.9]"]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("*=smtp:[192.0.2.9]", "* smtp:[192.0.2.9]"),
        ("example.com=smtp:[192.0.2.9]", "example.com smtp:[192.0.2.9]"),
        (".example.com=:[192.0.2.9]", ".example.com :[192.0.2.9]"),
        ("ann@example.com=smtp:", "ann@example.com smtp:"),
        ("example.com=gatepost-egress:[127.0.0.1]:10027", "example.com gatepost-egress:[127.0.0.1]:10027"),
    ],
)
def test_transport_for_mail_to_outside_is_refused(forwarder: SetupHost, entry: str, found: str) -> None:
    forwarder.add(f"transport_maps = inline:{{ {{{entry}}} }}\n")
    assert refused(forwarder, "forwarder") == [f"transport_maps: inline:{{ {{{entry}}} }} has {found}"]


@pytest.mark.parametrize(
    "entry",
    [
        "contoso.com=smtp:[192.0.2.9]",
        "john@contoso.com=smtp:[192.0.2.9]",
        "mail.contoso.com=local:",
        "example.com=error:no such domain",
        "example.com=:",
        "autoreply.example.com=vacation:",
        "example.com=lmtp:[192.0.2.9]",
    ],
)
def test_transport_that_leads_nothing_past_the_hop_is_not_refused(forwarder: SetupHost, entry: str) -> None:
    vacation = "vacation unix - n n - - pipe\n  flags=Rq user=nobody argv=/usr/lib/vacation\n"
    assert refused(forwarder.add(f"transport_maps = inline:{{ {{{entry}}} }}\n", vacation), "forwarder") == []


def test_transport_of_ones_own_that_speaks_smtp_is_refused(forwarder: SetupHost) -> None:
    forwarder.add("transport_maps = inline:{ {example.com=slow:} }\n", "slow unix - - y - - smtp\n")
    assert refused(forwarder, "forwarder") == ["transport_maps: inline:{ {example.com=slow:} } has example.com slow:"]


def test_transport_for_everything_that_cannot_be_listed_is_refused_by_its_answer(forwarder: SetupHost) -> None:
    forwarder.add("transport_maps = regexp:{{/./ smtp:[192.0.2.9]}}\n")
    assert refused(forwarder, "forwarder") == [
        "transport_maps: regexp:{{/./ smtp:[192.0.2.9]}} has every domain smtp:[192.0.2.9]"
    ]


def test_transport_for_everything_is_no_matter_without_the_hop(host: SetupHost) -> None:
    assert refused(host.add("transport_maps = inline:{ {*=smtp:[192.0.2.9]} }\n")) == []


def test_accepted_domain_that_is_reached_by_relayhost_only_is_refused(forwarder: SetupHost) -> None:
    forwarder.add("relay_domains = example.org\nrelayhost = [192.0.2.9]\n")
    (refusal,) = refusals(forwarder.read(), load(forwarder.configuration), Topology.FORWARDER)
    assert refusal.what == (
        "contoso.com is an accepted domain of contoso, and in none of mydestination, virtual_alias_domains,"
        " virtual_mailbox_domains, relay_domains"
    )
    assert refusal.remedy == "postconf -e 'relay_domains = example.org, contoso.com'"


def test_accepted_domain_in_a_table_is_found_there(forwarder: SetupHost) -> None:
    (forwarder.directory / "domains").write_text("contoso.com x\n")
    forwarder.add(f"relay_domains = texthash:{forwarder.directory}/domains\n")
    assert refused(forwarder, "forwarder") == []


def test_port_of_the_hop_that_is_taken_by_another_service_is_refused(forwarder: SetupHost) -> None:
    forwarder.add("", "127.0.0.1:10027 inet n - y - - smtpd -o content_filter=\n")
    assert refused(forwarder, "forwarder") == ["127.0.0.1:10027/inet in master.cf is a service of your own (smtpd)"]


def test_port_of_the_hop_that_somebody_else_listens_on_is_refused(host: SetupHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        host.configure("forwarder", ("10027", str(port)))
        assert refused(host, "forwarder") == [f"something listens at 127.0.0.1:{port} already"]


@pytest.mark.parametrize(
    ("protocols", "transport", "other"),
    [
        ("ipv6", "gatepost-egress:[127.0.0.1]:10027", "gatepost-egress:[::1]:10027"),
        ("ipv4", "gatepost-egress:[::1]:10027", "gatepost-egress:[127.0.0.1]:10027"),
    ],
)
def test_hop_at_an_address_that_postfix_cannot_listen_on_is_refused(
    host: SetupHost, protocols: str, transport: str, other: str
) -> None:
    host.configure("forwarder", ("gatepost-egress:[127.0.0.1]:10027", transport)).add(f"inet_protocols = {protocols}\n")
    (refusal,) = refusals(host.read(), load(host.configuration), Topology.FORWARDER)
    assert refusal.what.startswith(f"inet_protocols is {protocols}, and the egress hop listens at")
    assert other in refusal.remedy


# Advice


def test_domains_that_gatepost_does_not_know_are_named_with_the_line_to_write(host: SetupHost) -> None:
    (host.directory / "virtual").write_text("example.org x\nann@example.org ann\n")
    host.add(f"virtual_alias_maps = texthash:{host.directory}/virtual\nvirtual_mailbox_domains = ldap:/etc/ldap.cf\n")
    domains, unlisted, *_ = advised(host)
    assert domains == (
        "Postfix keeps mail for localhost.contoso.com, example.org, and gatepost.toml does not say so: mail to them"
        " counts as relaying. In [relay] there:\n"
        'local_domains = ["mail.contoso.com", "localhost", "localhost.contoso.com", "example.org"]'
    )
    assert unlisted.startswith("virtual_mailbox_domains: ldap:/etc/ldap.cf cannot be listed")


@pytest.mark.parametrize(
    ("topology", "main_cf", "beginning"),
    [
        (
            "relay-hub",
            "smtpd_tls_security_level = none\n",
            "A connector has a certificate name, but no smtpd offers TLS",
        ),
        (
            "relay-hub",
            "smtpd_relay_restrictions = permit_tls_all_clientcerts, reject_unauth_destination\n",
            "permit_tls_all_clientcerts lets whoever has a certificate",
        ),
        ("relay-hub", "smtpd_proxy_filter = 127.0.0.1:10024\n", "smtp/inet in master.cf has smtpd_proxy_filter"),
        ("relay-hub", "receive_override_options = no_milters\n", "smtp/inet in master.cf has receive_override_options"),
        ("relay-hub", "sender_canonical_maps = tcp:localhost:10001\n", "sender_canonical_maps has tcp:localhost:10001"),
        ("relay-hub", "", "Clients that a connector knows by certificate"),
        (
            "relay-hub",
            "smtpd_milter_maps = cidr:{{192.0.2.0/24 DISABLE}}\n",
            "smtpd_milter_maps is cidr:{{192.0.2.0/24",
        ),
        ("policy-only", "", "gatepost.toml: relay.enforced_by is"),
        (
            "policy-only",
            "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination\n",
            "smtpd_recipient_restrictions has reject_unauth_destination, as smtpd_relay_restrictions does",
        ),
        (
            "postsrsd-replacement",
            "recipient_canonical_maps = socketmap:unix:srs:reverse\n",
            "recipient_canonical_maps has socketmap:unix:srs:reverse, whose place gatepost takes",
        ),
        ("policy-only", "", "smtpd_relay_restrictions ends in defer_unauth_destination"),
        ("exchange-online", "", "gatepost.toml: there is no [upstream]"),
        ("exchange-online", "", "relayhost is empty"),
        (
            "relay-hub",
            "canonical_maps = inline:{ {@contoso.com = office@contoso.com} }\n",
            "canonical_maps: inline:{ {@contoso.com = office@contoso.com} } changes SRS addresses in contoso.com",
        ),
        ("exchange-online", "relay_domains =\n", "contoso.com is not in relay_domains"),
        ("forwarder", "transport_maps = pcre:/etc/postfix/transport\n", "transport_maps: pcre:/etc/postfix/transport"),
    ],
)
def test_what_is_left_to_the_administrator_is_said(
    host: SetupHost, topology: str, main_cf: str, beginning: str
) -> None:
    host.add(main_cf)
    assert [text for text in advised(host, topology) if text.startswith(beginning)]


@pytest.mark.parametrize(
    ("topology", "main_cf", "word"),
    [
        ("exchange-online", "masquerade_domains = !srs.contoso.com, contoso.com\n", "SRS addresses"),
        ("exchange-online", "masquerade_domains = contoso.com\nmasquerade_classes = header_sender\n", "SRS addresses"),
        ("relay-hub", "masquerade_domains = contoso.com\n", "SRS addresses"),
        ("relay-hub", "canonical_maps = inline:{ {ann@contoso.com = Ann.Lee@contoso.com} }\n", "SRS addresses"),
        ("relay-hub", "smtpd_tls_security_level =\nsmtpd_use_tls = yes\n", "no smtpd offers TLS"),
        ("exchange-online", "default_transport = smtp:[contoso-com.example]:25\n", "relayhost is empty"),
        ("policy-only", "", "smtpd_recipient_restrictions has"),
    ],
)
def test_what_is_right_is_not_said(host: SetupHost, topology: str, main_cf: str, word: str) -> None:
    host.configure(topology).add(main_cf)
    assert not [text for text in advised(host, topology) if word in text]


def test_masquerading_that_srs_addresses_do_not_survive_is_said(host: SetupHost) -> None:
    host.configure("exchange-online").add("masquerade_domains = contoso.com\n")
    (said,) = [text for text in advised(host, "exchange-online") if "SRS addresses" in text]
    assert said.startswith("masquerade_domains strips SRS addresses of their domain srs.contoso.com")
    assert said.endswith("postconf -e 'masquerade_domains = !srs.contoso.com, contoso.com'")


def test_egress_without_its_hop_is_said(forwarder: SetupHost) -> None:
    assert "gatepost.toml has [egress], and topology relay-hub has no hop" in " ".join(advised(forwarder))


FILTERED = "hands mail to relay:[192.0.2.9], which wins over the egress hop"


@pytest.mark.parametrize(
    ("main_cf", "beginning"),
    [
        ("content_filter = relay:[192.0.2.9]\n", f"content_filter {FILTERED}"),
        (
            "header_checks = regexp:{{/^Subject: out/ FILTER relay:[192.0.2.9]}}\n",
            f"header_checks: regexp:{{{{/^Subject: out/ FILTER relay:[192.0.2.9]}}}} {FILTERED}",
        ),
        (
            "smtpd_sender_restrictions = check_sender_access inline:{ {fabrikam.com = FILTER relay:[192.0.2.9]} }\n",
            f"smtpd_sender_restrictions: inline:{{ {{fabrikam.com = FILTER relay:[192.0.2.9]}} }} {FILTERED}",
        ),
        ("smtpd_data_restrictions = check_client_access cidr:{directory}/clients\n", "smtpd_data_restrictions: cidr:"),
    ],
)
def test_filter_that_is_another_host_on_the_way_out_is_said(forwarder: SetupHost, main_cf: str, beginning: str) -> None:
    (forwarder.directory / "clients").write_text("# FILTER old:\n192.0.2.0/24 filter relay:[192.0.2.9]\n")
    forwarder.add(main_cf.replace("{directory}", str(forwarder.directory)))
    assert [text for text in advised(forwarder, "forwarder") if text.startswith(beginning)]


@pytest.mark.parametrize("destination", ["amavis:[127.0.0.1]:10024", "amavis:localhost:10024", "dspam:"])
def test_filter_on_this_host_is_not_said(forwarder: SetupHost, destination: str) -> None:
    dspam = "dspam unix - n n - - pipe\n  user=nobody argv=/usr/bin/dspam\namavis unix - - y - 2 smtp\n"
    forwarder.add(f"content_filter = {destination}\n", dspam)
    assert not [text for text in advised(forwarder, "forwarder") if "wins over the egress hop" in text]


@pytest.mark.parametrize(
    "service",
    [
        "127.0.0.1:10025 inet n - y - - smtpd\n",
        "10025 inet n - y - - smtpd\n  -o mynetworks=192.0.2.7\n",
    ],
)
def test_service_that_a_filter_may_give_mail_back_to_is_said(host: SetupHost, service: str) -> None:
    (said,) = [text for text in advised(host.add("", service)) if "counts as a way in" in text]
    name = service.split()[0]
    assert said.startswith(f"{name}/inet in master.cf")
    assert said.endswith(f"postconf -P '{name}/inet/content_filter='")
    host.add("", "  -o content_filter=\n")
    assert not [text for text in advised(host) if "counts as a way in" in text]


def test_submission_service_on_loopback_is_no_such_one(host: SetupHost) -> None:
    host.add("", "127.0.0.1:587 inet n - y - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n")
    assert not [text for text in advised(host) if "counts as a way in" in text]
