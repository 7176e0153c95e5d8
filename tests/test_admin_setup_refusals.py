# SPDX-License-Identifier: GPL-3.0-or-later
"""What `gatepost setup postfix` refuses to build on, and what it leaves to the administrator with a word of advice."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from setuphost import SetupHost, setup_host

from gatepost.admin.postfix.wiring import Topology
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


# The egress hop


def test_forwarder_without_egress_in_gatepost_toml_is_refused(host: SetupHost) -> None:
    assert refused(host, "forwarder") == ["gatepost.toml has no [egress]"]


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
    ],
)
def test_transport_that_leads_nothing_past_the_hop_is_not_refused(forwarder: SetupHost, entry: str) -> None:
    assert refused(forwarder.add(f"transport_maps = inline:{{ {{{entry}}} }}\n"), "forwarder") == []


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
        ("policy-only", "", "gatepost.toml: relay.enforced_by is"),
        ("policy-only", "", "smtpd_relay_restrictions ends in defer_unauth_destination"),
        ("exchange-online", "", "gatepost.toml: there is no [upstream]"),
        ("exchange-online", "", "relayhost is empty"),
        ("exchange-online", "relay_domains =\n", "contoso.com is not in relay_domains"),
        ("forwarder", "transport_maps = pcre:/etc/postfix/transport\n", "transport_maps: pcre:/etc/postfix/transport"),
    ],
)
def test_what_is_left_to_the_administrator_is_said(
    host: SetupHost, topology: str, main_cf: str, beginning: str
) -> None:
    host.add(main_cf)
    assert [text for text in advised(host, topology) if text.startswith(beginning)]


def test_egress_without_its_hop_is_said(forwarder: SetupHost) -> None:
    assert "gatepost.toml has [egress], and topology relay-hub has no hop" in " ".join(advised(forwarder))
