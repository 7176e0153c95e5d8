# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost config`: the configuration to start from, the check, and what is in force."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.authority import Authority
from gatepost.admin.command import main
from gatepost.admin.configuration import resign_ownership
from gatepost.service.config import Config, load
from gatepost.service.exports import ExchangeExport
from gatepost.service.organizations import Mode, OrganizationConfig

SMALL = """
state_directory = "{state}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "Contoso.com"
[[organization.connector]]
name = "the \\"old\\" office"
sender_ip_addresses = ["192.0.2.77/28"]
[srs]
validity_days = 7
"""


ALL_OF_SRS = """
format = "srs0"
also_reverse = ["exchange", "compact"]
form = "long"
reverse = "milter"
accept_from = "everyone"
failures_per_hour = 0
exclude = ["X.example", "*.bücher.example"]
include = "*.example"
exclude_file = "excluded"
include_file = "included"
only_spf = true
outgoing_addresses = ["192.0.2.1", "2001:db8::1"]
[srs.srs0]
separator = "-"
hash_length = 27
hash_minimum = 5
base64url = true
[egress]
[metrics]
listen = ""
[policyd]
listen = "inet:[::1]:10041"
tcp_table_forward = "inet:127.0.0.1:10001"
tcp_table_reverse = ["inet:127.0.0.1:10002", "inet:[::1]:10002"]
[store]
url = "sqlite:////srv/gatepost.db"
[dns]
nameservers = ["192.0.2.53", "[::1]:5353"]
[[organization]]
name = "fabrikam"
srs_domain = "srs.fabrikam.com"
[[organization.accepted_domain]]
domain = "fabrikam.com"
srs_domain = "bounce.fabrikam.com"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "gatepost.toml"
    file.write_text(SMALL.format(state=tmp_path))
    return file


def config(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["-c", str(file), "config", *arguments])


def test_the_configuration_to_start_from_is_valid_and_refuses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "gatepost.toml"
    result = config(file, "init")
    assert (
        result.output == f"Wrote {file}. Put your own organization into it, then run: gatepost -c {file} config check\n"
    )
    assert result.exit_code == 0
    loaded = load(file)
    assert loaded.organizations == {}  # whoever installs it makes nobody's domain an accepted one
    assert loaded.relay.mode is Mode.MONITOR
    assert loaded.warnings == ()


def test_the_smallest_organization_there_is_valid_once_its_lines_are_no_comments(tmp_path: Path) -> None:
    before, _, rest = config(tmp_path / "unused.toml", "init", "--stdout").output.partition("# The smallest one")
    example, _, after = rest.partition("# All that")
    file = tmp_path / "gatepost.toml"
    declared = re.sub(r"^#(?=[a-z\[])", "", f"# The smallest one{example}", flags=re.MULTILINE)
    file.write_text(f"{before}{declared}# {after}")
    loaded = load(file)
    assert {settings.mode for settings in loaded.settings.values()} == {Mode.MONITOR}
    assert [connector.name for connector in loaded.organizations["contoso"].connectors] == ["head office"]


def test_the_lines_commented_out_there_are_the_defaults(tmp_path: Path) -> None:
    text = config(tmp_path / "unused.toml", "init", "--stdout").output
    plain, whole = tmp_path / "plain.toml", tmp_path / "whole.toml"
    for name in ("srs-exclude", "srs-include"):
        (tmp_path / name).touch()
    for name in ("contoso-accepted-domains.json", "contoso-inbound-connectors.json"):
        (tmp_path / name).write_text("[]")
    plain.write_text(text)
    smallest = re.search(r"# The smallest one.*?(?=# All that)", text, flags=re.DOTALL)
    assert smallest
    whole.write_text(re.sub(r"^#(?=[a-z_]+ = |\[)", "", text.replace(smallest[0], ""), flags=re.MULTILINE))
    contoso = replace(load(whole).settings["contoso"], enforce_from=None, srs_domain=None, srs_domains={})
    assert replace(contoso, exchange_export=ExchangeExport()) == OrganizationConfig(
        mode=Mode.MONITOR, notify_addresses=contoso.notify_addresses
    )
    assert load(whole).egress is not None
    srs = replace(load(whole).srs, exclude_file=None, include_file=None)
    relay = replace(load(whole).relay, enforce_from=None)
    assert load(whole).upstream is not None
    bare = replace(load(whole), path=plain, egress=None, upstream=None, organizations={}, settings={})
    assert replace(bare, srs=srs, relay=relay) == load(plain)


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    before = file.read_text()
    result = config(file, "init")
    assert result.output == (
        f"{file}: exists, and is never overwritten; gatepost config init --stdout prints what it would hold\n"
    )
    assert result.exit_code == 73
    assert file.read_text() == before


def test_a_right_configuration_is_summed_up(file: Path) -> None:
    secret = file.parent / "srs.secret"
    secret.write_text("# signs from 9999-01-01\nthe key of later\nthe first key of all\nan older key of old\n")
    secret.chmod(0o600)
    result = config(file, "check")
    assert result.output == (
        f"{file}: OK, 1 organization, 1 accepted domain, 1 connector\n"
        f"SRS secret: {secret}: 3 keys; 620e72c6 signs from 9999-01-01, 1bc9e8b1 signs, ccf9a029 verifies\n"
    )
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("day", "expected"), [("2020-01-01", "in force since 1 January 2020"), ("9000-01-01", "from 1 January 9000")]
)
def test_a_switch_is_called_past_once_it_has_come(file: Path, day: str, expected: str) -> None:
    file.write_text(f"{file.read_text()}[relay]\nenforce_from = {day}\n")
    assert f"\ncontoso: mode enforce {expected}, 00:00 UTC" in config(file, "check").output


def test_modes_that_a_switch_has_overtaken_are_marked(file: Path) -> None:
    file.write_text(f"{file.read_text()}[relay]\nmode = 'monitor'\nenforce_from = 2020-01-01\n")
    lines = config(file, "show").output.splitlines()
    assert lines.count('mode = "monitor"  # enforce_from has come: enforce') == 2
    file.write_text(file.read_text().replace("2020", "9000"))
    assert "has come" not in config(file, "show").output


def test_a_key_that_can_be_guessed_is_warned_of(file: Path) -> None:
    secret = file.parent / "srs.secret"
    secret.write_text("fifteen octets.\nsixteen octets..\n")
    secret.chmod(0o600)
    assert config(file, "check").output.splitlines()[1:] == [
        f"warning: {secret}: the key 476ab5f6 has 15 octets; safe are 16 and more",
        f"SRS secret: {secret}: 2 keys; 476ab5f6 signs, 1714e811 verifies",
    ]


def test_a_store_that_is_away_is_warned_of(file: Path) -> None:
    file.write_text(file.read_text() + '[store]\nurl = "sqlite:////nowhere/gatepost.db"\n')
    result = config(file, "check")
    assert (
        "warning: the store cannot be asked: store /nowhere/gatepost.db: the folder /nowhere does not exist"
        in result.output
    )
    assert result.exit_code == 0


def test_check_counts_the_certificates_and_warns_of_files_that_are_none(file: Path) -> None:
    folder = file.parent / "certificates"
    folder.mkdir()
    (folder / "crm.pem").write_bytes(Authority(file.parent / "tls").issue("crm.contoso.com").certificate.read_bytes())
    (folder / "note.pem").write_text("to do")
    lines = config(file, "check").output.splitlines()
    assert f"{folder}: 1 certificate" in lines
    assert f"warning: {folder}/note.pem: holds no certificate, neither PEM nor DER" in lines


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_check_by_root_warns_of_a_certificate_that_the_daemons_user_may_not_read(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folder is closed to others
        place = Path(name)
        place.chmod(0o755)
        state, folder = place / "state", place / "certificates"
        state.mkdir()
        os.chown(state, 54321, 54321)
        folder.mkdir()
        for stem, mode in (("crm", 0o640), ("files", 0o644)):
            issued = Authority(place / "tls").issue(f"{stem}.contoso.com")
            (folder / f"{stem}.pem").write_bytes(issued.certificate.read_bytes())
            (folder / f"{stem}.pem").chmod(mode)
        path = place / "gatepost.toml"
        path.write_text(f'state_directory = "{state}"\n[srs]\nsecret_file = "{place}/srs.secret"\n')
        path.with_name("srs.secret").write_text("0123456789abcdef\n")
        path.with_name("srs.secret").chmod(0o600)
        try:
            lines = [line for line in config(path, "check").output.splitlines() if "may not read" in line]
        finally:
            resign_ownership()  # the command asks the store as the daemons' user, and ends so
    assert lines == [f"warning: {folder}/crm.pem: the user of the daemons (54321) may not read it"]


def test_a_store_that_nothing_needs_is_not_asked(file: Path) -> None:
    file.write_text(file.read_text() + 'form = "long"\n[store]\nurl = "sqlite:////nowhere/gatepost.db"\n')
    assert "warning" not in config(file, "check").output


def test_a_missing_secret_is_no_error(file: Path) -> None:
    result = config(file, "check")
    assert result.output.splitlines()[-1] == (
        f"SRS secret: {file.parent}/srs.secret is not there yet, the first start makes it"
    )
    assert result.exit_code == 0


def test_a_secret_open_to_others_is_an_error(file: Path) -> None:
    secret = file.parent / "srs.secret"
    secret.write_text("key\n")
    secret.chmod(0o644)
    result = config(file, "check")
    assert result.output == f"{secret}: the SRS secret is open to others (mode 0644); chmod 0600 {secret}\n"
    assert result.exit_code == 78


def test_warnings_follow_the_ok(file: Path) -> None:
    file.write_text(f'state_directory = "{file.parent}"\n')
    assert config(file, "check").output.splitlines()[:2] == [
        f"{file}: OK, 0 organizations, 0 accepted domains, 0 connectors",
        "warning: no organization is declared, so nothing is refused and nothing is rewritten",
    ]


def test_every_error_is_a_line_and_the_status_78(file: Path) -> None:
    file.write_text('[relay]\nmod = "enforce"\n[srs]\nhash_length = 1\n')
    result = config(file, "check")
    assert result.output == (
        'gatepost.toml: relay.mod: unknown key, did you mean "mode"?\n'
        "gatepost.toml: srs.hash_length: 1 is not in the range 5 to 52\n"
    )
    assert result.exit_code == 78


def test_what_is_in_force_is_shown_with_its_defaults_marked(file: Path) -> None:
    result = config(file, "show")
    assert (
        result.output
        == f"""\
# The configuration in force, of {file}. A value marked # default is not set there.
state_directory = "{file.parent}"

[[organization]]
name = "contoso"
mode = "monitor"  # default
action = "reject"  # default
notify_addresses = ["postmaster@contoso.com"]  # default
exchange_export = []  # default

[[organization.accepted_domain]]
domain = "contoso.com"
default = false  # default
type = "Authoritative"  # default
match_subdomains = false  # default

[[organization.connector]]
name = "the \\"old\\" office"
sender_ip_addresses = ["192.0.2.64/28"]
enabled = true  # default
associated_accepted_domains = []  # default

[relay]
requirements = "2023-11-01"  # default
mode = "monitor"  # default
action = "reject"  # default
enforced_by = "milter"  # default
local_domains = []  # default
subdomains_relay = true  # default
exempt = ["authenticated", "local"]  # default
certificate_folder = "{file.parent}/certificates"  # default

[srs]
secret_file = "{file.parent}/srs.secret"  # default
format = "exchange"  # default
also_reverse = []  # default
form = "auto"  # default
hash_length = 8  # default
validity_days = 7
reverse = "map"  # default
accept_from = "bounces"  # default
failures_per_hour = 100  # default
exclude = []  # default
include = []  # default
only_spf = false  # default
outgoing_addresses = []  # default

[srs.srs0]
separator = "="  # default
hash_length = 4  # default
hash_minimum = 4  # default
base64url = false  # default

[milter]
listen = "unix:/var/spool/postfix/gatepost/milter.sock"  # default
workers = 2  # default

[policyd]
listen = ["unix:/var/spool/postfix/gatepost/policyd.sock"]  # default
tcp_table_forward = []  # default
tcp_table_reverse = []  # default
workers = 2  # default

# [egress] is not set.

# [upstream] is not set.

[metrics]
listen = "127.0.0.1:9797"  # default

[ledger]
days = 90  # default
rows = 5000000  # default
subjects = false  # default
required = false  # default
spool_megabytes = 1024  # default

[store]
url = "sqlite:///{file.parent}/gatepost.db"  # default

[dns]
nameservers = []  # default
fcrdns = false  # default
"""
    )
    assert result.exit_code == 0


def test_what_is_shown_is_a_configuration_that_means_the_same(file: Path) -> None:
    (file.parent / "excluded").write_text("adatum.com  # a partner\n*.Adatum.com\n")
    (file.parent / "included").write_text("fabrikam.com\n")
    file.write_text(file.read_text() + ALL_OF_SRS)
    shown = file.with_name("shown.toml")
    shown.write_text(config(file, "show").output)

    def named(loaded: Config) -> Config:
        return replace(loaded, path=file)

    assert named(load(shown)) == named(load(file))


def test_what_files_hold_is_not_shown_with_the_lists(file: Path) -> None:
    (file.parent / "excluded").write_text("adatum.com\n")
    file.write_text(file.read_text() + 'exclude = "x.example"\nexclude_file = "excluded"\n')
    shown = config(file, "show").output
    assert f'exclude = ["x.example"]\ninclude = []  # default\nexclude_file = "{file.parent}/excluded"\n' in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://gatepost:s3cr3t@db.contoso.com/gatepost", "postgresql://gatepost:***@db.contoso.com/gatepost"),
        ("postgresql:///gatepost?password=s3cr3t&user=g", "postgresql:///gatepost?password=***&user=g"),
    ],
)
def test_the_password_of_the_store_is_masked(file: Path, url: str, shown: str) -> None:
    file.write_text(file.read_text() + f'[store]\nurl = "{url}"\n')
    assert f'[store]\nurl = "{shown}"\n' in config(file, "show").output


def test_a_password_is_in_no_error_either(file: Path) -> None:
    file.write_text(file.read_text() + '[store]\nurl = "mysql://gatepost:s3cr3t@db.contoso.com/gatepost"\n')
    result = config(file, "check")
    assert result.output.startswith('gatepost.toml: store.url: "mysql://gatepost:***@db.contoso.com/gatepost" is no ')
    assert result.exit_code == 78


def test_no_secret_is_shown(file: Path) -> None:
    (file.parent / "srs.secret").write_text("very secret\n")
    assert "very secret" not in config(file, "show").output


MANUAL = Path(__file__).parent.parent / "packaging/man/gatepost.toml.5"


def test_every_key_is_in_the_manual_and_in_the_configuration_to_start_from(file: Path) -> None:
    (file.parent / "domains").touch()
    file.write_text(
        'organization = [{name = "a", enforce_from = 2030-01-01, srs_domain = "srs.a.example", '
        'accepted_domain = [{domain = "a.example"}], '
        'connector = [{name = "c", tls_sender_certificate_name = "a.example"}]}]\n[egress]\n'
        '[upstream]\ntls_sender_certificate_name = "a.example"\n'
        '[srs]\nexclude_file = "domains"\ninclude_file = "domains"\n'
    )
    keys = set(re.findall(r"^(\w+) = ", config(file, "show").output, flags=re.MULTILINE))
    manual = re.findall(r"^\.It Cm (\w+)", MANUAL.read_text(), flags=re.MULTILINE)
    starting = re.findall(r"^#?(\w+) = ", config(file, "init", "--stdout").output, flags=re.MULTILINE)
    assert keys == set(manual) == set(starting)
