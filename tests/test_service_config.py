# SPDX-License-Identifier: GPL-3.0-or-later
"""What the configuration loader takes, fills in, warns of and refuses, message by message."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from ipaddress import ip_network
from pathlib import Path

import pytest

from gatepost.relay import AcceptedDomain, Connector, DomainType, RuleSet
from gatepost.service.config import Config, EgressConfig, LedgerConfig, load
from gatepost.service.fields import Listen
from gatepost.service.organizations import Mode, RefusalAction
from gatepost.service.snapshot import build, load_snapshot
from gatepost.service.srs_config import Form, Format, ReverseBy, Srs0Config, SrsConfig
from gatepost.service.tables import ConfigError, without_password
from gatepost.srs import Keys

CONTOSO = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gatepost.toml"


def read(file: Path, text: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load(file)


def problems(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(file, text)
    return list(caught.value.problems)


def test_the_defaults_are_those_of_the_manual(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    config = read(file, "")
    assert config.organizations == {}
    assert config.state_directory == Path("/var/lib/gatepost")
    assert config.relay.requirements is RuleSet.CURRENT
    assert config.relay.mode is Mode.MONITOR
    assert config.relay.enforced_by == "milter"
    assert config.relay.local_domains == ()
    assert config.relay.subdomains_relay
    assert config.relay.exempt == ("authenticated", "local")
    assert config.srs.secret_file == Path("/var/lib/gatepost/srs.secret")
    assert (config.srs.hash_length, config.srs.validity_days) == (8, 21)
    assert config.milter.listen == Listen(path="/var/spool/postfix/gatepost/milter.sock")
    assert config.policyd.listen == (Listen(path="/var/spool/postfix/gatepost/policyd.sock"),)
    assert (config.milter.workers, config.policyd.workers) == (2, 2)
    assert config.srs == SrsConfig(secret_file=Path("/var/lib/gatepost/srs.secret"))
    assert (config.srs.format, config.srs.form, config.srs.reverse) == (Format.EXCHANGE, Form.AUTO, ReverseBy.MAP)
    assert (config.srs.also_reverse, config.srs.accept_from, config.srs.failures_per_hour) == ((), "bounces", 100)
    assert (config.srs.exclude, config.srs.include, config.srs.watched, config.srs.only_spf) == ((), (), (), False)
    assert config.srs.srs0 == Srs0Config("=", hash_length=4, hash_minimum=4, base64url=False)
    assert (config.policyd.tcp_table_forward, config.policyd.tcp_table_reverse) == ((), ())
    assert (config.store_url, config.nameservers) == ("sqlite:////var/lib/gatepost/gatepost.db", ())
    assert not config.fcrdns
    assert config.egress is None
    assert config.metrics == Listen(host="127.0.0.1", port=9797)
    assert config.warnings == ()


def test_every_key_is_taken(file: Path) -> None:
    (file.parent / "excluded").write_text("")
    config = read(
        file,
        """
        state_directory = "/srv/gatepost"
        [[organization]]
        name = "contoso"
        mode = "enforce"
        srs_domain = "SRS.contoso.com"
        [[organization.accepted_domain]]
        domain = "Contoso.COM."
        default = true
        [[organization.accepted_domain]]
        domain = "corp.contoso.com"
        type = "InternalRelay"
        match_subdomains = true
        srs_domain = "SRS.corp.contoso.com"
        [[organization.connector]]
        name = "office"
        sender_ip_addresses = ["192.0.2.1", "192.0.2.77/28"]
        tls_sender_certificate_name = "*.Contoso.com"
        enabled = false
        associated_accepted_domains = ["contoso.com"]
        [relay]
        requirements = "legacy"
        mode = "monitor"
        local_domains = ["mx.contoso.net"]
        subdomains_relay = false
        exempt = []
        [srs]
        secret_file = "/etc/gatepost/srs.secret"
        format = "srs0"
        also_reverse = ["exchange", "compact"]
        form = "long"
        hash_length = 5
        validity_days = 1000
        reverse = "redirect"
        accept_from = "everyone"
        failures_per_hour = 0
        exclude = ["Fabrikam.com"]
        exclude_file = "excluded"
        include = ["*.Fabrikam.com"]
        only_spf = true
        outgoing_addresses = ["192.0.2.1", "2001:DB8::1"]
        [srs.srs0]
        separator = "+"
        hash_length = 27
        hash_minimum = 5
        base64url = true
        [store]
        url = "postgresql://gatepost@db.contoso.com/gatepost"
        [dns]
        nameservers = ["192.0.2.53", "::1", "[::1]", "[::1]:5353", "127.0.0.1:5353"]
        fcrdns = true
        [milter]
        listen = "inet:[::1]:10040"
        workers = 4
        [policyd]
        listen = ["unix:/run/policyd.sock", "inet:127.0.0.1:10041"]
        workers = 1
        tcp_table_forward = "inet:127.0.0.1:10001"
        tcp_table_reverse = ["inet:127.0.0.1:10002", "inet:[::1]:10002"]
        [egress]
        transport = "out:[127.0.0.1]:10099"
        daemon_name = "out"
        [metrics]
        listen = ""
        """,
    )
    organization = config.organizations["contoso"]
    assert organization.accepted_domains == (
        AcceptedDomain("contoso.com", default=True),
        AcceptedDomain("corp.contoso.com", DomainType.INTERNAL_RELAY, match_subdomains=True),
    )
    assert organization.connectors == (
        Connector(
            "office", (ip_network("192.0.2.1"), ip_network("192.0.2.64/28")), "*.contoso.com", False, ("contoso.com",)
        ),
    )
    assert config.settings["contoso"].mode is Mode.ENFORCE
    assert config.settings["contoso"].srs_domain == "srs.contoso.com"
    assert config.settings["contoso"].srs_domains == {"corp.contoso.com": "srs.corp.contoso.com"}
    assert config.srs == SrsConfig(
        secret_file=Path("/etc/gatepost/srs.secret"),
        format=Format.SRS0,
        also_reverse=("exchange", "compact"),
        form=Form.LONG,
        hash_length=5,
        validity_days=1000,
        reverse=ReverseBy.REDIRECT,
        accept_from="everyone",
        failures_per_hour=0,
        exclude=("fabrikam.com",),
        include=("*.fabrikam.com",),
        exclude_file=file.parent / "excluded",
        exclude_listed=1,
        include_listed=1,
        only_spf=True,
        outgoing_addresses=("192.0.2.1", "2001:db8::1"),
        srs0=Srs0Config("+", hash_length=27, hash_minimum=5, base64url=True),
    )
    assert config.store_url == "postgresql://gatepost@db.contoso.com/gatepost"
    assert config.fcrdns
    assert [str(item) for item in config.nameservers] == [
        *("inet:192.0.2.53:53", "inet:[::1]:53", "inet:[::1]:53", "inet:[::1]:5353", "inet:127.0.0.1:5353")
    ]
    assert config.policyd.tcp_table_forward == (Listen(host="127.0.0.1", port=10001),)
    assert config.policyd.tcp_table_reverse == (Listen(host="127.0.0.1", port=10002), Listen(host="::1", port=10002))
    assert config.relay.requirements is RuleSet.LEGACY
    assert config.relay.exempt == ()
    assert config.srs.secret_file == Path("/etc/gatepost/srs.secret")
    assert str(config.milter.listen) == "inet:[::1]:10040"
    assert config.policyd.listen == (Listen(path="/run/policyd.sock"), Listen(host="127.0.0.1", port=10041))
    assert config.egress == EgressConfig("out:[127.0.0.1]:10099", "out")
    assert config.metrics is None


def test_an_organization_has_the_mode_of_relay_unless_it_sets_its_own(file: Path) -> None:
    config = read(file, CONTOSO + '[relay]\nmode = "enforce"\n')
    assert config.settings["contoso"].mode is Mode.ENFORCE


def test_a_relative_secret_file_lies_in_the_state_directory(file: Path) -> None:
    config = read(file, 'state_directory = "/srv/gatepost"\n[srs]\nsecret_file = "keys/srs"\n')
    assert config.srs.secret_file == Path("/srv/gatepost/keys/srs")


def test_systemd_names_the_state_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/other")
    assert read(file, "").state_directory == Path("/var/lib/other")


def test_a_u_label_domain_is_taken_as_a_label(file: Path) -> None:
    config = read(file, CONTOSO.replace("contoso.com", "Bücher.example"))
    assert config.organizations["contoso"].default_domain == "xn--bcher-kva.example"


def test_one_string_is_taken_for_a_list_of_one(file: Path) -> None:
    assert read(file, '[policyd]\nlisten = "inet:127.0.0.1:1"\n').policyd.listen == (Listen(host="127.0.0.1", port=1),)


def test_what_exchange_online_would_not_take_is_a_warning(file: Path) -> None:
    config = read(
        file,
        CONTOSO
        + """
        match_subdomains = true
        [[organization.connector]]
        name = "office"
        sender_ip_addresses = ["192.0.2.1", "10.0.0.0/8", "2001:db8::1"]
        """,
    )
    assert config.warnings == (
        "gatepost.toml: organization[0].accepted_domain[0].match_subdomains: "
        'Exchange Online takes it with type = "InternalRelay" only',
        "gatepost.toml: organization[0].connector[0].sender_ip_addresses[1]: "
        'Exchange Online does not take "10.0.0.0/8": IPv4, /24 to /32',
        "gatepost.toml: organization[0].connector[0].sender_ip_addresses[2]: "
        'Exchange Online does not take "2001:db8::1": IPv4, /24 to /32',
    )


SECOND_DOMAIN = '[[organization.accepted_domain]]\ndomain = "contoso.net"\n'
CONNECTOR = CONTOSO + '[[organization.connector]]\nname = "office"\n'


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            '[srs]\nformat = "srs0"\nhash_length = 8',
            'srs.hash_length: has no effect: srs.format is "srs0", and srs.also_reverse has no "exchange"; '
            "that of SRS0 is srs.srs0.hash_length",
        ),
        (
            "[srs.srs0]\nhash_length = 8",
            'srs.srs0: has no effect: srs.format is "exchange", and srs.also_reverse has no "srs0"',
        ),
        (
            CONTOSO + '[policyd]\ntcp_table_forward = "inet:127.0.0.1:10001"',
            "policyd.tcp_table_forward: the mode is monitor, in which the map forward rewrites nothing",
        ),
        (
            '[policyd]\ntcp_table_reverse = "unix:/run/x.sock"',
            'policyd.tcp_table_reverse[0]: Postfix asks a tcp_table by TCP only (e.g. "inet:127.0.0.1:10001")',
        ),
    ],
)
def test_what_has_no_effect_is_a_warning(file: Path, text: str, warning: str) -> None:
    assert read(file, text).warnings == (f"gatepost.toml: {warning}",)


@pytest.mark.parametrize(
    "text",
    [
        '[srs]\nalso_reverse = ["srs0"]\nhash_length = 5\n[srs.srs0]\nhash_length = 8',
        '[srs]\nformat = "srs0"\n[srs.srs0]\nhash_length = 8',
        CONTOSO + '[relay]\nmode = "enforce"\n[policyd]\ntcp_table_forward = "inet:127.0.0.1:10001"',
    ],
)
def test_what_has_an_effect_is_no_warning(file: Path, text: str) -> None:
    assert read(file, text).warnings == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[relay]\nrequirments = "legacy"', 'relay.requirments: unknown key, did you mean "requirements"?'),
        ("colour = 1", "colour: unknown key"),
        ("relay = 1", "relay: 1 is not a table; write [relay]"),
        (
            'organization = ["contoso"]',
            'organization: ["contoso"] is not a list of tables; write [[organization]]',
        ),
        (
            '[organization]\nname = "contoso"',
            "organization: a table is not a list of tables; write [[organization]]",
        ),
        (
            '[[organization]]\nname = "contoso"\naccepted_domain = ["contoso.com"]',
            'organization[0].accepted_domain: ["contoso.com"] is not a list of tables; '
            "write [[organization.accepted_domain]]",
        ),
        ("[srs]\nhash_length = 4", "srs.hash_length: 4 is not in the range 5 to 52"),
        ('[srs]\nhash_length = "8"', 'srs.hash_length: "8" is not a whole number'),
        ("[srs]\nvalidity_days = true", "srs.validity_days: true is not a whole number"),
        ("[srs]\nsecret_file = 1", "srs.secret_file: 1 is not a string"),
        ('[srs]\nsecret_file = ""', 'srs.secret_file: "" is empty'),
        ('[srs]\nformat = "srs"', 'srs.format: "srs" is not one of "exchange", "srs0", did you mean "srs0"?'),
        ("[srs]\nformat = 0", "srs.format: 0 is not a string"),
        ('[srs]\nform = "short"', 'srs.form: "short" is not one of "auto", "long", "compact"'),
        (
            '[srs]\nalso_reverse = ["srs0", "srs1"]',
            'srs.also_reverse[1]: "srs1" is not one of "exchange", "srs0", "compact", did you mean "srs0"?',
        ),
        ('[srs]\nreverse = "policy"', 'srs.reverse: "policy" is not one of "map", "redirect", "milter"'),
        (
            '[policyd]\nreverse = "redirect"',
            "policyd.reverse: unknown key",
        ),
        ('[srs]\naccept_from = "anyone"', 'srs.accept_from: "anyone" is not one of "bounces", "everyone"'),
        ("[srs]\nfailures_per_hour = -1", "srs.failures_per_hour: -1 is not in the range 0 to 1000000"),
        ("[srs]\nvalidity_days = 1001", "srs.validity_days: 1001 is not in the range 1 to 1000"),
        (
            '[srs]\nexclude = ["fabrikam.com", "a.*.com"]',
            'srs.exclude[1]: "a.*.com" is no domain and no pattern (e.g. "fabrikam.com", "*.fabrikam.com")',
        ),
        ("[ledger]\ndays = -1", "ledger.days: -1 is not in the range 0 to 3650"),
        ("[ledger]\nspool_megabytes = 1", "ledger.spool_megabytes: 1 is not in the range 8 to 1000000"),
        (
            "[relay]\nenforce_from = 2026-12-01T09:00:00",
            "relay.enforce_from: 2026-12-01T09:00:00 is no date and time with a zone "
            "(e.g. 2026-12-01T09:00:00Z, 2026-12-01)",
        ),
        (
            '[relay]\nenforce_from = "2026-12-01"',
            'relay.enforce_from: "2026-12-01" is no date and time with a zone (e.g. 2026-12-01T09:00:00Z, 2026-12-01)',
        ),
        (
            '[relay]\nmode = "enforce"\nenforce_from = 2026-12-01',
            'relay.enforce_from: mode = "enforce" is in force at once; write mode = "monitor", or leave it out',
        ),
        (
            '[[organization]]\nname = "contoso"\nnotify_addresses = ["the boss"]\n'
            '[[organization.accepted_domain]]\ndomain = "contoso.com"',
            'organization[0].notify_addresses[0]: "the boss" is no address (e.g. "postmaster@contoso.com")',
        ),
        (
            '[srs]\ninclude = [""]',
            'srs.include[0]: "" is no domain and no pattern (e.g. "fabrikam.com", "*.fabrikam.com")',
        ),
        (
            '[srs]\nexclude = [".fabrikam.com"]',
            'srs.exclude[0]: ".fabrikam.com" is no domain and no pattern (subdomains are "*.fabrikam.com")',
        ),
        ("[srs]\nexclude = 1", "srs.exclude: 1 is not a list of strings"),
        ('[srs]\nexclude_file = ["a"]', 'srs.exclude_file: ["a"] is not a string'),
        ('[srs]\nonly_spf = "yes"', 'srs.only_spf: "yes" is neither true nor false'),
        (
            "[srs]\nonly_spf = true",
            "srs.outgoing_addresses: missing: only_spf needs the IP addresses from which mail leaves",
        ),
        (
            '[srs]\noutgoing_addresses = ["192.0.2.0/28"]',
            'srs.outgoing_addresses[0]: "192.0.2.0/28" is no IP address (networks are not taken, list each address)',
        ),
        ('[srs.srs0]\nseparator = "."', 'srs.srs0.separator: "." is not one of "=", "+", "-"'),
        ("[srs.srs0]\nhash_length = 28", "srs.srs0.hash_length: 28 is not in the range 4 to 27"),
        ("[srs.srs0]\nhash_minimum = 3", "srs.srs0.hash_minimum: 3 is not in the range 4 to 27"),
        ("[srs.srs0]\nhash_minimum = 5", "srs.srs0.hash_minimum: 5 is more than hash_length, 4"),
        ("[srs.srs0]\nbase64 = true", 'srs.srs0.base64: unknown key, did you mean "base64url"?'),
        ("[srs]\nsrs0 = 1", "srs.srs0: 1 is not a table; write [srs.srs0]"),
        (
            '[policyd]\ntcp_table_forward = ["127.0.0.1:10001"]',
            'policyd.tcp_table_forward[0]: "127.0.0.1:10001" is no address (e.g. "unix:/run/x.sock", '
            '"inet:127.0.0.1:10041")',
        ),
        (
            '[policyd]\ntcp_table_forward = "inet:127.0.0.1:10001"\ntcp_table_reverse = "inet:127.0.0.1:10001"',
            'policyd.tcp_table_reverse[0]: "inet:127.0.0.1:10001" is policyd.tcp_table_forward[0], too',
        ),
        (
            '[policyd]\nlisten = ["unix:/run/x.sock", "unix:/run/x.sock"]',
            'policyd.listen[1]: "unix:/run/x.sock" is policyd.listen[0], too',
        ),
        (
            '[metrics]\nlisten = "127.0.0.1:1"\n[milter]\nlisten = "inet:127.0.0.1:1"',
            'metrics.listen: "inet:127.0.0.1:1" is milter.listen, too',
        ),
        ('[store]\nurl = ""', 'store.url: "" is empty'),
        ('[store]\npath = "x"', "store.path: unknown key"),
        (
            '[dns]\nnameservers = ["dns.contoso.com"]',
            'dns.nameservers[0]: "dns.contoso.com" is no IP address (e.g. "192.0.2.53", "127.0.0.1:5353")',
        ),
        (
            '[dns]\nnameservers = ["127.0.0.1:0"]',
            'dns.nameservers[0]: "127.0.0.1:0" is no IP address (e.g. "192.0.2.53", "127.0.0.1:5353")',
        ),
        (
            CONTOSO + 'srs_domain = "srs..contoso.com"',
            'organization[0].accepted_domain[0].srs_domain: "srs..contoso.com" is not a domain name '
            '(e.g. "contoso.com")',
        ),
        (
            CONTOSO
            + '[[organization]]\nname = "fabrikam"\n[[organization.accepted_domain]]\n'
            + 'domain = "fabrikam.com"\nsrs_domain = "contoso.com"',
            'organization[1].accepted_domain[0].srs_domain: "contoso.com" belongs to organization "contoso"',
        ),
        ("[relay]\nsubdomains_relay = 1", "relay.subdomains_relay: 1 is neither true nor false"),
        (
            '[relay]\nmode = "enforced"',
            'relay.mode: "enforced" is not one of "monitor", "enforce", did you mean "enforce"?',
        ),
        (
            '[relay]\nrequirements = "2023"',
            'relay.requirements: "2023" is not one of "2023-11-01", "legacy"',
        ),
        (
            '[relay]\nexempt = ["authentcated"]',
            'relay.exempt[0]: "authentcated" is not one of "authenticated", "local", did you mean "authenticated"?',
        ),
        ("[relay]\nlocal_domains = [1]", "relay.local_domains: [1] is not a list of strings"),
        (
            '[relay]\nlocal_domains = ["a.example", "b..example"]',
            'relay.local_domains[1]: "b..example" is not a domain name (e.g. "contoso.com")',
        ),
        ('[relay]\nlocal_domains = [""]', 'relay.local_domains[0]: "" is not a domain name (e.g. "contoso.com")'),
        ('state_directory = "var"', 'state_directory: "var" is not an absolute path'),
        (
            '[milter]\nlisten = "tcp:1"',
            'milter.listen: "tcp:1" is no address (e.g. "unix:/run/x.sock", "inet:127.0.0.1:10041")',
        ),
        (
            '[policyd]\nlisten = ["unix:relative"]',
            'policyd.listen[0]: "unix:relative" is no address (e.g. "unix:/run/x.sock", "inet:127.0.0.1:10041")',
        ),
        (
            f'[milter]\nlisten = "unix:/{"x" * 107}"',
            f'milter.listen: "/{"x" * 107}" is longer than the 107 octets that a Unix socket may have',
        ),
        ("[policyd]\nlisten = []", "policyd.listen: [] names no address to listen on"),
        ("[policyd]\nworkers = 0", "policyd.workers: 0 is not in the range 1 to 64"),
        (
            '[metrics]\nlisten = "9797"',
            'metrics.listen: "9797" is no address and port (e.g. "127.0.0.1:9797", "[::1]:9797", "" for none)',
        ),
        (
            '[metrics]\nlisten = "127.0.0.1:65536"',
            'metrics.listen: "127.0.0.1:65536" is no address and port (e.g. "127.0.0.1:9797", "[::1]:9797", '
            '"" for none)',
        ),
        ('[egress]\ntransport = "smtp"', 'egress.transport: "smtp" is not a Postfix transport:nexthop'),
        ('[egress]\ndaemon_name = ""', 'egress.daemon_name: "" is empty'),
        (
            '[relay]\nrequirements = "legacy"\nenforced_by = "policyd"',
            'relay.requirements: "legacy" needs the header From, which the policy protocol does not carry; '
            'use enforced_by = "milter" or requirements = "2023-11-01"',
        ),
        (
            '[[organization]]\nname = "contoso"',
            'organization[0].accepted_domain: missing: organization "contoso" has no accepted domain',
        ),
        (CONTOSO + CONTOSO.replace(".com", ".net"), 'organization[1].name: "contoso" is used by another organization'),
        (
            CONTOSO.replace("contoso.com", "@contoso.com"),
            'organization[0].accepted_domain[0].domain: "@contoso.com" is not a domain name (e.g. "contoso.com")',
        ),
        (CONTOSO.replace("contoso.com", ""), 'organization[0].accepted_domain[0].domain: "" is empty'),
        (
            CONTOSO + '[[organization]]\nname = "fabrikam"\n[[organization.accepted_domain]]\ndomain = "CONTOSO.com"',
            'organization[1].accepted_domain[0].domain: "CONTOSO.com" is an accepted domain at '
            "organization[0].accepted_domain[0] already",
        ),
        (
            CONTOSO + SECOND_DOMAIN,
            "organization[0].accepted_domain: none of 2 have default = true, must be one",
        ),
        (
            CONTOSO + "default = true\n" + SECOND_DOMAIN + "default = true\n",
            "organization[0].accepted_domain: 2 of 2 have default = true, must be one",
        ),
        (
            CONTOSO + 'type = "Internal"',
            'organization[0].accepted_domain[0].type: "Internal" is not one of "Authoritative", "InternalRelay", '
            '"ExternalRelay", did you mean "InternalRelay"?',
        ),
        (
            CONNECTOR,
            "organization[0].connector[0]: needs sender_ip_addresses or tls_sender_certificate_name to match anything",
        ),
        (
            CONNECTOR + 'sender_ip_addresses = ["192.0.2.300"]\ntls_sender_certificate_name = "mail.contoso.com"',
            'organization[0].connector[0].sender_ip_addresses[0]: "192.0.2.300" is no IP address or network '
            '(e.g. "192.0.2.1", "192.0.2.0/28")',
        ),
        (
            CONNECTOR + 'tls_sender_certificate_name = "contoso"',
            'organization[0].connector[0].tls_sender_certificate_name: "contoso" is not a domain name '
            '(e.g. "mail.contoso.com", "*.contoso.com")',
        ),
        (
            CONNECTOR + 'tls_sender_certificate_name = "mail.*.contoso.com"',
            'organization[0].connector[0].tls_sender_certificate_name: "mail.*.contoso.com" is not a domain name '
            '(e.g. "mail.contoso.com", "*.contoso.com")',
        ),
        (
            CONNECTOR + 'sender_ip_addresses = ["192.0.2.1"]\nassociated_accepted_domains = ["fabrikam.com"]',
            'organization[0].connector[0].associated_accepted_domains: "fabrikam.com" is no accepted domain of '
            "this organization",
        ),
        (
            CONNECTOR
            + 'sender_ip_addresses = ["192.0.2.1"]\n[[organization.connector]]\nname = "office"\n'
            + 'sender_ip_addresses = ["192.0.2.2"]',
            'organization[0].connector[1].name: "office" is used by another connector of this organization',
        ),
        (
            CONTOSO
            + '[[organization]]\nname = "fabrikam"\nsrs_domain = "contoso.com"\n'
            + '[[organization.accepted_domain]]\ndomain = "fabrikam.com"',
            'organization[1].srs_domain: "contoso.com" belongs to organization "contoso"',
        ),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(file: Path, text: str, problem: str) -> None:
    assert problems(file, text) == [f"gatepost.toml: {problem}"]


def test_all_errors_come_at_once(file: Path) -> None:
    text = '[[organization]]\nnam = "contoso"\n[srs]\nhash_length = 99\n[milter]\nworkers = "two"\n[pollicyd]\n'
    assert problems(file, text) == [
        "gatepost.toml: organization[0].name: missing",
        'gatepost.toml: organization[0].accepted_domain: missing: organization "" has no accepted domain',
        'gatepost.toml: organization[0].nam: unknown key, did you mean "name"?',
        "gatepost.toml: srs.hash_length: 99 is not in the range 5 to 52",
        'gatepost.toml: milter.workers: "two" is not a whole number',
        'gatepost.toml: pollicyd: unknown key, did you mean "policyd"?',
    ]


def test_a_control_character_cannot_break_the_line_of_a_message(file: Path) -> None:
    assert problems(file, '[relay]\nmode = "a\\nb"') == [
        'gatepost.toml: relay.mode: "a?b" is not one of "monitor", "enforce"'
    ]


def test_a_missing_file_is_named_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")
    assert caught.value.problems == (f"{tmp_path}/none.toml: cannot be read: No such file or directory",)


def test_what_is_not_toml_is_named_with_its_line(file: Path) -> None:
    (problem,) = problems(file, "[relay]\nmode = enforce\n")
    assert problem.startswith(f"{file}: is not TOML: ")
    assert "line 2" in problem


def test_byte_order_mark_is_taken_for_nothing(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf[[organization]]\nname = 'contoso'\naccepted_domain = [{domain = 'contoso.com'}]\n")
    assert list(load(file).organizations) == ["contoso"]


def test_what_is_not_utf_8_is_named_with_its_octet(file: Path) -> None:
    file.write_bytes(b'[relay]\nmode = "\xff"\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.problems == (f"{file}: is not UTF-8 (octet 16)",)


def test_a_missing_secret_is_refused_by_who_does_not_make_it(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.toml"
    file.write_text(f'state_directory = "{tmp_path}"\n')
    with pytest.raises(ConfigError) as caught:
        load_snapshot(file)
    assert caught.value.problems == (
        f"{tmp_path}/srs.secret: the SRS secret cannot be read: No such file or directory",
    )


def test_a_pattern_file_stands_beside_the_configuration_and_adds_to_the_list(file: Path) -> None:
    (file.parent / "lists").mkdir()
    text = "# ours\n\n  Bücher.example  # a shop\n*.fabrikam.COM.\n"
    (file.parent / "lists" / "excluded").write_text(text, encoding="utf-8")
    config = read(file, '[srs]\nexclude = "contoso.com"\nexclude_file = "lists/excluded"\n')
    assert config.srs.exclude == ("contoso.com", "xn--bcher-kva.example", "*.fabrikam.com")
    assert config.srs.watched == (file.parent / "lists" / "excluded",)


def test_an_absolute_pattern_file_is_taken_as_it_is(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    listed = tmp_path_factory.mktemp("elsewhere") / "included"
    listed.write_text("fabrikam.com\n")
    config = read(file, f'[srs]\ninclude_file = "{listed}"\n')
    assert (config.srs.include, config.srs.include_file) == (("fabrikam.com",), listed)


def test_a_missing_pattern_file_is_named_with_its_path(file: Path) -> None:
    assert problems(file, '[srs]\nexclude_file = "none"\n') == [
        f"gatepost.toml: srs.exclude_file: {file.parent}/none: cannot be read: No such file or directory"
    ]


def test_pipe_in_the_place_of_a_file_of_domains_is_an_error(file: Path) -> None:
    os.mkfifo(file.parent / "pipe")
    assert problems(file, '[srs]\nexclude_file = "pipe"\n') == [
        f"gatepost.toml: srs.exclude_file: {file.parent}/pipe: cannot be read: is no regular file"
    ]


def test_a_pattern_file_that_is_not_utf_8_is_named(file: Path) -> None:
    (file.parent / "list").write_bytes(b"b\xfccher.example\n")
    assert problems(file, '[srs]\ninclude_file = "list"\n') == [
        f"gatepost.toml: srs.include_file: {file.parent}/list: is not UTF-8"
    ]


def test_bad_lines_of_a_pattern_file_are_named_with_their_numbers(file: Path) -> None:
    (file.parent / "list").write_text("fabrikam.com\n\n@contoso.com\n# fine\n*.*.example\n")
    assert problems(file, '[srs]\nexclude_file = "list"\n') == [
        f'gatepost.toml: srs.exclude_file: {file.parent}/list line {line}: "{text}" is no domain and no pattern '
        '(e.g. "fabrikam.com", "*.fabrikam.com")'
        for line, text in ((3, "@contoso.com"), (5, "*.*.example"))
    ]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/gatepost.db",
        "postgresql:///gatepost",
        "postgresql://gatepost:secret@[::1]:5432/gatepost?sslmode=require",
    ],
)
def test_a_store_is_a_file_of_sqlite_or_a_postgresql_database(file: Path, url: str) -> None:
    assert read(file, f'[store]\nurl = "{url}"\n').store_url == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///gatepost.db", "sqlite:///gatepost.db"),
        ("sqlite://", "sqlite://"),
        ("/var/lib/gatepost.db", "/var/lib/gatepost.db"),
        ("postgresql://db.contoso.com", "postgresql://db.contoso.com"),
        ("postgresql://gatepost@db.contoso.com", "postgresql://gatepost@db.contoso.com"),
        ("mysql://gatepost:secret@db/gatepost", "mysql://gatepost:***@db/gatepost"),
        ("mysql://gatepost:se@cr/et@db/gatepost", "mysql://gatepost:***@db/gatepost"),
        ("postgresql:gatepost:secret@db/gatepost", "postgresql:***@db/gatepost"),
        ("gatepost:secret@db/gatepost", "gatepost:***@db/gatepost"),
        ("postgres://db/gatepost?user=x&password=secret&a=b", "postgres://db/gatepost?user=x&password=***&a=b"),
        ("postgresql://x:secret@[::1/gatepost", "postgresql://x:***@[::1/gatepost"),
    ],
)
def test_an_error_about_the_store_shows_no_password(file: Path, url: str, shown: str) -> None:
    assert problems(file, f'[store]\nurl = "{url}"\n') == [
        f'gatepost.toml: store.url: "{shown}" is no database (e.g. "sqlite:////var/lib/gatepost/gatepost.db", '
        '"postgresql://gatepost@db.contoso.com/gatepost")'
    ]


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("postgresql://gatepost@db.contoso.com/gatepost", "sqlite:////var/lib/gatepost/gatepost.db"):
        assert without_password(url) == url


# The ledger, and modes that change at a date


def test_ledger_is_as_configured(file: Path) -> None:
    text = "[ledger]\ndays = 7\nrows = 5000\nsubjects = true\nrequired = true\nspool_megabytes = 8\n"
    assert read(file, text).ledger == LedgerConfig(7, 5000, True, True, 8 << 20)


DECEMBER = datetime(2026, 12, 1, 9, tzinfo=timezone.utc)
FABRIKAM = """
[[organization]]
name = "fabrikam"
{}
[[organization.accepted_domain]]
domain = "fabrikam.com"
"""


@pytest.mark.parametrize(
    ("relay", "own", "before", "after"),
    [
        ("enforce_from = 2026-12-01T10:00:00+01:00", "", False, True),
        ("enforce_from = 2026-12-01T09:00:00Z", 'mode = "monitor"', False, False),
        ("enforce_from = 2026-12-01T09:00:00Z", 'mode = "enforce"', True, True),
        ('mode = "enforce"', "enforce_from = 2026-12-01T09:00:00Z", False, True),
        ('mode = "monitor"', 'mode = "monitor"\nenforce_from = 2026-12-01', True, True),
    ],
)
def test_enforce_from_is_relays_or_the_organizations_own(
    file: Path, relay: str, own: str, before: bool, after: bool
) -> None:
    config = read(file, f"{FABRIKAM.format(own)}\n[relay]\n{relay}\n")
    at = DECEMBER.timestamp()
    snapshots = [build(config, Keys([b"key"]), now) for now in (at - 1, at)]
    fabrikam = config.organizations["fabrikam"]
    assert [snapshot.enforces(fabrikam) for snapshot in snapshots] == [before, after]


def test_snapshot_holds_until_the_next_enforce_from(file: Path) -> None:
    config = read(file, f"{FABRIKAM.format('enforce_from = 2026-12-01')}\n[relay]\nenforce_from = 2027-01-01\n")
    days = [datetime(year, month, 1, tzinfo=timezone.utc).timestamp() for year, month in ((2026, 12), (2027, 1))]
    keys = Keys([b"key"])
    assert [build(config, keys, now).until for now in (0.0, days[0], days[1])] == [*days, float("inf")]


# What is done with what is refused


def acting(file: Path, relay: str, organization: str = "") -> Config:
    name = 'name = "contoso"'
    return read(file, f"[relay]\n{relay}\n" + CONTOSO.replace(name, f"{name}\n{organization}"))


def test_an_organization_has_the_general_action_unless_it_has_its_own(file: Path) -> None:
    assert acting(file, "").settings["contoso"].action is RefusalAction.REJECT
    assert acting(file, 'action = "tag"').settings["contoso"].action is RefusalAction.TAG
    assert acting(file, 'action = "tag"', 'action = "tempfail"').settings["contoso"].action is RefusalAction.TEMPFAIL


def test_policyd_cannot_tag(file: Path) -> None:
    relay = '[relay]\nenforced_by = "policyd"\n'
    assert problems(file, relay + CONTOSO.replace("\n[[organization.", '\naction = "tag"\n[[organization.')) == [
        'gatepost.toml: organization[0].action: "tag" needs enforced_by = "milter": policyd cannot remove a header '
        "that a client forged"
    ]


@pytest.mark.parametrize("action", ["tempfail", "quarantine", "tag"])
def test_a_warning_says_that_mail_from_sendmail_cannot_be_split(file: Path, action: str) -> None:
    assert acting(file, f'action = "{action}"\nexempt = ["authenticated"]').warnings == (
        "gatepost.toml: relay.exempt: mail from sendmail(1) is not exempt and cannot be split, so inside recipients of "
        f"the same message share what becomes of it ({action}{', which rejects it' if action == 'tempfail' else ''})",
    )
    assert acting(file, f'action = "{action}"').warnings == ()


# Certificates


def test_certificates_are_in_the_folder_beside_the_configuration_which_need_not_be_there(file: Path) -> None:
    config = read(file, CONTOSO)
    assert config.relay.certificate_folder == file.parent / "certificates"
    assert config.warnings == ()


def test_certificate_folder_is_relative_to_the_configuration(file: Path) -> None:
    (file.parent / "clients").mkdir()
    config = read(file, CONTOSO + '[relay]\ncertificate_folder = "clients"\n')
    assert (config.relay.certificate_folder, config.warnings) == (file.parent / "clients", ())


def test_certificate_folder_that_is_given_and_not_there_is_a_warning(file: Path) -> None:
    config = read(file, CONTOSO + '[relay]\ncertificate_folder = "/nowhere/clients"\n')
    assert config.warnings == ("gatepost.toml: relay.certificate_folder: /nowhere/clients is no folder",)


def test_rewrite_needs_something_that_rewrites(file: Path) -> None:
    relay = '[relay]\naction = "rewrite"\n'
    assert problems(file, relay + 'enforced_by = "policyd"\n' + CONTOSO) == [
        'gatepost.toml: relay.action: "rewrite" needs enforced_by = "milter" or [egress]: policyd rewrites nothing'
    ]
    assert problems(file, relay + CONTOSO + '[srs]\nonly_spf = true\noutgoing_addresses = "192.0.2.1"\n') == [
        'gatepost.toml: relay.action: "rewrite" goes not with srs.only_spf: what is let through must have an SRS sender'
    ]
