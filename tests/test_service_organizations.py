# SPDX-License-Identifier: GPL-3.0-or-later
"""[[organization]] with exports of Exchange Online beside tables written by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gatepost.relay import AcceptedDomain, Connector, DomainType
from gatepost.service.config import Config, load
from gatepost.service.tables import ConfigError

DOMAINS: list[dict[str, object]] = [
    {"DomainName": "contoso.com", "DomainType": "Authoritative", "Default": True, "MatchSubDomains": False},
    {"DomainName": "corp.contoso.com", "DomainType": "InternalRelay", "Default": False, "MatchSubDomains": True},
]
OFFICE = {
    "Name": "office",
    "Enabled": True,
    "ConnectorType": "OnPremises",
    "SenderIPAddresses": ["192.0.2.0/28"],
    "TlsSenderCertificateName": None,
    "AssociatedAcceptedDomains": [],
}
CONTOSO = AcceptedDomain("contoso.com", default=True)
CORP = AcceptedDomain("corp.contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True)


class Files:
    """The configuration's folder: exports, and the organisation contoso that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.put("domains.json", DOMAINS)
        self.put("connectors.json", OFFICE)

    def put(self, name: str, content: object) -> None:
        (self.folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def load(self, tables: str = "", more: str = "", files: str = '["domains.json", "connectors.json"]') -> Config:
        path = self.folder / "gatepost.toml"
        path.write_text(f'[[organization]]\nname = "contoso"\nexchange_export = {files}\n{tables}\n{more}')
        return load(path)

    def problems(
        self, tables: str = "", more: str = "", files: str = '["domains.json", "connectors.json"]'
    ) -> list[str]:
        with pytest.raises(ConfigError) as error:
            self.load(tables, more, files)
        return [problem.replace(str(self.folder), "") for problem in error.value.problems]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def domain(name: str, *lines: str) -> str:
    return "\n".join(("[[organization.accepted_domain]]", f'domain = "{name}"', *lines, ""))


def test_exports_alone_make_an_organization(files: Files) -> None:
    organization = files.load().organizations["contoso"]
    assert organization.accepted_domains == (CONTOSO, CORP)
    assert [connector.name for connector in organization.connectors] == ["office"]
    assert organization.default_domain == "contoso.com"


def test_the_files_are_beside_the_configuration(files: Files) -> None:
    assert files.load().exchange_exports == (files.folder / "domains.json", files.folder / "connectors.json")


def test_one_file_may_be_given_as_a_string(files: Files) -> None:
    files.put("all.json", [*DOMAINS, OFFICE])
    assert files.load(files='"all.json"').organizations["contoso"].accepted_domains == (CONTOSO, CORP)


def test_domain_written_by_hand_adds_what_exports_do_not_have(files: Files) -> None:
    config = files.load(domain("corp.contoso.com", 'srs_domain = "srs.contoso.com"'))
    assert config.organizations["contoso"].accepted_domains == (CORP, CONTOSO)
    assert config.settings["contoso"].srs_domains == {"corp.contoso.com": "srs.contoso.com"}
    assert config.warnings == ()


def test_domain_written_by_hand_keeps_exchanges_default_unless_it_says_otherwise(files: Files) -> None:
    config = files.load(domain("contoso.com", 'srs_domain = "srs.contoso.com"'))
    assert config.organizations["contoso"].accepted_domains == (CONTOSO, CORP)


def test_default_written_by_hand_takes_the_place_of_exchanges(files: Files) -> None:
    organization = files.load(domain("corp.contoso.com", "default = true")).organizations["contoso"]
    assert organization.default_domain == "corp.contoso.com"
    assert [item.default for item in organization.accepted_domains] == [True, False]


def test_what_is_written_by_hand_wins_and_the_difference_is_a_warning(files: Files) -> None:
    config = files.load(domain("corp.contoso.com", "match_subdomains = false"))
    assert config.organizations["contoso"].accepted_domains[0] == AcceptedDomain(
        "corp.contoso.com", DomainType.INTERNAL_RELAY
    )
    assert config.warnings == (
        "gatepost.toml: organization[0].accepted_domain[0].match_subdomains: this counts, and not what exchange_export "
        "has: true; Exchange Online goes by that",
    )


def test_r4_subdomains_by_hand_that_the_export_has_not_are_warned_of(files: Files) -> None:
    config = files.load(domain("contoso.com", 'type = "InternalRelay"\nmatch_subdomains = true'))
    path = "gatepost.toml: organization[0].accepted_domain[0]"
    assert config.warnings == (
        f"{path}.type: this counts, and not what exchange_export has: Authoritative",
        f"{path}.match_subdomains: this counts, and not what exchange_export has: false; Exchange Online goes by that",
    )


def test_domain_by_hand_that_is_in_no_export_is_warned_of(files: Files) -> None:
    assert files.load(domain("srs.contoso.com")).warnings == (
        'gatepost.toml: organization[0].accepted_domain[0].domain: "srs.contoso.com" is in no export of contoso: '
        "Exchange Online refuses P1 in it until it is an accepted domain there; add it there and export anew",
    )


@pytest.mark.parametrize("name", ["contoso.com", "srs.corp.contoso.com"])
def test_r4_domain_by_hand_that_the_export_has_or_covers_is_not_warned_of(files: Files, name: str) -> None:
    assert files.load(domain(name)).warnings == ()


def test_export_of_connectors_alone_leaves_domains_by_hand_without_a_warning(files: Files) -> None:
    assert files.load(domain("contoso.com"), files='["connectors.json"]').warnings == ()


def test_domain_of_the_host_alone_stands_beside_the_exported_ones(files: Files) -> None:
    config = files.load(domain("lists.contoso.com"))
    assert config.organizations["contoso"].accepted_domains == (AcceptedDomain("lists.contoso.com"), CONTOSO, CORP)


def test_domain_by_hand_that_exchange_online_is_removing_counts_with_a_warning(files: Files) -> None:
    files.put("domains.json", [DOMAINS[0], {**DOMAINS[1], "PendingRemoval": True}])
    config = files.load(domain("corp.contoso.com", 'srs_domain = "srs.contoso.com"'))
    assert config.organizations["contoso"].accepted_domains == (AcceptedDomain("corp.contoso.com"), CONTOSO)
    assert config.warnings == (
        "gatepost.toml: organization[0].accepted_domain[0].domain: counts here, being written by hand; Exchange Online "
        "is removing it (PendingRemoval): it soon counts no more",
    )


def test_connector_written_by_hand_stands_beside_the_exported_ones(files: Files) -> None:
    table = '[[organization.connector]]\nname = "lab"\ntls_sender_certificate_name = "lab.contoso.com"\n'
    table += 'associated_accepted_domains = ["corp.contoso.com"]\n'
    connectors = files.load(table).organizations["contoso"].connectors
    assert connectors[0] == Connector("lab", (), "lab.contoso.com", True, ("corp.contoso.com",))
    assert connectors[1].name == "office"


def test_connector_of_the_same_name_by_hand_and_in_an_export_is_an_error(files: Files) -> None:
    table = '[[organization.connector]]\nname = "office"\nsender_ip_addresses = ["192.0.2.99"]\n'
    assert files.problems(table) == [
        'gatepost.toml: organization[0].exchange_export: it has a connector "office", and there is one written by hand'
    ]


def test_domain_of_another_organization_is_an_error(files: Files) -> None:
    more = '[[organization]]\nname = "fabrikam"\nexchange_export = "domains.json"\n'
    assert files.problems(more=more) == [
        f'gatepost.toml: organization[1].exchange_export: "{name}" is an accepted domain at '
        "organization[0].exchange_export already"
        for name in ("contoso.com", "corp.contoso.com")
    ]


def test_domain_written_by_hand_in_another_organization_is_an_error(files: Files) -> None:
    more = f'[[organization]]\nname = "fabrikam"\n{domain("corp.contoso.com")}'
    assert files.problems(more=more) == [
        'gatepost.toml: organization[1].accepted_domain[0].domain: "corp.contoso.com" is an accepted domain at '
        "organization[0].exchange_export already"
    ]


def test_file_that_is_not_there_is_the_only_problem_told(files: Files) -> None:
    table = '[[organization.connector]]\nname = "lab"\ntls_sender_certificate_name = "lab.contoso.com"\n'
    table += 'associated_accepted_domains = ["corp.contoso.com"]\n'
    assert files.problems(table, files='["gone.json"]') == [
        "gatepost.toml: organization[0].exchange_export[0]: gone.json: cannot be read: No such file or directory"
    ]


def test_problems_of_all_files_and_of_the_rest_are_listed_in_one_run(files: Files) -> None:
    files.put("domains.json", [{**DOMAINS[0], "DomainName": "a b"}, {**DOMAINS[1], "Default": "perhaps"}])
    files.put("connectors.json", {**OFFICE, "SenderIPAddresses": ["300.0.0.1"]})
    path = "gatepost.toml: organization[0].exchange_export"
    assert files.problems(more="[relay]\nmodes = 1\n") == [
        'gatepost.toml: relay.modes: unknown key, did you mean "mode"?',
        f'{path}[0]: domains.json: record 1 (a b): DomainName: "a b" is not a domain name',
        f'{path}[0]: domains.json: record 2 (corp.contoso.com): Default: "perhaps" is neither true nor false',
        f'{path}[1]: connectors.json: record 1 (office): SenderIPAddresses: "300.0.0.1" is no IP address or network',
    ]


def test_export_without_accepted_domain_is_an_error(files: Files) -> None:
    assert files.problems(files='["connectors.json"]') == [
        'gatepost.toml: organization[0].accepted_domain: missing: organization "contoso" has no accepted domain'
    ]


def test_exports_without_a_default_domain_are_an_error(files: Files) -> None:
    files.put("domains.json", [{**item, "Default": None} for item in DOMAINS])
    assert files.problems() == [
        "gatepost.toml: organization[0].accepted_domain: none of 2 have default = true, must be one"
    ]
    assert files.load(domain("contoso.com", "default = true")).organizations["contoso"].default_domain == "contoso.com"


def test_notes_are_warnings_one_line_for_all_records_that_have_the_same(files: Files) -> None:
    files.put("domains.json", [{"DomainName": f"d{number}.example", "Default": number == 1} for number in range(1, 8)])
    assert files.load().warnings == (
        "gatepost.toml: organization[0].exchange_export: domains.json: accepted domains d1.example, d2.example, "
        "d3.example, d4.example, d5.example and 2 more: MatchSubDomains is not in the file: taken as false",
    )


def test_r11_connector_may_be_limited_to_a_domain_written_by_hand(files: Files) -> None:
    files.put("connectors.json", {**OFFICE, "AssociatedAcceptedDomains": ["lists.contoso.com"]})
    assert files.load().organizations["contoso"].connectors == ()
    (connector,) = files.load(domain("lists.contoso.com")).organizations["contoso"].connectors
    assert connector.associated_accepted_domains == ("lists.contoso.com",)


def test_srs_domain_of_another_organization_is_found_by_its_place_in_the_file(files: Files) -> None:
    more = f'[[organization]]\nname = "fabrikam"\n{domain("fabrikam.com")}'
    assert files.problems(domain("corp.contoso.com", 'srs_domain = "fabrikam.com"'), more) == [
        'gatepost.toml: organization[0].accepted_domain[0].srs_domain: "fabrikam.com" belongs to organization '
        '"fabrikam"'
    ]


# Files that are none


def test_pipe_in_the_place_of_an_export_is_an_error(files: Files) -> None:
    (files.folder / "connectors.json").unlink()
    os.mkfifo(files.folder / "connectors.json")
    assert files.problems() == [
        "gatepost.toml: organization[0].exchange_export[1]: connectors.json: cannot be read: is no regular file"
    ]


def test_export_of_more_than_64_mib_is_an_error(files: Files) -> None:
    with (files.folder / "connectors.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert files.problems() == [
        "gatepost.toml: organization[0].exchange_export[1]: connectors.json: cannot be read: is larger than 64 MiB"
    ]


# Addresses by hand


@pytest.mark.parametrize("text", ["203.0.113.5/0.0.0.0", "203.0.113.0/255.255.255.0", "203.0.113.0/0.0.0.255"])
def test_r7_only_digits_follow_the_slash(files: Files, text: str) -> None:
    table = f'[[organization.connector]]\nname = "c"\nsender_ip_addresses = ["{text}"]\n'
    assert files.problems(table)[0] == (
        f'gatepost.toml: organization[0].connector[0].sender_ip_addresses[0]: "{text}" is no IP address or network '
        '(e.g. "192.0.2.1", "192.0.2.0/28")'
    )
