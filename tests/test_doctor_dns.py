# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor` and DNS: SPF and MX of the domains of SRS addresses, names of addresses, asked of a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import pytest
from click.testing import CliRunner
from doctors import Raw, circumstances, found, no_postfix, texts
from nameserver import NameServer, Records

from gatepost.admin.command import main
from gatepost.admin.doctor.dns import LIMIT, srs_domains
from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.postfix.config import PostfixConfig
from gatepost.service.resolver import resolver

TIMEOUT_S = 2.0
IP4, IP6 = "192.0.2.10", "2001:db8::10"
HOST: Records = {
    "hub.contoso.com": {"A": [IP4], "AAAA": [IP6]},
    "contoso.com": {"MX": ["10 hub.contoso.com."]},
}
EXCHANGE: Records = {
    "spf.protection.outlook.com": {"TXT": ['"v=spf1 ip4:198.51.100.0/24 include:more.outlook.com -all"']},
    "contoso-com.mail.protection.outlook.com": {"A": ["198.51.100.9"]},
    "mail.protection.outlook.com": {},
}
UPSTREAM: Raw = {
    "organization": [
        {
            "name": "contoso",
            "srs_domain": "srs.contoso.com",
            "accepted_domain": [{"domain": "contoso.com", "default": True}, {"domain": "srs.contoso.com"}],
            "connector": [{"name": "head office", "sender_ip_addresses": ["192.0.2.128/28"]}],
        }
    ],
    "upstream": {"sender_ip_addresses": [IP4]},
}


def txt(*records: str) -> dict[str, list[str]]:
    return {"TXT": [f'"{record}"' for record in records]}


def postfix(**parameters: str) -> PostfixConfig:
    """A Postfix with these parameters; how postconf is read has tests of its own."""
    values = {"inet_protocols": "all", "inet_interfaces": "all", "default_transport": "smtp", **parameters}
    return PostfixConfig("postconf", Path("/etc/postfix"), values, frozenset(parameters), {}, values, ())


def told(
    name: str,
    records: Records,
    raw: Optional[Raw] = None,
    *,
    addresses: Sequence[str] = (IP4,),
    failing: Sequence[str] = (),
    silent: Sequence[str] = (),
    **parameters: str,
) -> list[str]:
    """Return what the check *name* finds with *records* in DNS; *parameters*: of Postfix, where there are any."""
    with NameServer(records, failing, silent) as server:
        return texts(looking(server, raw, addresses, parameters), name)


def looking(
    server: NameServer, raw: Optional[Raw], addresses: Sequence[str] = (IP4,), parameters: Mapping[str, str] = {}
) -> Circumstances:
    def read_postfix() -> PostfixConfig:
        return postfix(**parameters) if parameters else no_postfix()

    return circumstances(
        raw,
        read_postfix=read_postfix,
        make_resolver=lambda: resolver([server.address], TIMEOUT_S),
        addresses=tuple(addresses),
        dns_timeout_s=TIMEOUT_S,
    )


def spf(record: Mapping[str, Sequence[str]], raw: Optional[Raw] = None, **more: Sequence[str]) -> list[str]:
    return told("spf", {**HOST, **EXCHANGE, "contoso.com": record}, raw, **more)


# Which domains


def test_relayed_mail_is_rewritten_in_the_default_domain() -> None:
    assert srs_domains(circumstances().snapshot) == ["contoso.com"]


def test_forwarded_mail_is_rewritten_in_the_mailbox_s_domain() -> None:
    organization = {
        "name": "contoso",
        "accepted_domain": [
            {"domain": "contoso.com", "default": True},
            {"domain": "sales.contoso.com"},
            {"domain": "old.contoso.com", "srs_domain": "srs.contoso.com"},
        ],
    }
    looked_at = circumstances({"organization": [organization], "egress": {}})
    assert srs_domains(looked_at.snapshot) == ["contoso.com", "sales.contoso.com", "srs.contoso.com"]


def test_a_policy_daemon_alone_makes_no_srs_address() -> None:
    raw = {"relay": {"mode": "enforce", "enforced_by": "policyd"}}
    assert srs_domains(circumstances(raw).snapshot) == []


def test_where_exchange_online_knows_the_hub_by_address_only_the_srs_domain_counts() -> None:
    assert srs_domains(circumstances({**UPSTREAM, "egress": {}}).snapshot) == ["srs.contoso.com"]


# SPF


def test_a_record_that_covers_the_addresses_passes() -> None:
    record = txt("v=spf1 mx -all", "google-site-verification=x")
    assert spf({**record, "MX": ["10 hub.contoso.com."]}, addresses=[IP4, IP6]) == [
        "ok: contoso.com: SPF passes for 192.0.2.10, 2001:db8::10"
    ]


def test_a_record_that_does_not_cover_the_address_is_an_error() -> None:
    assert spf(txt("v=spf1 ip4:203.0.113.7 -all")) == [
        "error: contoso.com: SPF says fail of mail from 192.0.2.10: v=spf1 ip4:203.0.113.7 -all"
    ]


def test_one_of_two_addresses_that_is_not_covered_is_told_with_what_to_add() -> None:
    with NameServer({"contoso.com": txt("v=spf1 ip4:192.0.2.10 ~all")}) as server:
        good, bad = found(looking(server, None, [IP4, IP6]), "spf")
    assert good.what == "contoso.com: SPF passes for 192.0.2.10"
    assert bad.what == "contoso.com: SPF says softfail of mail from 2001:db8::10: v=spf1 ip4:192.0.2.10 ~all"
    assert bad.remedy == ("in DNS: in front in the SPF record of contoso.com: ip6:2001:db8::10",)


def test_no_record_is_a_warning_with_one_to_publish() -> None:
    with NameServer({"contoso.com": txt("something else")}) as server:
        (finding,) = found(looking(server, None), "spf")
    assert finding.what == "contoso.com has no SPF record"
    assert finding.remedy == ('in DNS: contoso.com. IN TXT "v=spf1 ip4:192.0.2.10 -all"',)


def test_two_records_are_an_error() -> None:
    assert spf(txt("v=spf1 mx -all", "v=spf1 a ~all")) == [
        "error: contoso.com has 2 SPF records: v=spf1 a ~all, v=spf1 mx -all"
    ]


def test_more_than_ten_look_ups_are_an_error() -> None:
    record = "v=spf1 " + " ".join(f"a:a{number}.example" for number in range(11)) + " -all"
    records = {"contoso.com": txt(record), **{f"a{number}.example": {"A": ["203.0.113.1"]} for number in range(11)}}
    assert told("spf", records) == [f"error: contoso.com: its SPF record takes more than 10 DNS look-ups: {record}"]


def test_a_misspelled_record_is_an_error() -> None:
    assert spf(txt("v=spf1 ipv4:192.0.2.10 -all")) == [
        "error: contoso.com: its SPF record is wrong: Unknown mechanism found: ipv4:192.0.2.10: "
        "v=spf1 ipv4:192.0.2.10 -all"
    ]


def test_a_record_that_covers_the_whole_world_is_a_warning() -> None:
    assert spf(txt("v=spf1 mx +all")) == [
        "warning: contoso.com: its SPF record covers every host of the world: v=spf1 mx +all"
    ]


@pytest.mark.parametrize("record", ["v=spf1 ip4:0.0.0.0/0 -all", "v=spf1 include:all.example -all"])
def test_so_is_one_that_covers_it_in_another_way(record: str) -> None:
    records = {"contoso.com": txt(record), "all.example": txt("v=spf1 +all")}
    assert told("spf", records) == [f"warning: contoso.com: its SPF record covers every host of the world: {record}"]


def test_a_record_that_leaves_others_open_is_mentioned() -> None:
    assert spf(txt("v=spf1 ip4:192.0.2.10 ?all")) == [
        "ok: contoso.com: SPF passes for 192.0.2.10",
        "info: contoso.com: its SPF record leaves other hosts open: v=spf1 ip4:192.0.2.10 ?all",
    ]


def test_dns_that_fails_is_no_error() -> None:
    failing = spf(txt("v=spf1 include:failing.example -all"), failing=["failing.example"])
    assert failing == ["unknown: DNS does not tell of contoso.com: no answer for a part of its SPF record"]


def test_dns_that_is_silent_is_no_error() -> None:
    assert spf(txt("v=spf1 -all"), silent=["contoso.com"]) == [
        "unknown: DNS does not tell of contoso.com: no answer in time"
    ]


def test_behind_nat_the_record_is_read_and_the_rest_not_known() -> None:
    records = {"contoso.com": txt("v=spf1 ip4:203.0.113.7 -all")}
    assert told("spf", records, addresses=(), smtp_bind_address="10.1.2.3", inet_protocols="ipv4") == [
        "ok: contoso.com: its SPF record has no error: v=spf1 ip4:203.0.113.7 -all",
        "unknown: whether SPF lets mail leave from here is not known: mail leaves from 10.1.2.3, which no other site "
        "sees: NAT gives it another one on its way",
    ]


def test_what_smtp_bind_address_says_is_the_address_that_counts() -> None:
    records = {"contoso.com": txt("v=spf1 ip4:203.0.113.7 -all")}
    found = told("spf", records, addresses=(), smtp_bind_address="203.0.113.7", inet_protocols="ipv4")
    assert found == ["ok: contoso.com: SPF passes for 203.0.113.7"]


def test_a_single_interface_is_the_address_that_counts() -> None:
    records = {"contoso.com": txt("v=spf1 ip4:203.0.113.7 -all")}
    found = told("spf", records, addresses=(), inet_interfaces="203.0.113.7", inet_protocols="ipv4")
    assert found == ["ok: contoso.com: SPF passes for 203.0.113.7"]


def test_srs_outgoing_addresses_are_those_that_count() -> None:
    raw = {"srs": {"outgoing_addresses": ["203.0.113.8"]}}
    assert spf(txt("v=spf1 ip4:203.0.113.8 -all"), raw, addresses=()) == ["ok: contoso.com: SPF passes for 203.0.113.8"]


def test_behind_a_relayhost_that_one_s_addresses_count() -> None:
    records = {"contoso.com": txt("v=spf1 mx -all")}
    assert told("spf", records, addresses=(), relayhost="[smtp.provider.example]:587")[-1] == (
        "unknown: whether SPF lets mail leave from here is not known: mail leaves through "
        "[smtp.provider.example]:587, whose addresses count"
    )


def test_behind_a_relayhost_srs_outgoing_addresses_are_those_that_count() -> None:
    records, raw = {"contoso.com": txt("v=spf1 ip4:203.0.113.8 -all")}, {"srs": {"outgoing_addresses": ["203.0.113.8"]}}
    found = told("spf", records, raw, addresses=(), relayhost="[smtp.provider.example]:587")
    assert found == ["ok: contoso.com: SPF passes for 203.0.113.8"]


def test_one_limit_of_time_is_for_all_checks_of_dns() -> None:
    with NameServer({}, silent=["contoso.com", "arpa"]) as server:
        looked_at = looking(server, None)
        began = time.monotonic()
        for check in ("spf", "mx", "reverse-name"):
            (text,) = texts(looked_at, check)
            assert text.startswith("unknown: DNS does not tell of ")
        assert time.monotonic() - began < 2.5 * TIMEOUT_S


def test_in_front_of_exchange_online_the_record_must_cover_exchange_online() -> None:
    records = {**EXCHANGE, "srs.contoso.com": txt("v=spf1 include:spf.protection.outlook.com -all")}
    assert told("spf", records, UPSTREAM) == ["ok: srs.contoso.com: SPF passes for Exchange Online"]


def test_in_front_of_exchange_online_a_record_of_this_host_only_is_an_error() -> None:
    with NameServer({**EXCHANGE, "srs.contoso.com": txt("v=spf1 ip4:192.0.2.10 -all")}) as server:
        (finding,) = found(looking(server, UPSTREAM), "spf")
    assert finding.what == ("srs.contoso.com: SPF says fail of mail from Exchange Online: v=spf1 ip4:192.0.2.10 -all")
    assert finding.remedy == (
        "in DNS: in front in the SPF record of srs.contoso.com: include:spf.protection.outlook.com",
    )


def test_of_many_domains_the_first_are_asked_about() -> None:
    domains = [f"d{number}.example" for number in range(LIMIT + 2)]
    organization = {"name": "contoso", "accepted_domain": [{"domain": domain} for domain in domains]}
    organization["accepted_domain"][0]["default"] = True  # type: ignore[index]
    records = {domain: txt("v=spf1 ip4:192.0.2.10 -all") for domain in domains}
    lines = told("spf", records, {"organization": [organization], "egress": {}})
    assert len(lines) == LIMIT + 1
    assert lines[-1] == "info: 2 domains more: only the first 50 were asked about"


# MX


def test_an_mx_with_an_address_of_this_host_is_well() -> None:
    assert told("mx", HOST) == ["ok: contoso.com: its MX hub.contoso.com is this host"]


def test_an_mx_with_this_host_s_name_is_well() -> None:
    records = {"contoso.com": {"MX": ["10 Hub.contoso.com."]}, "hub.contoso.com": {"A": ["203.0.113.5"]}}
    assert told("mx", records, myhostname="hub.contoso.com") == ["ok: contoso.com: its MX hub.contoso.com is this host"]


def test_an_mx_with_the_address_before_a_nat_that_postfix_knows_is_well() -> None:
    records = {"contoso.com": {"MX": ["10 mx.contoso.com."]}, "mx.contoso.com": {"A": ["203.0.113.5"]}}
    assert told("mx", records, proxy_interfaces="203.0.113.5") == [
        "ok: contoso.com: its MX mx.contoso.com is this host"
    ]


def test_an_address_stands_for_an_mx() -> None:
    assert told("mx", {"contoso.com": {"A": [IP4]}}) == ["ok: contoso.com: its MX contoso.com is this host"]


def test_an_mx_elsewhere_is_a_warning() -> None:
    records = {"contoso.com": {"MX": ["10 mx.filter.example."]}, "mx.filter.example": {"A": ["203.0.113.9"]}}
    assert told("mx", records) == ["warning: contoso.com: its MX mx.filter.example (203.0.113.9) is not this host"]


def test_an_mx_elsewhere_may_be_this_host_behind_nat() -> None:
    records = {"contoso.com": {"MX": ["10 mx.contoso.com."]}, "mx.contoso.com": {"A": ["203.0.113.9"]}}
    (found,) = told("mx", records, addresses=(), smtp_bind_address="10.1.2.3", inet_protocols="ipv4")
    assert found == (
        "unknown: contoso.com: whether its MX mx.contoso.com (203.0.113.9) is this host is not known: mail leaves from "
        "10.1.2.3, which no other site sees: NAT gives it another one on its way"
    )


def test_an_mx_on_loopback_is_not_this_host_to_others() -> None:
    records = {"contoso.com": {"MX": ["10 localhost."]}, "localhost": {"A": ["127.0.0.1"]}}
    assert told("mx", records) == ["warning: contoso.com: its MX localhost (127.0.0.1) is not this host"]


def test_this_host_as_second_mx_is_mentioned() -> None:
    records = {
        **HOST,
        "contoso.com": {"MX": ["20 hub.contoso.com.", "10 mx.filter.example."]},
        "mx.filter.example": {"A": ["203.0.113.9"]},
    }
    assert told("mx", records) == [
        "info: contoso.com: its MX hub.contoso.com is this host, and mx.filter.example is not"
    ]


def test_a_null_mx_is_an_error() -> None:
    assert told("mx", {"contoso.com": {"MX": ["0 ."]}}) == [
        "error: contoso.com takes no mail: its MX is null (RFC 7505)"
    ]


def test_a_domain_without_mx_and_address_is_an_error() -> None:
    assert told("mx", {"com": {}}) == ["error: contoso.com gets no mail: it has neither MX nor address"]


def test_an_mx_without_address_is_an_error() -> None:
    assert told("mx", {"contoso.com": {"MX": ["10 gone.contoso.com."]}}) == [
        "error: contoso.com gets no mail: its MX gone.contoso.com has no address"
    ]


def test_the_mx_of_exchange_online_is_an_error_with_an_srs_domain_to_declare() -> None:
    records = {**EXCHANGE, "contoso.com": {"MX": ["0 contoso-com.mail.protection.outlook.com."]}}
    with NameServer(records) as server:
        (finding,) = found(looking(server, None), "mx")
    assert finding.what == "contoso.com: its MX contoso-com.mail.protection.outlook.com is Exchange Online"
    assert finding.remedy == (
        'gatepost.toml: srs_domain = "srs.contoso.com" in [[organization]] "contoso"',
        "in DNS: srs.contoso.com. IN MX 10 THIS-HOST.",
    )


def test_an_mx_that_dns_does_not_tell_is_no_error() -> None:
    (line,) = told("mx", HOST, failing=["contoso.com"])
    assert line.startswith("unknown: DNS does not tell of contoso.com: All nameservers failed to answer the query")


# [upstream]


@pytest.mark.parametrize("check", ["upstream-mx", "upstream-address"])
def test_without_upstream_exchange_online_is_not_looked_at(check: str) -> None:
    assert told(check, HOST) == []


def test_the_tenant_s_mx_at_exchange_online_is_well() -> None:
    records = {**EXCHANGE, "contoso.com": {"MX": ["0 contoso-com.mail.protection.outlook.com."]}}
    assert told("upstream-mx", records, UPSTREAM) == [
        "ok: contoso.com: its MX contoso-com.mail.protection.outlook.com is Exchange Online"
    ]


def test_the_tenant_s_mx_at_this_host_is_well() -> None:
    assert told("upstream-mx", HOST, UPSTREAM) == ["ok: contoso.com: its MX hub.contoso.com is this host"]


def test_the_tenant_s_mx_elsewhere_is_mentioned() -> None:
    records = {"contoso.com": {"MX": ["10 mx.filter.example."]}, "mx.filter.example": {"A": ["203.0.113.9"]}}
    assert told("upstream-mx", records, UPSTREAM) == [
        "info: contoso.com: its MX mx.filter.example is neither Exchange Online nor this host"
    ]


def test_an_address_that_the_connector_has_is_well() -> None:
    assert told("upstream-address", {}, UPSTREAM) == ["ok: 192.0.2.10 is in upstream.sender_ip_addresses"]


def test_an_address_that_the_connector_does_not_have_is_an_error() -> None:
    assert told("upstream-address", {}, UPSTREAM, addresses=["203.0.113.6"]) == [
        "error: this host sends from 203.0.113.6, and upstream.sender_ip_addresses has 192.0.2.10/32"
    ]


def test_one_address_too_many_is_a_warning() -> None:
    assert told("upstream-address", {}, UPSTREAM, addresses=[IP4, IP6]) == [
        "warning: this host sends from 2001:db8::10, and upstream.sender_ip_addresses has 192.0.2.10/32"
    ]


def test_behind_nat_the_connector_s_address_is_not_known() -> None:
    (line,) = told("upstream-address", {}, UPSTREAM, addresses=(), smtp_bind_address="10.1.2.3", inet_protocols="ipv4")
    assert line.startswith("unknown: whether 192.0.2.10/32 is what Exchange Online sees of this host is not known: ")


# Reverse names

POINTER = {"10.2.0.192.in-addr.arpa": {"PTR": ["hub.contoso.com."]}}


def test_a_name_that_leads_back_is_well() -> None:
    assert told("reverse-name", {**HOST, **POINTER}) == ["ok: 192.0.2.10 is hub.contoso.com, and that leads back"]


def test_an_address_without_name_is_a_warning() -> None:
    assert told("reverse-name", HOST) == ["warning: 192.0.2.10 has no name (PTR record)"]


def test_a_name_that_does_not_lead_back_is_a_warning() -> None:
    records = {**POINTER, "hub.contoso.com": {"A": ["203.0.113.1"]}}
    assert told("reverse-name", records) == ["warning: 192.0.2.10 is hub.contoso.com, which does not lead back to it"]


def test_a_reverse_zone_that_fails_is_no_warning() -> None:
    (line,) = told("reverse-name", HOST, failing=["in-addr.arpa"])
    assert line.startswith("unknown: DNS does not tell of 192.0.2.10: ")


def test_behind_a_relayhost_the_name_does_not_matter() -> None:
    assert told("reverse-name", {}, addresses=(), relayhost="[smtp.provider.example]") == [
        "ok: mail leaves through [smtp.provider.example], whose name counts"
    ]


def test_in_front_of_exchange_online_the_name_does_not_matter() -> None:
    assert told("reverse-name", {}, UPSTREAM) == []


# The option


def test_an_address_that_is_none_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["doctor", "--address", "mail.contoso.com"])
    assert result.exit_code == 64
    assert "'mail.contoso.com' does not appear to be an IPv4 or IPv6 address" in result.output


def test_the_addresses_given_are_those_asked_about(tmp_path: Path) -> None:
    with NameServer({"contoso.com": txt("v=spf1 ip4:203.0.113.8 -all")}) as server:
        file = tmp_path / "gatepost.toml"
        host, port = server.address
        file.write_text(
            f'state_directory = "{tmp_path}/state"\n[dns]\nnameservers = ["{host}:{port}"]\n'
            '[[organization]]\nname = "contoso"\n[[organization.accepted_domain]]\ndomain = "contoso.com"\n'
        )
        result = CliRunner().invoke(main, ["-c", str(file), "doctor", "--json", "--address", "203.0.113.8"])
    findings = {item["check"]: item["what"] for item in json.loads(result.output)["findings"]}
    assert findings["spf"] == "contoso.com: SPF passes for 203.0.113.8"
