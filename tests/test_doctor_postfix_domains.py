# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of domains, networks and strangers, on real configurations of Postfix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from doctorpostfix import Looked

Look = Callable[..., Looked]
AGREEING = "mynetworks = 192.0.2.0/28\n"
RELAYED = "relay_domains = contoso.com\n"


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


def without_addresses(text: str) -> str:
    return text.replace('sender_ip_addresses = ["192.0.2.0/28"]', 'sender_ip_addresses = ["192.0.2.0/28", "::1"]')


# Domains


def test_domains_of_postfix_that_gatepost_knows_are_well(look: Look) -> None:
    assert look("relay-hub").texts("local-domains") == ["ok: every domain of Postfix is inside for gatepost"]


@pytest.mark.parametrize("name", ["mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains"])
def test_a_domain_of_postfix_that_gatepost_does_not_know_is_named(look: Look, name: str) -> None:
    looked = look("relay-hub", main_cf=f"{name} = mail.contoso.com, fabrikam.com\n")
    assert looked.texts("local-domains") == [f"warning: in Postfix, and not inside for gatepost: fabrikam.com ({name})"]
    assert looked.commands("local-domains") == [
        'gatepost.toml: [relay] local_domains = ["mail.contoso.com", "localhost", "fabrikam.com"]',
        "gatepost -c gatepost.toml config check && systemctl reload gatepost.target",
    ]


def test_in_mode_enforce_an_unknown_domain_is_an_error(look: Look) -> None:
    looked = look("relay-hub", main_cf="relay_domains = fabrikam.com\n", gatepost=enforcing)
    assert looked.texts("local-domains") == [
        "error: in Postfix, and not inside for gatepost: fabrikam.com (relay_domains)"
    ]


def test_domains_in_a_table_are_looked_at(look: Look) -> None:
    table = "inline:{ fabrikam.com=x, contoso.com=x }"
    looked = look("relay-hub", main_cf=f"relay_domains = {table}\n")
    assert looked.texts("local-domains") == [
        "warning: in Postfix, and not inside for gatepost: fabrikam.com (relay_domains)"
    ]


def test_a_table_that_cannot_be_listed_is_told(look: Look) -> None:
    looked = look("relay-hub", main_cf="relay_domains = regexp:{ {/^contoso/ x} }\n")
    assert looked.texts("local-domains")[0] == (
        "info: relay_domains has regexp:{ {/^contoso/ x} }, which cannot be listed"
    )


def test_canonical_maps_alone_ask_nothing_of_domains_and_networks(look: Look) -> None:
    looked = look("postsrsd-replacement", main_cf="mynetworks = 198.51.100.0/24\n")
    assert looked.texts("local-domains") == []
    assert looked.texts("networks") == []


def test_postfix_must_take_mail_for_the_srs_domain(look: Look) -> None:
    looked = look("relay-hub")
    assert looked.texts("srs-domains-in-postfix") == [
        "warning: contoso.com, in which SRS addresses are made, is in none of mydestination, virtual_alias_domains, "
        "virtual_mailbox_domains, relay_domains"
    ]
    looked.paste("srs-domains-in-postfix")
    assert looked.texts("srs-domains-in-postfix") == ["ok: Postfix takes bounces for contoso.com"]


def test_a_declared_srs_domain_belongs_in_virtual_alias_domains(look: Look) -> None:
    looked = look("exchange-online", main_cf="virtual_alias_domains =\nrelay_domains =\n")
    assert looked.commands("srs-domains-in-postfix")[0] == "postconf -e 'virtual_alias_domains = srs.contoso.com'"


def test_an_accepted_domain_behind_the_relayhost_takes_the_egress_hop(look: Look) -> None:
    looked = look("forwarder", main_cf="virtual_alias_domains =\nrelayhost = [198.51.100.1]\n")
    assert looked.texts("accepted-domains-in-postfix") == [
        "error: accepted domains that Postfix reaches by default_transport or relayhost only: contoso.com"
    ]
    looked.paste("accepted-domains-in-postfix")
    assert looked.texts("accepted-domains-in-postfix") == ["ok: accepted domains stay off the egress hop"]


def test_an_accepted_domain_with_a_transport_of_its_own_stays_off_the_egress_hop(look: Look) -> None:
    transport = "transport_maps = inline:{ contoso.com=smtp:[192.0.2.1] }\n"
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\n{transport}")
    assert looked.texts("accepted-domains-in-postfix") == ["ok: accepted domains stay off the egress hop"]


def test_a_table_that_does_not_answer_is_unknown(look: Look) -> None:
    (text,) = look("forwarder").texts("accepted-domains-in-postfix")  # /etc/postfix/virtual is not there
    assert text.startswith("unknown: Postfix's own programs complain: ")
    assert "hash:/etc/postfix/virtual" in text


# Networks


def test_networks_and_connectors_that_agree_are_well(look: Look) -> None:
    assert look("relay-hub", main_cf=AGREEING).texts("networks") == [
        "ok: mynetworks and the connectors' addresses agree"
    ]


def test_a_connector_that_postfix_lets_not_relay(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 192.0.2.1/32, 192.0.2.2/32\n", gatepost=without_addresses)
    assert looked.texts("networks") == [
        "warning: addresses of connectors that mynetworks lacks: 192.0.2.0/28 (head office), ::1/128 (head office)"
    ]
    assert looked.commands("networks")[0] == (
        "postconf -e 'mynetworks = 192.0.2.1/32, 192.0.2.2/32, 192.0.2.0/28, [::1]/128'"
    )


def test_policyd_lets_a_connector_relay_that_mynetworks_lacks(look: Look) -> None:
    looked = look("policy-only", main_cf="mynetworks = 192.0.2.1/32\n")
    assert looked.texts("networks") == ["ok: mynetworks and the connectors' addresses agree"]


def test_hosts_that_only_postfix_knows_will_be_refused(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 192.0.2.0/24, 127.0.0.0/8\n")
    assert looked.texts("networks") == [
        "warning: networks in mynetworks that no connector covers entirely: 192.0.2.0/24"
    ]
    assert looked.commands("networks") == [
        'gatepost.toml: [[organization.connector]] sender_ip_addresses = ["192.0.2.0/24"]'
    ]


def test_this_hosts_own_programs_are_told(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 192.0.2.0/28, 127.0.0.0/8, [::1]/128\n")
    assert looked.texts("networks") == [
        "info: no connector is for this host's own programs: 127.0.0.0/8, ::1/128 in mynetworks"
    ]


def test_a_connector_for_one_address_of_loopback_is_for_this_hosts_own_programs(look: Look) -> None:
    looked = look("forwarder", main_cf="mynetworks = 192.0.2.0/28, 127.0.0.0/8\n")
    assert looked.texts("networks") == ["ok: mynetworks and the connectors' addresses agree"]


def test_a_table_in_mynetworks_is_not_compared(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = cidr:{ {192.0.2.0/28 OK} }\n")
    assert looked.texts("networks") == [
        "info: mynetworks has cidr:{ {192.0.2.0/28 OK} }, whose networks are not compared with connectors",
        "ok: mynetworks and the connectors' addresses agree",
    ]


# Strangers

GUARDED = [
    ["smtpd_relay_restrictions = permit_mynetworks, defer_unauth_destination"],
    ["smtpd_relay_restrictions =", "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination"],
    ["smtpd_relay_restrictions = permit_sasl_authenticated, reject"],
]


@pytest.mark.parametrize("lines", GUARDED)
def test_a_guarded_postfix_does_not_relay_for_strangers(look: Look, lines: Sequence[str]) -> None:
    looked = look("relay-hub", main_cf="\n".join(lines))
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


def test_a_relay_list_that_permits_before_it_refuses_is_an_open_relay(look: Look) -> None:
    looked = look("relay-hub", main_cf="smtpd_relay_restrictions = permit, reject_unauth_destination\n")
    assert looked.texts("open-relay") == [
        'error: smtp/inet: smtpd_relay_restrictions = "permit, reject_unauth_destination" and '
        "smtpd_recipient_restrictions let everybody relay"
    ]
    looked.paste("open-relay")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


@pytest.mark.parametrize("value", ["permit", "permit_mynetworks", "permit_mynetworks, warn_if_reject reject"])
def test_without_any_refusal_smtpd_does_not_start(look: Look, value: str) -> None:
    looked = look("relay-hub", main_cf=f"smtpd_relay_restrictions = {value}\n")
    assert looked.texts("open-relay") == [
        f'error: smtp/inet: smtpd_relay_restrictions = "{value}", and neither it nor smtpd_recipient_restrictions has '
        "reject_unauth_destination"
    ]
    looked.paste("open-relay")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


def test_a_restriction_class_is_looked_into(look: Look) -> None:
    looked = look(
        "relay-hub",
        main_cf="smtpd_restriction_classes = guard\nguard = permit_mynetworks, reject_unauth_destination\n"
        "smtpd_relay_restrictions = guard\n",
    )
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


def test_mynetworks_with_the_whole_internet_is_an_open_relay(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 192.0.2.0/28, 0.0.0.0/0\n")
    assert looked.texts("open-relay") == ["error: mynetworks has 0.0.0.0/0"]
    looked.paste("open-relay")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


def test_a_list_of_domains_that_says_yes_to_all_is_an_open_relay(look: Look) -> None:
    looked = look("relay-hub", main_cf="relay_domains = static:all\n")
    assert looked.texts("open-relay") == ["error: relay_domains has static:all, which says yes to every domain"]


EVERYBODY = ["static:all", "cidr:{ {0.0.0.0/0 OK} }", "0.0.0.0/1"]


@pytest.mark.parametrize("entry", EVERYBODY)
def test_what_has_everybody_in_it_is_an_open_relay(look: Look, entry: str) -> None:
    looked = look("relay-hub", main_cf=f"mynetworks = 192.0.2.0/28, {entry}\n")
    assert looked.texts("open-relay") == [f"error: mynetworks has {entry}"]
    assert looked.texts("networks") == ["ok: mynetworks and the connectors' addresses agree"]


def test_a_service_with_mynetworks_of_its_own_may_be_the_open_relay(look: Look) -> None:
    looked = look("relay-hub", master_cf="2525 inet n - y - - smtpd\n  -o mynetworks=0.0.0.0/0\n")
    assert looked.texts("open-relay") == ["error: 2525/inet: mynetworks has 0.0.0.0/0"]
    looked.paste("open-relay")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


@pytest.mark.parametrize("table", ["static:OK", "cidr:{ {0.0.0.0/0 OK} }"])
def test_a_table_that_permits_everybody_before_the_refusal_is_an_open_relay(look: Look, table: str) -> None:
    restrictions = f"check_client_access {table}, reject_unauth_destination"
    looked = look("relay-hub", main_cf=f"smtpd_relay_restrictions = {restrictions}\n")
    assert [finding.severity.value for finding in looked.find("open-relay")] == ["error"]
    looked.paste("open-relay")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]
    assert looked.stage.postfix.postconf("-h", "smtpd_relay_restrictions").strip() == (
        "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"
    )


def test_a_table_that_permits_some_is_no_open_relay(look: Look) -> None:
    table = "check_client_access cidr:{ {192.0.2.9 OK} }"
    looked = look("relay-hub", main_cf=f"smtpd_relay_restrictions = {table}, reject_unauth_destination\n")
    assert looked.texts("open-relay") == ["ok: Postfix does not relay for strangers"]


def test_all_other_entries_of_mynetworks_stay_in_their_order(look: Look) -> None:
    value = "!192.0.2.3, 0.0.0.0/0, inline:{ 192.0.2.99=x }, 192.0.2.0/28"
    looked = look("relay-hub", main_cf=f"mynetworks = {value}\n")
    assert looked.commands("open-relay")[0] == (
        "postconf -e 'mynetworks = !192.0.2.3, inline:{ 192.0.2.99=x }, 192.0.2.0/28'"
    )


def test_this_host_itself_stays_in_mynetworks(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 0.0.0.0/0\n")
    assert looked.commands("open-relay")[0] == "postconf -e 'mynetworks = 127.0.0.0/8, [::1]/128'"


# Networks as Debian writes them, and in pieces


def test_debians_way_to_write_loopback_is_loopback(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128 192.0.2.0/28\n")
    assert looked.texts("networks") == [
        "info: no connector is for this host's own programs: 127.0.0.0/8, ::1/128 in mynetworks"
    ]


def test_connectors_cover_a_network_together(look: Look) -> None:
    looked = look(
        "relay-hub",
        main_cf=AGREEING,
        gatepost=lambda text: text.replace('["192.0.2.0/28"]', '["192.0.2.0/29", "192.0.2.8/29"]'),
    )
    assert looked.texts("networks") == ["ok: mynetworks and the connectors' addresses agree"]


def test_mynetworks_covers_a_connector_in_pieces(look: Look) -> None:
    looked = look("relay-hub", main_cf="mynetworks = 192.0.2.0/29, 192.0.2.8/29\n")
    assert looked.texts("networks") == ["ok: mynetworks and the connectors' addresses agree"]


# Inside, and reached as the world outside is


def test_subdomains_of_an_accepted_domain_may_take_the_egress_hop(look: Look) -> None:
    looked = look(
        "forwarder",
        main_cf=f"virtual_alias_domains =\n{RELAYED}parent_domain_matches_subdomains =\n",
        gatepost=lambda text: text.replace("default = true", "default = true\nmatch_subdomains = true"),
    )
    assert looked.texts("accepted-domains-in-postfix") == [
        "warning: inside for gatepost, and reached by default_transport or relayhost only: .contoso.com"
    ]
    looked.postconf("-e", "transport_maps = inline:{ .contoso.com=smtp:[192.0.2.1] }")
    assert looked.texts("accepted-domains-in-postfix") == ["ok: accepted domains stay off the egress hop"]


def test_a_local_domain_behind_the_relayhost_takes_the_egress_hop(look: Look) -> None:
    looked = look(
        "forwarder",
        main_cf=f"virtual_alias_domains =\n{RELAYED}",
        gatepost=lambda text: text.replace('"localhost"]', '"localhost", "partner.example"]'),
    )
    assert looked.texts("accepted-domains-in-postfix") == [
        "info: inside for gatepost, and reached by default_transport or relayhost only: partner.example",
        "ok: accepted domains stay off the egress hop",
    ]


def test_gateposts_own_map_is_not_asked_which_domains_there_are(look: Look) -> None:
    looked = look("relay-hub", main_cf=f"{RELAYED}virtual_alias_domains = $virtual_alias_maps\n")
    assert looked.texts("srs-domains-in-postfix") == ["ok: Postfix takes bounces for contoso.com"]
    assert looked.texts("local-domains") == ["ok: every domain of Postfix is inside for gatepost"]
