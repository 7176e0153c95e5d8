# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost import exchange`: what exports hold, how that differs from the configuration, and the lines for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Optional

import pytest
from click.testing import CliRunner

from gatepost.admin.command import main
from gatepost.service.config import load

DOMAINS: list[dict[str, object]] = [
    {
        "DomainName": "contoso.com",
        "DomainType": "Authoritative",
        "Default": True,
        "MatchSubDomains": False,
        "AddressBookEnabled": True,
    },
    {"DomainName": "old.example", "DomainType": 0, "Default": False, "MatchSubDomains": False, "PendingRemoval": True},
]
OFFICE = {
    "Name": "office",
    "Enabled": True,
    "ConnectorType": "OnPremises",
    "SenderIPAddresses": ["192.0.2.0/28"],
    "TlsSenderCertificateName": None,
    "AssociatedAcceptedDomains": [],
    "WhenChangedUTC": "/Date(1784847313000)/",
}
CRM = {**OFFICE, "Name": "crm", "SenderIPAddresses": [], "TlsSenderCertificateName": "*.contoso.com"}
PARTNER = {**OFFICE, "Name": "partner", "ConnectorType": "Partner"}
EXPORTED = '[[organization]]\nname = "contoso"\nexchange_export = ["domains.json", "connectors.json"]\n'
BY_HAND = """\
[[organization]]
name = "tenant"
mode = "enforce"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
srs_domain = "srs.contoso.com"
[[organization.accepted_domain]]
domain = "gone.example"
[[organization.connector]]
name = "office"
sender_ip_addresses = ["192.0.2.0/29", "192.0.2.8"]
"""


class Desk:
    """/etc/gatepost with a configuration and its exports, and a folder with newer ones beside it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.etc = folder / "etc"
        self.fresh = folder / "fresh"
        self.configuration = self.etc / "gatepost.toml"
        self.out = self.err = ""
        self._capsys = capsys
        for place in (self.etc, self.fresh):
            place.mkdir()
            self.put(place, DOMAINS, [OFFICE, CRM, PARTNER])

    def put(self, place: Path, domains: object = None, connectors: object = None) -> None:
        if domains is not None:
            (place / "domains.json").write_text(json.dumps(domains))
        if connectors is not None:
            (place / "connectors.json").write_text(json.dumps(connectors))

    def run(self, *arguments: str, configuration: Optional[str] = EXPORTED) -> int:
        """Import the fresh files, or those that *arguments* name, against *configuration*; return the status."""
        if configuration is not None:
            self.configuration.write_text(configuration)
        files = () if any(".json" in item for item in arguments) else ("domains.json", "connectors.json")
        before = sorted(self.etc.iterdir())
        command = ["-c", str(self.configuration), "import", "exchange", *arguments]
        with pytest.raises(SystemExit) as end:
            main([*command, *(str(self.fresh / name) for name in files)])
        assert sorted(self.etc.iterdir()) == before
        self.out, self.err = self._capsys.readouterr()
        return int(end.value.code or 0)

    def lines(self, *arguments: str, configuration: Optional[str] = EXPORTED) -> list[str]:
        assert self.run(*arguments, configuration=configuration) == os.EX_OK, self.err
        return [line.replace(str(self.etc.parent), "") for line in self.out.splitlines()]

    def differences(self, *arguments: str, configuration: str = EXPORTED) -> list[str]:
        lines = self.lines(*arguments, configuration=configuration)
        start = next(number for number, line in enumerate(lines) if line.startswith("Compared with"))
        return [line.strip() for line in lines[start + 1 : lines.index("", start)]]


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_everything_is_said_of_files_that_make_a_new_organization(desk: Desk) -> None:
    assert desk.lines(configuration=None) == [
        "Organization contoso:",
        "  /fresh/domains.json:",
        "    taken accepted domain contoso.com",
        "    left out accepted domain old.example: Exchange Online is removing it (PendingRemoval): it soon counts no "
        "more",
        "    not looked at for the relay rule: AddressBookEnabled",
        "  /fresh/connectors.json:",
        '    taken connector "office" (last changed 2026-07-23)',
        '    taken connector "crm" (last changed 2026-07-23)',
        '    left out connector "partner": its ConnectorType is Partner: only connectors of type OnPremises let mail '
        "relay",
        "Nothing of it is in /etc/gatepost.toml yet.",
        "",
        "A connector here is for hosts that send to this one. Where this one sends on to Exchange Online, the",
        "connector for it there goes into [upstream]: take the file of the accepted domains alone, and declare",
        "your hosts with [[organization.connector]].",
        "",
        "In /etc/gatepost.toml, with the files beside it (they are loaded by themselves when they change):",
        "",
        "    [[organization]]",
        '    name = "contoso"',
        '    exchange_export = ["domains.json", "connectors.json"]',
    ]


def test_configuration_that_is_not_there_is_said_on_standard_error(desk: Desk) -> None:
    desk.run(configuration=None)
    assert desk.err == f"note: {desk.configuration} is not there, so there is nothing to compare with\n"


def test_disabled_connector_and_notes_are_shown(desk: Desk) -> None:
    desk.put(desk.fresh, connectors={**OFFICE, "Enabled": False, "IsValid": False})
    lines = desk.lines()
    assert lines[6:8] == [
        '    taken connector "office", disabled (last changed 2026-07-23)',
        "      note: Exchange Online calls it invalid (IsValid): look at it there; taken as it stands",
    ]


# The difference


def test_same_files_make_no_difference(desk: Desk) -> None:
    assert "Compared with /etc/gatepost.toml: no difference" in desk.lines()


def test_re_import_shows_what_is_added_removed_and_changed_key_by_key(desk: Desk) -> None:
    desk.put(
        desk.fresh,
        [
            {**DOMAINS[0], "DomainType": "InternalRelay", "MatchSubDomains": True},
            {**DOMAINS[1], "PendingRemoval": False},
        ],
        [{**OFFICE, "SenderIPAddresses": ["192.0.2.0/27"], "Enabled": False}, {**CRM, "Name": "crm 2"}],
    )
    assert desk.differences() == [
        'changed accepted domain contoso.com: type: "Authoritative" becomes "InternalRelay", match_subdomains: false '
        "becomes true",
        'added accepted domain old.example (type = "Authoritative"): mail to it is no relay; mail from it meets '
        "condition 1",
        'removed connector "crm" (tls_sender_certificate_name = "*.contoso.com", enabled = true): hosts that no other '
        "connector covers are refused",
        'added connector "crm 2" (tls_sender_certificate_name = "*.contoso.com", enabled = true): the hosts that it '
        "covers meet condition 2",
        'changed connector "office": sender_ip_addresses: ["192.0.2.0/28"] becomes ["192.0.2.0/27"], enabled: true '
        "becomes false",
    ]


def test_addresses_in_another_order_are_no_difference(desk: Desk) -> None:
    desk.put(desk.etc, connectors={**OFFICE, "SenderIPAddresses": ["192.0.2.1", "192.0.2.2"]})
    desk.put(desk.fresh, connectors={**OFFICE, "SenderIPAddresses": ["192.0.2.2", "192.0.2.1"]})
    assert desk.differences() == []


def test_organization_by_hand_is_found_by_its_domain_and_compared_with_the_exports_alone(desk: Desk) -> None:
    lines = desk.lines(configuration=BY_HAND)
    assert lines[0] == "Organization tenant:"
    assert [line.strip() for line in lines if line.startswith("  removed") or line.startswith("  changed")] == [
        'removed accepted domain gone.example (type = "Authoritative"): mail to it is relay; mail from it meets '
        "condition 1 no more",
        'changed connector "office": sender_ip_addresses: ["192.0.2.0/29", "192.0.2.8/32"] becomes ["192.0.2.0/28"]',
    ]


def test_one_file_of_two_leaves_the_other_one_in_force(desk: Desk) -> None:
    desk.put(desk.fresh, connectors=[OFFICE])
    file = str(desk.fresh / "connectors.json")
    assert desk.differences(file) == [
        'removed connector "crm" (tls_sender_certificate_name = "*.contoso.com", enabled = true): hosts that no other '
        "connector covers are refused"
    ]
    assert desk.lines(file)[-1] == '    exchange_export = ["domains.json", "connectors.json"]'


def test_tables_by_hand_that_the_files_take_the_place_of_are_named(desk: Desk) -> None:
    lines = desk.lines(configuration=BY_HAND)
    start = lines.index("Take these out of /etc/gatepost.toml, or they go on to count beside the files:")
    assert lines[start + 1 : start + 5] == [
        "  [[organization.accepted_domain]] contoso.com (but its srs_domain)",
        "  [[organization.accepted_domain]] gone.example",
        '  [[organization.connector]] "office"',
        "",
    ]


def test_connectors_by_hand_are_to_stay_where_the_exported_ones_are_this_hosts_own(desk: Desk) -> None:
    by_hand = BY_HAND.replace("gone.example", "srs.contoso.com").replace(
        "enforce", 'monitor"\nsrs_domain = "srs.contoso.com'
    )
    upstream = '[upstream]\nsender_ip_addresses = "192.0.2.0/28"\n'
    lines = desk.lines(str(desk.fresh / "connectors.json"), configuration=by_hand + upstream)
    assert "      note: this host's own, as [upstream] has it: it lets none of your clients relay" in lines
    assert not [line for line in lines if line.startswith("Take these out")]


def test_disabled_connector_that_comes_or_goes_has_no_effect(desk: Desk) -> None:
    desk.put(desk.etc, connectors=[OFFICE, {**CRM, "Enabled": False}])
    desk.put(desk.fresh, connectors=[OFFICE, {**CRM, "Name": "crm 2", "Enabled": False}])
    assert desk.differences() == [
        'removed connector "crm" (tls_sender_certificate_name = "*.contoso.com"): disabled, so no effect',
        'added connector "crm 2" (tls_sender_certificate_name = "*.contoso.com"): disabled, so no effect',
    ]


def test_connector_that_is_this_hosts_own_is_noted(desk: Desk) -> None:
    upstream = '[[organization.accepted_domain]]\ndomain = "srs.contoso.com"\n[upstream]\nsender_ip_addresses = '
    exported = EXPORTED.replace("exchange_export", 'srs_domain = "srs.contoso.com"\nexchange_export')
    lines = desk.lines(configuration=f'{exported}{upstream}"192.0.2.0/28"\n')
    taken = lines.index('    taken connector "office" (last changed 2026-07-23)')
    assert lines[taken + 1] == "      note: this host's own, as [upstream] has it: it lets none of your clients relay"
    advice = "your hosts with [[organization.connector]]."
    assert advice in lines
    assert advice not in desk.lines(configuration=f'{exported}{upstream}"198.51.100.1"\n')


def test_connectors_alone_leave_domains_by_hand_as_they_are(desk: Desk) -> None:
    assert [
        line.partition(" (")[0] for line in desk.differences(str(desk.fresh / "connectors.json"), configuration=BY_HAND)
    ] == [
        'added connector "crm"',
        'changed connector "office": sender_ip_addresses: ["192.0.2.0/29", "192.0.2.8/32"] becomes ["192.0.2.0/28"]',
    ]


def test_organization_may_be_named(desk: Desk) -> None:
    more = '\n[[organization]]\nname = "fabrikam"\n[[organization.accepted_domain]]\ndomain = "fabrikam.com"\n'
    file = str(desk.fresh / "connectors.json")
    assert desk.run(file, configuration=EXPORTED + more) == os.EX_USAGE
    lines = desk.lines("--organization", "fabrikam", file, configuration=EXPORTED + more)
    assert lines[0] == "Organization fabrikam:"


def test_export_that_breaks_the_configuration_in_force_can_be_replaced(desk: Desk) -> None:
    (desk.etc / "domains.json").write_text("oops")
    assert desk.run(str(desk.fresh / "domains.json")) == os.EX_OK
    assert desk.err.splitlines()[0] == (
        "note: there is nothing to compare with, for the configuration as it stands can't be used:"
    )
    assert "Nothing of it" not in desk.out
    assert desk.out.splitlines()[-1] == '    exchange_export = ["connectors.json", "domains.json"]'


def test_file_that_takes_the_place_of_one_with_both_kinds_must_have_both(desk: Desk) -> None:
    (desk.etc / "both.json").write_text(json.dumps([*DOMAINS, OFFICE]))
    both = '[[organization]]\nname = "contoso"\nexchange_export = ["both.json"]\n'
    assert desk.run(str(desk.fresh / "connectors.json"), configuration=both) == os.EX_CONFIG
    assert desk.err == (
        f"{desk.etc}/both.json has accepted domains too, and they would be lost: name a new export of these as well\n"
    )
    assert desk.differences(configuration=both) != []


def test_only_domain_is_the_default_whether_that_is_written_or_not(desk: Desk) -> None:
    desk.put(desk.fresh, DOMAINS[:1], [OFFICE])
    table = '[[organization]]\nname = "contoso"\n[[organization.accepted_domain]]\ndomain = "contoso.com"\n'
    assert desk.differences(str(desk.fresh / "domains.json"), configuration=table) == []


# Other output


def test_toml_is_the_organization_written_out_with_what_is_its_own(desk: Desk) -> None:
    desk.run("--toml", configuration=BY_HAND)
    assert desk.err.startswith("Organization tenant:\n")
    desk.configuration.write_text(desk.out)
    config = load(desk.configuration)
    organization = config.organizations["tenant"]
    assert [item.domain for item in organization.accepted_domains] == ["contoso.com"]
    assert [item.name for item in organization.connectors] == ["office", "crm"]
    assert config.settings["tenant"].srs_domains == {"contoso.com": "srs.contoso.com"}


def test_printed_lines_give_the_same_organization_as_the_tables(desk: Desk) -> None:
    lines = desk.lines(configuration=None)
    for name in ("domains.json", "connectors.json"):
        desk.configuration.with_name(name).write_text((desk.fresh / name).read_text())
    desk.configuration.write_text("\n".join(lines[-3:]))
    by_files = load(desk.configuration).organizations
    desk.run("--toml", configuration=None)
    desk.configuration.write_text(desk.out)
    assert load(desk.configuration).organizations == by_files


def test_json_has_records_differences_and_lines(desk: Desk) -> None:
    desk.put(desk.fresh, connectors=[{**OFFICE, "Enabled": False}, PARTNER])
    desk.run("--json")
    document = json.loads(desk.out)
    assert list(document) == ["organization", "records", "ignored_fields", "compared_with", "differences", "toml"]
    assert [(item["name"], item["taken"]) for item in document["records"]] == [
        ("contoso.com", True),
        ("old.example", False),
        ("office", True),
        ("partner", False),
    ]
    assert document["differences"][1] == {
        "change": "changed",
        "kind": "connector",
        "name": "office",
        "keys": {"enabled": {"before": True, "after": False}},
    }
    assert document["toml"].splitlines()[1] == 'name = "contoso"'


def test_json_has_half_a_surrogate_pair_escaped(desk: Desk) -> None:
    desk.put(desk.fresh, [{**DOMAINS[0], "\ud800": 1}])
    assert desk.run("--json") == os.EX_OK
    assert json.loads(desk.out)["ignored_fields"][f"{desk.fresh}/domains.json"] == ["AddressBookEnabled", "\ud800"]


# Exit statuses


def test_file_that_is_no_export_ends_with_65_and_every_reason(desk: Desk) -> None:
    desk.put(desk.fresh, [{**DOMAINS[0], "DomainName": "a b"}, {**DOMAINS[1], "DomainName": "c d"}])
    assert (desk.run(), desk.out) == (os.EX_DATAERR, "")
    assert [line.partition("domains.json: ")[2] for line in desk.err.splitlines()] == [
        'record 1 (a b): DomainName: "a b" is not a domain name',
        'record 2 (c d): DomainName: "c d" is not a domain name',
    ]


def test_file_that_is_not_there_ends_with_66(desk: Desk) -> None:
    assert desk.run("gone.json") == os.EX_NOINPUT
    assert desk.err == "gone.json: cannot be read: No such file or directory\n"


def test_files_with_which_the_configuration_could_not_be_used_end_with_78(desk: Desk) -> None:
    desk.put(desk.fresh, [{**DOMAINS[0], "PendingRemoval": True}])
    assert (desk.run("--organization", "contoso"), desk.out) == (os.EX_CONFIG, "")
    assert desk.err.splitlines() == [
        "the configuration with these files could not be used:",
        'gatepost.toml: organization[0].accepted_domain: missing: organization "contoso" has no accepted domain',
    ]


@pytest.mark.parametrize("arguments", [(), ("--toml", "--json", "x.json"), ("--nonsense", "x.json")])
def test_wrong_usage_ends_with_64(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, ["import", "exchange", *arguments]).exit_code == os.EX_USAGE
