# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost config check` and `config show` of organisations that have exports of Exchange Online."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gatepost.admin.command import main
from gatepost.service.config import load

DOMAINS: list[dict[str, object]] = [
    {"DomainName": "contoso.com", "DomainType": "Authoritative", "Default": True, "MatchSubDomains": False},
    {"DomainName": "corp.contoso.com", "DomainType": "InternalRelay", "Default": False, "MatchSubDomains": True},
    {"DomainName": "old.example", "DomainType": 0, "Default": False, "MatchSubDomains": False, "PendingRemoval": True},
]
OFFICE = {
    "Name": 'the "old" office',
    "Enabled": True,
    "ConnectorType": "OnPremises",
    "SenderIPAddresses": ["192.0.2.0/28"],
    "TlsSenderCertificateName": None,
    "AssociatedAcceptedDomains": ["corp.contoso.com"],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "domains.json").write_text(json.dumps(DOMAINS))
    (tmp_path / "connectors.json").write_text(json.dumps([OFFICE, {**OFFICE, "Name": "p", "ConnectorType": 2}]))
    path = tmp_path / "gatepost.toml"
    path.write_text(
        f'state_directory = "{tmp_path}"\n[[organization]]\nname = "contoso"\n'
        'exchange_export = ["domains.json", "connectors.json"]\n'
        '[[organization.accepted_domain]]\ndomain = "contoso.com"\nsrs_domain = "srs.contoso.com"\n'
    )
    return path


def config(file: Path, command: str) -> str:
    result = CliRunner().invoke(main, ["-c", str(file), "config", command])
    assert result.exit_code == 0, result.output
    return str(result.output)


def test_check_says_what_is_taken_and_what_is_left_out_and_why(file: Path) -> None:
    assert config(file, "check").splitlines()[:5] == [
        f"{file}: OK, 1 organization, 2 accepted domains, 1 connector",
        "contoso: domains.json: taken: 2 accepted domains",
        "contoso: connectors.json: taken: 1 connector",
        "contoso: domains.json: left out accepted domain old.example: Exchange Online is removing it (PendingRemoval): "
        "it soon counts no more",
        'contoso: connectors.json: left out connector "p": its ConnectorType is Partner: only connectors of type '
        "OnPremises let mail relay",
    ]


def test_check_of_many_organizations_stays_readable(file: Path) -> None:
    tables = []
    for number in range(30):
        name = f"o{number}"
        (file.parent / f"{name}.json").write_text(
            json.dumps([{**DOMAINS[0], "DomainName": f"{name}.example"}, {**OFFICE, "ConnectorType": "Partner"}])
        )
        tables.append(f'[[organization]]\nname = "{name}"\nexchange_export = "{name}.json"\n')
    file.write_text(f'state_directory = "{file.parent}"\n{"".join(tables)}')
    lines = config(file, "check").splitlines()
    assert "and 20 more lines on exports; of one: gatepost import exchange FILE" in lines
    assert "warning: and 27 more organizations without an enabled connector" in lines
    assert len(lines) < 50


def test_show_marks_what_comes_from_which_file(file: Path) -> None:
    lines = config(file, "show").splitlines()
    start = lines.index("[[organization.accepted_domain]]")
    assert lines[start : lines.index("[relay]") - 1] == [
        "[[organization.accepted_domain]]",
        'domain = "contoso.com"',
        "default = true  # domains.json",
        'type = "Authoritative"  # domains.json',
        "match_subdomains = false  # domains.json",
        'srs_domain = "srs.contoso.com"',
        "",
        "#[[organization.accepted_domain]]",
        '#domain = "corp.contoso.com"  # domains.json',
        "#default = false  # domains.json",
        '#type = "InternalRelay"  # domains.json',
        "#match_subdomains = true  # domains.json",
        "",
        "#[[organization.connector]]",
        '#name = "the \\"old\\" office"  # connectors.json',
        '#sender_ip_addresses = ["192.0.2.0/28"]  # connectors.json',
        "#enabled = true  # connectors.json",
        '#associated_accepted_domains = ["corp.contoso.com"]  # connectors.json',
    ]


def test_what_is_shown_is_a_configuration_that_means_the_same(file: Path) -> None:
    shown = file.with_name("shown.toml")
    shown.write_text(config(file, "show"))
    assert load(shown).organizations == load(file).organizations
    assert load(shown).settings["contoso"].srs_domains == {"contoso.com": "srs.contoso.com"}
    assert [warning for warning in load(shown).warnings if "organization" in warning] == []
