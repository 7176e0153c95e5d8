# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports of Exchange Online: each dialect of PowerShell in, accepted domains, connectors and reasons out."""

from __future__ import annotations

import codecs
import csv
import io
import json
from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.relay import AcceptedDomain, Connector, DomainType
from gatepost.relay.exchange_export import Exported, ExportError, limited, read, together

# As section 2 of the facts has them.
DOMAINS = """[{"DomainName":"contoso.com","DomainType":"Authoritative","Default":true,"InitialDomain":false,
  "MatchSubDomains":false,"OutboundOnly":false,"PendingRemoval":false,"Name":"contoso.com"},
 {"DomainName":"corp.contoso.com","DomainType":"InternalRelay","Default":false,
  "MatchSubDomains":true,"Name":"corp.contoso.com"},
 {"DomainName":"contoso.onmicrosoft.com","DomainType":"Authoritative","Default":false,
  "InitialDomain":true,"MatchSubDomains":false,"Name":"contoso.onmicrosoft.com"}]"""
CONNECTORS = """[{"Enabled":true,"ConnectorType":"OnPremises","ConnectorSource":"AdminUI","SenderIPAddresses":[],
  "SenderDomains":["smtp:*;1"],"AssociatedAcceptedDomains":[],"RequireTls":true,
  "CloudServicesMailEnabled":true,"TlsSenderCertificateName":"*.contoso.com","Name":"cert-relay",
  "Identity":"cert-relay","WhenChangedUTC":"2026-07-23T22:55:13.0000000Z","IsValid":true},
 {"Enabled":true,"ConnectorType":"OnPremises","SenderIPAddresses":["203.0.113.0/28"],
  "SenderDomains":["smtp:*;1"],"RequireTls":false,"TlsSenderCertificateName":null,
  "Name":"ip-relay","Identity":"ip-relay"}]"""
IP_RELAY = Connector("ip-relay", (ip_network("203.0.113.0/28"),))
Item = Union[AcceptedDomain, Connector, None]


def items(*files: Union[str, bytes]) -> list[Item]:
    texts = (file if isinstance(file, bytes) else file.encode() for file in files)
    records = together([read(octets, f"{number}.json") for number, octets in enumerate(texts, 1)])
    accepted = [record.item.domain for record in records if isinstance(record.item, AcceptedDomain)]
    return [record.item for record in limited(records, accepted)]


def problems(text: Union[str, bytes]) -> tuple[str, ...]:
    with pytest.raises(ExportError) as error:
        read(text if isinstance(text, bytes) else text.encode(), "x.json")
    return error.value.problems


def domain(**fields: object) -> str:
    return json.dumps({"DomainName": "contoso.com", "DomainType": "Authoritative", "MatchSubDomains": False, **fields})


def connector(**fields: object) -> str:
    values = {
        "Name": "ip-relay",
        "Enabled": True,
        "ConnectorType": "OnPremises",
        "SenderIPAddresses": ["203.0.113.0/28"],
        "TlsSenderCertificateName": None,
        "AssociatedAcceptedDomains": [],
    }
    return json.dumps({name: value for name, value in {**values, **fields}.items() if value != "absent"})


def only(text: str) -> Exported:
    (record,) = read(text.encode(), "x.json").records
    return record


# What is taken


def test_accepted_domains_of_every_type_are_taken() -> None:
    assert items(DOMAINS) == [
        AcceptedDomain("contoso.com", default=True),
        AcceptedDomain("corp.contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True),
        AcceptedDomain("contoso.onmicrosoft.com"),
    ]


def test_connectors_by_address_and_by_certificate_are_taken() -> None:
    assert items(CONNECTORS) == [Connector("cert-relay", tls_sender_certificate_name="*.contoso.com"), IP_RELAY]


def test_certificate_name_is_taken_in_normal_form_with_or_without_a_wildcard() -> None:
    for written, name in (("Mail.Contoso.com", "mail.contoso.com"), ("*.Contoso.com", "*.contoso.com")):
        found = items(connector(SenderIPAddresses=[], TlsSenderCertificateName=written))
        assert found == [Connector("ip-relay", tls_sender_certificate_name=name)]


def test_records_of_both_kinds_in_one_file_are_told_by_their_fields() -> None:
    assert items(f"[{domain()},{connector()}]") == [AcceptedDomain("contoso.com"), IP_RELAY]


def test_disabled_connector_is_taken_as_disabled() -> None:
    assert items(connector(Enabled=False)) == [Connector("ip-relay", IP_RELAY.sender_ip_addresses, enabled=False)]


def test_outbound_only_domain_is_taken_with_a_note() -> None:
    record = only(domain(OutboundOnly=True))
    assert record.item == AcceptedDomain("contoso.com")
    assert record.notes == ("OutboundOnly: it sends, and that is what relaying is about, so it counts",)


def test_domain_of_an_unknown_type_is_taken_with_a_note() -> None:
    record = only(domain(DomainType="Shared"))
    assert record.item == AcceptedDomain("contoso.com")
    assert record.notes == ('DomainType "Shared" is not known: taken as Authoritative; all types count alike',)


def test_wildcard_domain_of_on_premises_exchange_matches_subdomains() -> None:
    found = items(domain(DomainName={"Domain": "contoso.com", "Address": "*.contoso.com", "IncludeSubDomains": True}))
    assert found == [AcceptedDomain("contoso.com", match_subdomains=True)]


@pytest.mark.parametrize(
    ("given", "notes"),
    [
        (domain(MatchSubDomains=True), ("Exchange Online takes MatchSubDomains with DomainType InternalRelay only",)),
        (
            domain(DomainName="*.contoso.com"),
            ("Exchange Online takes MatchSubDomains with DomainType InternalRelay only",),
        ),
        (domain(MatchSubDomains=True, DomainType="InternalRelay"), ()),
    ],
)
def test_subdomains_of_a_domain_that_is_no_internal_relay_are_taken_with_a_note(
    given: str, notes: tuple[str, ...]
) -> None:
    record = only(given)
    assert isinstance(record.item, AcceptedDomain)
    assert record.item.match_subdomains
    assert record.notes == notes


def test_r7_wide_network_and_ipv6_are_taken_with_a_note() -> None:
    record = only(connector(SenderIPAddresses=["203.0.0.0/16", "2001:db8::/32"]))
    assert record.item == Connector("ip-relay", (ip_network("203.0.0.0/16"), ip_network("2001:db8::/32")))
    assert record.notes == (
        'Exchange Online does not take "203.0.0.0/16": IPv4, /24 to /32',
        'Exchange Online does not take "2001:db8::/32": IPv4, /24 to /32',
    )


@pytest.mark.parametrize("text", ["203.0.113.5/0.0.0.0", "203.0.113.0/255.255.255.0", "203.0.113.0/0.0.0.255"])
def test_r7_only_digits_follow_the_slash(text: str) -> None:
    assert problems(connector(SenderIPAddresses=[text])) == (
        f'x.json: record 1 (ip-relay): SenderIPAddresses: "{text}" is no IP address or network',
    )


def test_odd_space_in_a_connectors_name_becomes_a_space() -> None:
    assert only(connector(Name="Head\u00a0office\u200b")).name == "Head office"


@pytest.mark.parametrize("name", ["Head\noffice", "Head\x1boffice", "Head\ud800office"])
def test_control_character_in_a_connectors_name_is_an_error(name: str) -> None:
    (problem,) = problems(connector(Name=name))
    assert problem.endswith("): Name: has a character in it that can't be printed")


def test_r7_host_bits_are_allowed() -> None:
    assert items(connector(SenderIPAddresses=["203.0.113.1/25"])) == [
        Connector("ip-relay", (ip_network("203.0.113.0/25"),))
    ]


def test_missing_match_subdomains_is_told_to_be_taken_as_false() -> None:
    record = only('{"DomainName": "contoso.com", "Default": true}')
    assert record.item == AcceptedDomain("contoso.com", default=True)
    assert record.notes == ("MatchSubDomains is not in the file: taken as false",)


def test_connector_that_exchange_calls_invalid_is_taken_with_a_note() -> None:
    record = only(connector(IsValid=False))
    assert record.item == IP_RELAY
    assert record.notes == ("Exchange Online calls it invalid (IsValid): look at it there; taken as it stands",)


def test_r6_sender_domains_are_told_not_to_be_looked_at() -> None:
    assert only(connector(SenderDomains=["smtp:contoso.com;1"])).notes == (
        "SenderDomains: not looked at, as for every connector of type OnPremises",
    )


def test_fields_without_use_are_named() -> None:
    assert read(CONNECTORS.encode(), "c.json").ignored == ("ConnectorSource", "RequireTls", "CloudServicesMailEnabled")


@pytest.mark.parametrize("field", ["DomainType", "Default", "InitialDomain", "MatchSubDomains"])
def test_one_field_beside_its_name_is_enough_to_tell_an_accepted_domain(field: str) -> None:
    assert items(json.dumps({"DomainName": "contoso.com", field: None})) == [AcceptedDomain("contoso.com")]


def test_fields_that_are_looked_at_are_not_named_as_ignored() -> None:
    used = ["InitialDomain", "OutboundOnly", "PendingRemoval", "Name", "Identity", "WhenChanged", "WhenChangedUTC"]
    assert read(domain(Default=True, **dict.fromkeys(used)).encode(), "d.json").ignored == ()
    used = ["Identity", "SenderDomains", "IsValid", "WhenChanged", "WhenChangedUTC"]
    assert read(connector(**dict.fromkeys(used)).encode(), "c.json").ignored == ()


def test_record_is_called_by_its_domain_in_normal_form_or_by_the_connectors_name() -> None:
    assert str(only(domain(DomainName="Contoso.COM"))) == "accepted domain contoso.com"
    assert str(only(connector(Name="head office", Identity="other"))) == 'connector "head office"'
    assert str(only(connector(Name="absent", Identity="ip-relay"))) == 'connector "ip-relay"'


@pytest.mark.parametrize(
    "text",
    [
        domain(),
        domain(DomainType=0),
        '{"DomainName": "*.contoso.com", "DomainType": "InternalRelay"}',
        connector(),
        connector(SenderIPAddresses=["203.0.113.0/24"]),
        connector(SenderDomains=["smtp:*;1"]),
        connector(SenderDomains=["SMTP:*;1", "*"]),
    ],
)
def test_ordinary_record_is_taken_without_a_note(text: str) -> None:
    record = only(text)
    assert record.item is not None
    assert (record.why, record.notes) == ("", ())


def test_connector_without_addresses_or_certificate_name_in_the_file_is_taken_with_a_note() -> None:
    by_name = connector(SenderIPAddresses="absent", TlsSenderCertificateName="*.contoso.com")
    assert only(by_name).notes == ("SenderIPAddresses is not in the file: taken as none",)
    by_address = connector(TlsSenderCertificateName="absent")
    assert only(by_address).notes == ("TlsSenderCertificateName is not in the file: taken as none",)


def test_whenchanged_is_read_where_there_is_no_whenchangedutc() -> None:
    changed = only(connector(WhenChanged="2026-07-23T22:55:13")).changed
    assert changed == datetime(2026, 7, 23, 22, 55, 13, tzinfo=timezone.utc)


# What is left out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (domain(PendingRemoval=True), "Exchange Online is removing it (PendingRemoval): it soon counts no more"),
        (
            connector(ConnectorType="Partner"),
            "its ConnectorType is Partner: only connectors of type OnPremises let mail relay",
        ),
        (
            connector(ConnectorType="partner"),
            "its ConnectorType is Partner: only connectors of type OnPremises let mail relay",
        ),
        (connector(ConnectorType=2), "its ConnectorType is Partner: only connectors of type OnPremises let mail relay"),
        (
            connector(ConnectorType="absent"),
            "ConnectorType is not in the file, and only connectors of type OnPremises count",
        ),
        (connector(Enabled="absent"), "Enabled is not in the file, and only enabled connectors count"),
        (connector(Enabled=None), "Enabled is not in the file, and only enabled connectors count"),
        (
            connector(SenderIPAddresses=[]),
            "it has neither SenderIPAddresses nor TlsSenderCertificateName: it matches no client",
        ),
    ],
)
def test_r6_record_that_does_not_count_is_left_out_with_the_reason(text: str, why: str) -> None:
    record = only(text)
    assert (record.item, record.why) == (None, why)


def test_partner_connector_may_have_lost_its_addresses() -> None:
    lost = "System.Collections.ArrayList"
    assert only(connector(ConnectorType="Partner", SenderIPAddresses=lost)).item is None


# Limits of connectors (R11)


@pytest.mark.parametrize("given", ["contoso.com", "Contoso.com", "Main", {"Name": "Main"}, {"Domain": "contoso.com"}])
def test_r11_limit_may_name_the_domain_or_its_record(given: object) -> None:
    limits = connector(AssociatedAcceptedDomains=[given])
    for named in (domain(Name="Main"), domain(Identity="Main")):
        assert items(named, limits)[1] == Connector(
            "ip-relay", IP_RELAY.sender_ip_addresses, associated_accepted_domains=("contoso.com",)
        )


def test_r11_connector_limited_to_what_is_not_taken_is_left_out_and_not_unlimited() -> None:
    records = together(
        [
            read(domain(PendingRemoval=True).encode(), "d.json"),
            read(connector(AssociatedAcceptedDomains=["contoso.com"]).encode(), "c.json"),
        ]
    )
    record = limited(records, [])[1]
    assert record.item is None
    assert record.why == ("it is limited to contoso.com (AssociatedAcceptedDomains), no accepted domain of those taken")


def test_r11_name_of_another_record_does_not_stand_for_an_accepted_domain() -> None:
    records = [domain(Name="old"), domain(DomainName="fabrikam.com", Name="contoso.com")]
    for first, second in (records, reversed(records)):
        found = items(first, second, connector(AssociatedAcceptedDomains=["contoso.com"]))[2]
        assert isinstance(found, Connector)
        assert found.associated_accepted_domains == ("contoso.com",)


def test_r11_u_label_of_an_accepted_domain_is_not_the_name_of_another_record() -> None:
    other = domain(Name="b\u00fccher.example")
    limits = connector(AssociatedAcceptedDomains=["b\u00fccher.example"])
    found = items(domain(DomainName="xn--bcher-kva.example"), other, limits)[2]
    assert isinstance(found, Connector)
    assert found.associated_accepted_domains == ("xn--bcher-kva.example",)


@pytest.mark.parametrize("given", [[None], [""], ["contoso.com", " "]])
def test_r11_empty_value_in_a_limit_is_an_error_and_not_unlimited(given: object) -> None:
    assert problems(connector(AssociatedAcceptedDomains=given)) == (
        "x.json: record 1 (ip-relay): AssociatedAcceptedDomains: one of its values is empty",
    )


def test_r11_unknown_domain_beside_a_known_one_is_noted() -> None:
    text = connector(AssociatedAcceptedDomains=["contoso.com", "gone.example"])
    (record,) = limited(read(text.encode(), "c.json").records, ["contoso.com"])
    assert isinstance(record.item, Connector)
    assert record.item.associated_accepted_domains == ("contoso.com",)
    assert record.notes == ("AssociatedAcceptedDomains: gone.example: no accepted domain of those taken",)


def test_r11_connector_limited_to_what_is_taken_has_no_note() -> None:
    text = connector(AssociatedAcceptedDomains=["contoso.com"])
    (record,) = limited(read(text.encode(), "c.json").records, ["contoso.com"])
    assert record.notes == ()


def test_r11_every_unknown_domain_is_named() -> None:
    text = connector(AssociatedAcceptedDomains=["a.example", "b.example"])
    (record,) = limited(read(text.encode(), "c.json").records, ["contoso.com"])
    assert record.why == (
        "it is limited to a.example, b.example (AssociatedAcceptedDomains), no accepted domain of those taken"
    )


def test_r11_missing_limit_is_told_to_be_taken_as_none() -> None:
    assert only(connector(AssociatedAcceptedDomains="absent")).notes == (
        "AssociatedAcceptedDomains is not in the file: taken as none, so the connector counts for every accepted "
        "domain",
    )


# Dialects


@pytest.mark.parametrize("kind", ["OnPremises", "onpremises", 1, "1", {"value": 1, "Value": "OnPremises"}])
def test_type_of_a_connector_may_be_name_number_or_object(kind: object) -> None:
    assert items(connector(ConnectorType=kind)) == [IP_RELAY]


@pytest.mark.parametrize("kind", ["InternalRelay", "internalrelay", 2, "2", {"value": 2, "Value": "InternalRelay"}])
def test_enum_may_be_name_number_or_object(kind: object) -> None:
    assert items(domain(DomainType=kind)) == [AcceptedDomain("contoso.com", DomainType.INTERNAL_RELAY)]


@pytest.mark.parametrize(
    "addresses",
    [
        "203.0.113.0/28",
        ["203.0.113.0/28"],
        [{"Expression": "203.0.113.0/28", "CIDRLength": 28}],
        {"value": ["203.0.113.0/28"], "Count": 1},
        {"Count": 1, "value": ["203.0.113.0/28"]},
    ],
)
def test_addresses_may_be_text_list_or_objects(addresses: object) -> None:
    assert items(connector(SenderIPAddresses=addresses)) == [IP_RELAY]


def test_address_object_of_dotnet_is_read_by_its_text_and_not_by_its_number() -> None:
    address = {"Address": 83886272, "AddressFamily": 2, "IPAddressToString": "192.0.2.5"}
    assert items(connector(SenderIPAddresses=[address])) == [Connector("ip-relay", (ip_network("192.0.2.5/32"),))]


@pytest.mark.parametrize(
    "text", ["192.0.2.1 192.0.2.2", "192.0.2.1, 192.0.2.2", "192.0.2.1\n192.0.2.2", "{192.0.2.1;192.0.2.2}"]
)
def test_joined_addresses_are_taken_apart(text: str) -> None:
    found = items(connector(SenderIPAddresses=text))
    assert found == [Connector("ip-relay", (ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32")))]


@pytest.mark.parametrize("written", ["True", "true", True])
def test_truth_may_be_text(written: object) -> None:
    assert items(domain(Default=written)) == [AcceptedDomain("contoso.com", default=True)]


@pytest.mark.parametrize(
    "written",
    [
        "/Date(1784847313000)/",
        {"value": "/Date(1784847313000)/", "DisplayHint": 2, "DateTime": "Thursday"},
        "2026-07-23T22:55:13.0000000Z",
        "2026-07-23T22:55:13",
        "2026-07-24T00:55:13+02:00",
    ],
)
def test_both_forms_of_dates_are_read(written: object) -> None:
    changed = only(connector(WhenChangedUTC=written)).changed
    assert changed == datetime(2026, 7, 23, 22, 55, 13, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "written", [None, "", "7/23/2026 10:55:13 PM", "/Date(999999999999999)/", [], {"a": 1}, "absent"]
)
def test_date_that_cannot_be_told_is_unknown(written: object) -> None:
    assert only(connector(WhenChangedUTC=written)).changed is None


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
def test_every_encoding_of_powershell_is_read(encoding: str, mark: bytes) -> None:
    text = connector(Name="Büro").encode("ascii").decode("unicode_escape")
    assert items(mark + text.encode(encoding)) == [Connector("Büro", IP_RELAY.sender_ip_addresses)]


@pytest.mark.parametrize("type_line", ["", "#TYPE Deserialized.Microsoft.Exchange\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_read_with_any_separator_and_with_type_line(separator: str, type_line: str) -> None:
    lines = [
        ["Name", "Enabled", "ConnectorType", "SenderIPAddresses", "TlsSenderCertificateName", "Comment"],
        ["ip-relay", "True", "OnPremises", "203.0.113.0/28", "", "a, b; c"],
    ]
    text = "\r\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines)
    assert items(f"{type_line}{text}\r\n") == [IP_RELAY]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cell_of_several_lines_is_read_with_all_of_them(end: str) -> None:
    cells = f'"ip-relay","True","OnPremises","192.0.2.1{end}192.0.2.2"'
    assert items(f'"Name","Enabled","ConnectorType","SenderIPAddresses"{end}{cells}{end}') == [
        Connector("ip-relay", (ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32")))
    ]


@pytest.mark.parametrize(("given", "name"), [(["ip-relay"], "ip-relay"), (True, "true"), (5, "5")])
def test_name_may_be_a_list_of_one_a_truth_value_or_a_number(given: object, name: str) -> None:
    assert only(connector(Name=given)).name == name


@pytest.mark.parametrize(
    "lost",
    ["System.Collections.ArrayList", "System.String[]", "Microsoft.Exchange.Data.MultiValuedProperty`1[System.String]"],
)
def test_values_that_export_csv_has_lost_are_an_error_that_says_what_to_do(lost: str) -> None:
    text = f'"Name","Enabled","ConnectorType","SenderIPAddresses"\n"ip","True","OnPremises","{lost}"\n'
    assert problems(text) == (
        f'x.json: record 1 (ip): SenderIPAddresses: "{lost}" is all that Export-Csv left of the values; '
        "export again with ConvertTo-Json",
    )


# Errors


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "x.json: is empty: the command that should fill it printed nothing"),
        ("\ufeff \r\n", "x.json: is empty: the command that should fill it printed nothing"),
        (b"\xffabc", "x.json: is not UTF-8 (octet 0); export again with -Encoding utf8"),
        ('{"a": ', "x.json: is not JSON: Expecting value: line 1 column 6 (char 5)"),
        ("[" * 100_000, "x.json: is nested too deeply"),
        ("[1]", "x.json: record 1 is no object but 1"),
        ('"a","b"\n"1"\n', "x.json: record 1 has 1 cells, the header has 2"),
        ('"a","b"\n"1"x,"2"\n', "x.json: is neither JSON nor CSV: ',' expected after '\"'"),
        ('"a","b"\n"1","2', "x.json: is neither JSON nor CSV: unexpected end of data"),
        ("oops", "x.json: is neither JSON nor CSV with a header and records"),
        ('{"Enabled": false, "Name": "c", "Enabled": true}', "x.json: record 1 has the field Enabled twice"),
        ('{"Enabled": false, "enabled": true}', "x.json: record 1 has the field enabled twice"),
        ('"Name","Enabled","Enabled"\n"c","False","True"\n', "x.json: record 1 has the field Enabled twice"),
        (
            '{"SmartHosts": [], "RecipientDomains": []}',
            "x.json: record 1: neither an accepted domain nor an inbound connector by its fields "
            "(SmartHosts, RecipientDomains…); export Get-AcceptedDomain and Get-InboundConnector",
        ),
        # Get-RemoteDomain: what is remote must never be taken for accepted.
        (
            '{"DomainName": "partner.example", "AllowedOOFType": "External"}',
            "x.json: record 1: neither an accepted domain nor an inbound connector by its fields "
            "(DomainName, AllowedOOFType…); export Get-AcceptedDomain and Get-InboundConnector",
        ),
        (
            '{"A": 1, "B": 2, "C": 3, "D": 4}',
            "x.json: record 1: neither an accepted domain nor an inbound connector by its fields "
            "(A, B, C…); export Get-AcceptedDomain and Get-InboundConnector",
        ),
        (
            "{}",
            "x.json: record 1: neither an accepted domain nor an inbound connector by its fields "
            "(none…); export Get-AcceptedDomain and Get-InboundConnector",
        ),
        (domain(DomainName=None), 'x.json: record 1 (): DomainName: "" is not a domain name'),
        (domain(DomainType=["a", "b"]), "x.json: record 1 (contoso.com): DomainType: a list of 2 is not one value"),
        (domain(DomainName="*"), 'x.json: record 1 (*): DomainName: "*" is not a domain name'),
        (domain(Default="perhaps"), 'x.json: record 1 (contoso.com): Default: "perhaps" is neither true nor false'),
        (domain(Default=[1, 2]), "x.json: record 1 (contoso.com): Default: a list of 2 is not one value"),
        (connector(Name=None), "x.json: record 1 (): Name: missing"),
        (
            connector(SenderIPAddresses=["300.0.0.1"]),
            'x.json: record 1 (ip-relay): SenderIPAddresses: "300.0.0.1" is no IP address or network',
        ),
        (
            connector(TlsSenderCertificateName="contoso"),
            'x.json: record 1 (ip-relay): TlsSenderCertificateName: "contoso" is not a domain name',
        ),
        (
            connector(SenderIPAddresses=[{"Bits": 1}]),
            "x.json: record 1 (ip-relay): SenderIPAddresses: an object is none that is known",
        ),
    ],
)
def test_what_cannot_be_understood_is_an_error(text: Union[str, bytes], problem: str) -> None:
    assert problems(text) == (problem,)


def test_every_problem_of_a_file_is_listed() -> None:
    text = f"[{domain(DomainName='a b')},{connector(Enabled='x', TlsSenderCertificateName='c')}]"
    assert [line.split(": ")[1:3] for line in problems(text)] == [
        ["record 1 (a b)", "DomainName"],
        ["record 2 (ip-relay)", "Enabled"],
    ]


def test_error_in_words_is_every_problem_on_a_line_of_its_own() -> None:
    with pytest.raises(ExportError) as error:
        read(f"[{domain(DomainName='*')},{connector(Name='')}]".encode(), "x.json")
    assert str(error.value) == (
        'x.json: record 1 (*): DomainName: "*" is not a domain name\nx.json: record 2 (): Name: missing'
    )


def test_list_without_records_holds_nothing() -> None:
    assert items("[]") == []


def test_record_that_is_in_two_files_alike_is_taken_once() -> None:
    assert items(domain(), domain()) == [AcceptedDomain("contoso.com")]


def test_record_that_is_in_two_files_with_other_values_is_an_error() -> None:
    with pytest.raises(ExportError) as error:
        items(domain(), domain(Default=True))
    assert error.value.problems == (
        "2.json: accepted domain contoso.com is there twice, first in 1.json, with other values",
    )


def test_connector_that_is_in_one_file_twice_with_other_values_is_an_error() -> None:
    with pytest.raises(ExportError) as error:
        items(f"[{connector()},{connector(Enabled=False)}]")
    assert error.value.problems == ('1.json: connector "ip-relay" is there twice, with other values',)


# Properties

NAMES = st.text("abcdefghij", min_size=1, max_size=8)
RECORDS = st.lists(
    st.builds(
        lambda name, kind, default, pending: {
            "DomainName": f"{name}.example",
            "DomainType": kind,
            "Default": default,
            "PendingRemoval": pending,
            "MatchSubDomains": kind == 2,
        },
        NAMES,
        st.sampled_from([0, 1, 2]),
        st.booleans(),
        st.booleans(),
    )
    | st.builds(
        lambda name, kind, enabled, addresses, certificate: {
            "Name": name,
            "ConnectorType": kind,
            "Enabled": enabled,
            "SenderIPAddresses": addresses,
            "TlsSenderCertificateName": certificate,
        },
        NAMES,
        st.sampled_from([1, 2]),
        st.booleans(),
        st.lists(st.ip_addresses().map(str), max_size=3),
        st.none() | NAMES.map(lambda name: f"*.{name}.example"),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda record: (record.get("DomainName"), record.get("Name")),
)
ENUMS = {
    "DomainType": {0: "Authoritative", 1: "ExternalRelay", 2: "InternalRelay"},
    "ConnectorType": {1: "OnPremises", 2: "Partner"},
}


def as_json(record: dict[str, object], flavour: int) -> dict[str, object]:
    """Return a record as another PowerShell writes it."""
    other = dict(record)
    for field, names in ENUMS.items():
        if field in record and flavour:
            number = record[field]
            assert isinstance(number, int)
            other[field] = names[number] if flavour == 1 else {"value": number, "Value": names[number]}
    if flavour == 2 and "SenderIPAddresses" in record:
        other["SenderIPAddresses"] = {"value": record["SenderIPAddresses"], "Count": 0}
    return other


def as_csv(records: list[dict[str, object]], separator: str) -> str:
    fields = list(dict.fromkeys(field for record in records for field in record))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(fields)
    for record in records:
        cells = (record.get(field, "") for field in fields)
        writer.writerow(" ".join(cell) if isinstance(cell, list) else "" if cell is None else cell for cell in cells)
    return file.getvalue()


@given(RECORDS, st.sampled_from([1, 2]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]))
def test_any_dialect_of_json_gives_the_same_organization(
    records: list[dict[str, object]], flavour: int, encoding: str
) -> None:
    other = [as_json(record, flavour) for record in records]
    text = json.dumps(other[0] if len(other) == 1 else other, indent=2)
    assert items(text.encode(encoding)) == items(json.dumps(records))


@given(RECORDS, st.sampled_from(",;\t"))
def test_csv_gives_the_same_organization(records: list[dict[str, object]], separator: str) -> None:
    # A table has the same columns for all its rows, so the two kinds are two files there.
    for field in ("DomainName", "Name"):
        kind = [record for record in records if field in record]
        if kind:
            assert items(as_csv(kind, separator)) == items(json.dumps(kind))


def reasons(octets: bytes) -> tuple[str, ...]:
    """Return the problems of a file, none where it is read."""
    try:
        read(octets, "x.json")
    except ExportError as error:
        return error.problems
    return ()


LIKELY = st.sampled_from(
    ['{"', "[", "]}", ":", ",", "null", "DomainName", "SenderIPAddresses", '"', "\n", "\0", "1e9", "\ufeff"]
)


@given(st.binary() | st.lists(LIKELY).map("".join).map(str.encode))
def test_random_octets_raise_the_documented_error_only(octets: bytes) -> None:
    assert all(problem.startswith("x.json: ") for problem in reasons(octets))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["value", "Count", "Address"]), inner),
    max_leaves=5,
)
FIELDS = ["DomainName", "DomainType", "Default", "Name", "Enabled", "ConnectorType", "SenderIPAddresses", "WhenChanged"]


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=3), max_size=3))
def test_random_values_raise_the_documented_error_only(records: list[dict[str, object]]) -> None:
    assert all(problem.startswith("x.json: record ") for problem in reasons(json.dumps(records).encode()))
