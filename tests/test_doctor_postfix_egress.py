# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's checks of the egress hop: each of its rules kept, as in the example, and broken, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from doctorpostfix import Looked

from gatepost.admin.postfix.hop import Override, hop_services
from gatepost.admin.postfix.wiring import Hop, Sockets

Look = Callable[..., Looked]
HOP = "egress-hop"
RECEIVING = "127.0.0.1:10027/inet"
TABLE = "socketmap:unix:gatepost/policyd.sock:egress"

WELL = [
    ("egress-map", ["ok: sender_dependent_default_transport_maps asks gatepost first"]),
    (HOP, ["ok: both halves of the egress hop are right: gatepost-egress, 127.0.0.1:10027"]),
    ("egress-orcpt", ["ok: a client's ORCPT is taken out"]),
    ("egress-transport-maps", ["ok: transport_maps sends nothing past the egress hop"]),
]


@pytest.mark.parametrize(("check", "expected"), WELL)
def test_the_example_is_well(look: Look, check: str, expected: list[str]) -> None:
    assert look("forwarder").texts(check)[:1] == expected


@pytest.mark.parametrize("check", [check for check, _ in WELL])
def test_without_a_hop_there_is_nothing_to_say(look: Look, check: str) -> None:
    assert look("relay-hub").texts(check) == []


# The map


def test_without_the_map_forwarded_mail_leaves_unrewritten(look: Look) -> None:
    looked = look("forwarder", main_cf="sender_dependent_default_transport_maps =\n")
    assert looked.texts("egress-map") == ["error: sender_dependent_default_transport_maps is empty"]
    looked.paste("egress-map")
    assert [finding.severity.value for finding in looked.find("egress-map")] == ["ok", "ok"]


def test_a_table_before_the_map_leads_past_the_hop(look: Look) -> None:
    looked = look("forwarder", main_cf=f"sender_dependent_default_transport_maps = static:smtp:, {TABLE}\n")
    assert looked.texts("egress-map")[0] == (
        "error: sender_dependent_default_transport_maps: gatepost's map stands behind static:smtp:"
    )
    looked.paste("egress-map")
    assert [finding.severity.value for finding in looked.find("egress-map")] == ["ok", "ok"]


def test_address_probes_must_ask_the_real_next_hop(look: Look) -> None:
    name = "address_verify_sender_dependent_default_transport_maps"
    looked = look("forwarder").postconf("-X", name)
    assert looked.texts("egress-map") == [
        "ok: sender_dependent_default_transport_maps asks gatepost first",
        f"error: {name} is $sender_dependent_default_transport_maps",
    ]
    looked.paste("egress-map")
    assert [finding.severity.value for finding in looked.find("egress-map")] == ["ok", "ok"]


def test_the_map_without_a_hop_in_gatepost_toml_says_no_to_all(look: Look) -> None:
    looked = look("relay-hub", main_cf=f"sender_dependent_default_transport_maps = {TABLE}\n")
    assert looked.texts("egress-map") == [
        "warning: sender_dependent_default_transport_maps has gatepost's map egress, and gatepost.toml has no [egress]"
    ]


# The two halves: each parameter that the table has, left to main.cf or set to what breaks it


WRONG = {
    "yes": "no",
    "no": "yes",
    "none": "may",
    "0": "10240000",
    "tempfail": "accept",
    "": "static:x",
    "127.0.0.0/8": "192.0.2.0/24",
    "gatepost-egress": "other",
}


_SENDING, _RECEIVING, _ = hop_services(Sockets(), Hop())
_OTHERWISE = ("syslog_name", "cleanup_service_name", "smtpd_milters", "smtpd_upstream_proxy_protocol")
"""What may be otherwise, is looked at below, or is not known to every Postfix."""


@pytest.mark.parametrize(
    ("service", "overrides"), [("gatepost-egress/unix", _SENDING.overrides), (RECEIVING, _RECEIVING.overrides)]
)
def test_each_wrong_parameter_of_the_hop_is_named_and_mended(
    look: Look, service: str, overrides: Sequence[Override]
) -> None:
    looked = look("forwarder")
    real = service.replace("10027", looked.stage.ports["10027"])
    wrong = {
        item: WRONG.get(item.value, "permit_mynetworks")
        for item in overrides
        if item.name not in _OTHERWISE and looked.stage.postfix.postconf("-d", item.name)
    }
    looked.postconf("-P", *(f"{real}/{item.name}={value}" for item, value in wrong.items()))
    assert looked.texts(HOP) == [
        f'error: {service}: {item.name} is "{value}"; it must be "{item.value}"' for item, value in wrong.items()
    ]
    looked.paste(HOP)
    assert [finding.severity.value for finding in looked.find(HOP)] == ["ok"]


HOSTILE = [
    ("smtp_fallback_relay", "[198.51.100.1]", "gatepost-egress/unix"),
    ("smtp_tls_security_level", "encrypt", "gatepost-egress/unix"),
    ("smtp_sasl_auth_enable", "yes", "gatepost-egress/unix"),
    ("smtp_bind_address", "198.51.100.2", "gatepost-egress/unix"),
    ("smtp_generic_maps", "static:x", "gatepost-egress/unix"),
    ("content_filter", "smtp:[127.0.0.1]:10024", RECEIVING),
    ("smtpd_proxy_filter", "127.0.0.1:10024", RECEIVING),
    ("local_header_rewrite_clients", "static:all", RECEIVING),
    ("smtpd_client_restrictions", "reject_unknown_client_hostname", RECEIVING),
]


@pytest.mark.parametrize(("name", "value", "service"), HOSTILE)
def test_what_a_hostile_main_cf_says_gets_in_where_the_hop_does_not_set_it(
    look: Look, name: str, value: str, service: str
) -> None:
    looked = look("forwarder", main_cf=f"{name} = {value}\n")
    assert [finding.severity.value for finding in looked.find(HOP)] == ["ok"]
    looked.postconf("-PX", f"{service.replace('10027', looked.stage.ports['10027'])}/{name}")
    (text,) = looked.texts(HOP)
    assert text.startswith(f'error: {service}: {name} is "{value}"; it must be "')


def test_a_larger_size_limit_than_ingress_has_will_do(look: Look) -> None:
    looked = look("forwarder", main_cf="message_size_limit = 1000000\n")
    real = RECEIVING.replace("10027", looked.stage.ports["10027"])
    looked.postconf("-P", f"{real}/message_size_limit=2000000")
    assert [finding.severity.value for finding in looked.find(HOP)] == ["ok"]


def test_other_milters_on_the_hop_see_mail_twice(look: Look) -> None:
    looked = look("forwarder")
    real = RECEIVING.replace("10027", looked.stage.ports["10027"])
    looked.postconf("-P", f"{real}/smtpd_milters=unix:gatepost/milter.sock,inet:127.0.0.1:8891")
    assert looked.texts(HOP) == [
        f'error: {RECEIVING}: smtpd_milters is "unix:gatepost/milter.sock,inet:127.0.0.1:8891"; '
        'it must be "unix:gatepost/milter.sock"'
    ]


def test_without_the_sending_half_mail_waits(look: Look) -> None:
    looked = look("forwarder").postconf("-MX", "gatepost-egress/unix")
    assert looked.texts(HOP) == ["error: master.cf has no smtp gatepost-egress/unix, to which [egress] transport leads"]


def test_a_transport_that_leads_to_another_port_finds_no_receiving_half(look: Look) -> None:
    looked = look(
        "forwarder",
        gatepost=lambda text: text.replace(
            'transport = "gatepost-egress:[127.0.0.1]:', 'transport = "gatepost-egress:[127.0.0.1]:1'
        ),
    )
    texts = looked.texts(HOP)
    assert len(texts) == 1
    assert "master.cf has no smtpd 127.0.0.1:1" in texts[0]


def test_another_daemon_name_than_gatepost_knows(look: Look) -> None:
    looked = look(
        "forwarder", gatepost=lambda text: text.replace('daemon_name = "gatepost-egress"', 'daemon_name = "out"')
    )
    assert looked.texts(HOP) == [f'error: {RECEIVING}: milter_macro_daemon_name is "gatepost-egress"; it must be "out"']


def test_another_service_that_calls_itself_the_hop(look: Look) -> None:
    looked = look("forwarder")
    looked.postconf("-M", "2525/inet=2525 inet n - y - - smtpd -o milter_macro_daemon_name=gatepost-egress")
    assert looked.texts(HOP) == ["error: 2525/inet: milter_macro_daemon_name is gatepost-egress, as the egress hop's"]
    looked.paste(HOP)
    assert [finding.severity.value for finding in looked.find(HOP)] == ["ok"]


def test_a_hop_that_listens_to_the_world(look: Look) -> None:
    looked = look("forwarder")
    port = looked.stage.ports["10027"]
    line = looked.stage.postfix.postconf("-M", f"127.0.0.1:{port}/inet").replace(f"127.0.0.1:{port}", port, 1)
    looked.postconf("-MX", f"127.0.0.1:{port}/inet").postconf("-M", f"{port}/inet={line.strip()}")
    assert looked.texts(HOP) == ["error: 10027/inet: the egress hop listens on other addresses than loopback"]


# What gets past it or into it


def test_a_clients_orcpt_must_not_get_in(look: Look) -> None:
    looked = look("forwarder", main_cf="smtpd_command_filter =\n")
    assert looked.texts("egress-orcpt") == ["error: smtp/inet: smtpd_command_filter leaves a client's ORCPT in"]


@pytest.mark.parametrize(
    "rule",
    ["/^(RCPT .*) ORCPT=rfc822;[^ ]*(.*)$$/ $$1$$2", "/^(RCPT .*) ORCPT=[^ ]*(.*)$$/i $$1$$2"],
    ids=["one address type", "capitals only"],
)
def test_a_clients_orcpt_may_be_spelled_in_other_ways(look: Look, rule: str) -> None:
    looked = look("forwarder", main_cf=f"smtpd_command_filter = regexp:{{ {{{rule}}} }}\n")
    assert looked.texts("egress-orcpt") == ["error: smtp/inet: smtpd_command_filter leaves a client's ORCPT in"]


def test_an_smtpd_that_takes_no_dsn_parameters_takes_no_orcpt(look: Look) -> None:
    looked = look("forwarder", main_cf="smtpd_command_filter =\nsmtpd_discard_ehlo_keywords = dsn\n")
    assert looked.texts("egress-orcpt") == ["ok: a client's ORCPT is taken out"]


@pytest.mark.parametrize(
    "entry",
    [
        "* smtp:[198.51.100.1]",
        "example.com smtp:[198.51.100.1]",
        ".example.com :[198.51.100.1]",
        ".contoso.com smtp:[198.51.100.1]",
    ],
)
def test_transport_maps_for_outside_lead_past_the_hop(look: Look, entry: str) -> None:
    looked = look("forwarder", main_cf="virtual_alias_domains =\n")
    table = looked.directory / "transport"
    table.write_text(f"contoso.com smtp:[192.0.2.1]\n{entry}\n")
    looked.postconf("-e", f"transport_maps = texthash:{table}")
    assert looked.texts("egress-transport-maps") == [
        f"error: transport_maps sends mail for outside past the egress hop: {entry} (texthash:/etc/postfix/transport)"
    ]


@pytest.mark.parametrize(
    "entry",
    [
        "contoso.com smtp:[192.0.2.1]",
        "mail.contoso.com :[192.0.2.1]",
        "example.com :",
        "example.com error:5.1.2 gone",
        "example.com discard:",
        "postmaster@contoso.com local:",
        "example.net relay:[192.0.2.9]",
    ],
)
def test_transport_maps_for_inside_or_nowhere_are_well(look: Look, entry: str) -> None:
    looked = look("forwarder", main_cf="virtual_alias_domains =\nrelay_domains = example.net\n")
    table = looked.directory / "transport"
    table.write_text(f"{entry}\n")
    looked.postconf("-e", f"transport_maps = texthash:{table}")
    assert looked.texts("egress-transport-maps") == ["ok: transport_maps sends nothing past the egress hop"]


def test_a_table_that_cannot_be_listed_is_asked_for_a_domain_that_is_nobodys(look: Look) -> None:
    catching = "regexp:{ {/./ smtp:[198.51.100.1]} }"
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\ntransport_maps = {catching}\n")
    assert looked.texts("egress-transport-maps") == [
        "error: transport_maps sends mail for outside past the egress hop: every domain smtp:[198.51.100.1] "
        f"({catching})"
    ]


def test_a_pattern_for_whole_addresses_leads_past_the_hop(look: Look) -> None:
    catching = "regexp:{ {/@.*$$/ smtp:[198.51.100.1]} }"
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\ntransport_maps = {catching}\n")
    assert looked.texts("egress-transport-maps")[0].startswith(
        "error: transport_maps sends mail for outside past the egress hop: every domain smtp:[198.51.100.1]"
    )


@pytest.mark.parametrize("pattern", ["@gmail[.]com$$", r"@gmail\.com", "^.*@example"])
def test_a_pattern_for_domains_outside_is_a_warning(look: Look, pattern: str) -> None:
    some = f"regexp:{{ {{/{pattern}/ smtp:[198.51.100.1]}} }}"
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\ntransport_maps = {some}\n")
    (told,) = [text for text in looked.texts("egress-transport-maps") if not text.startswith("ok")]
    assert told.startswith("warning: transport_maps: regexp:")
    assert told.endswith("/ smtp:[198.51.100.1]")


@pytest.mark.parametrize("rule", ["/@contoso[.]com$$/ smtp:[192.0.2.1]", "/^out-of-office/ discard:"])
def test_a_pattern_for_domains_inside_is_well(look: Look, rule: str) -> None:
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\ntransport_maps = regexp:{{ {{{rule}}} }}\n")
    assert looked.texts("egress-transport-maps") == ["ok: transport_maps sends nothing past the egress hop"]


def test_an_entry_that_leads_into_the_hop_is_an_error(look: Look) -> None:
    table = "inline:{ {example.org = gatepost-egress:[127.0.0.1]:10027} }"
    looked = look("forwarder", main_cf=f"virtual_alias_domains =\ntransport_maps = {table}\n")
    (told,) = looked.texts("egress-transport-maps")
    assert told.startswith("error: transport_maps sends mail for outside into the egress hop: example.org ")


def test_the_daemon_that_asks_the_map_may_have_a_list_of_its_own(look: Look) -> None:
    looked = look("forwarder").postconf("-P", "rewrite/unix/sender_dependent_default_transport_maps=")
    assert looked.texts("egress-map") == ["error: rewrite/unix: sender_dependent_default_transport_maps is empty"]
    looked.paste("egress-map")
    assert [finding.severity.value for finding in looked.find("egress-map")] == ["ok", "ok"]


# Halves that do not suit each other


def test_a_default_action_in_braces_lets_mail_past_the_milter(look: Look) -> None:
    looked = look("forwarder")
    master = looked.directory / "master.cf"
    text = master.read_text()
    braces = "-o { smtpd_milters = { unix:gatepost/milter.sock, default_action=accept } }"
    master.write_text(text.replace("-o smtpd_milters=unix:gatepost/milter.sock", braces))
    assert looked.texts(HOP) == [
        f'error: {RECEIVING}: smtpd_milters is "{{ unix:gatepost/milter.sock, default_action=accept }}"; '
        'it must be "unix:gatepost/milter.sock"'
    ]
    looked.paste(HOP)
    assert [finding.severity.value for finding in looked.find(HOP)] == ["ok"]


def test_halves_at_other_addresses_do_not_meet(look: Look) -> None:
    looked = look(
        "forwarder", gatepost=lambda text: text.replace("gatepost-egress:[127.0.0.1]:", "gatepost-egress:[::1]:")
    )
    looked.paste(HOP)
    assert looked.texts(HOP) == [f"error: {RECEIVING}: [egress] transport leads to [::1]:10027"]
