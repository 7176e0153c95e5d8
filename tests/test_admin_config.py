# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost config`: the configuration to start from, the check, and what is in force."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.service.config import Config, Mode, load

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
    assert {settings.mode for settings in loaded.settings.values()} == {Mode.MONITOR}
    assert loaded.warnings == ()


def test_the_lines_commented_out_there_are_the_defaults(tmp_path: Path) -> None:
    text = config(tmp_path / "unused.toml", "init", "--stdout").output
    plain, whole = tmp_path / "plain.toml", tmp_path / "whole.toml"
    plain.write_text(text)
    whole.write_text(re.sub(r"^#(?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE))
    settings = {"contoso": replace(load(whole).settings["contoso"], srs_domain=None)}
    assert load(whole).egress is not None
    assert replace(load(whole), path=plain, egress=None, settings=settings) == load(plain)


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    before = file.read_text()
    result = config(file, "init")
    assert result.output == (
        f"{file}: exists, and is never overwritten; gatepost config init --stdout prints what it would hold\n"
    )
    assert result.exit_code == 73
    assert file.read_text() == before


def test_a_right_configuration_is_summed_up(file: Path) -> None:
    (file.parent / "srs.secret").write_text("key\n")
    (file.parent / "srs.secret").chmod(0o600)
    result = config(file, "check")
    assert result.output == (
        f"{file}: OK, 1 organization, 1 accepted domain, 1 connector\nSRS secret: {file.parent}/srs.secret is good\n"
    )
    assert result.exit_code == 0


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
enforced_by = "milter"  # default
local_domains = []  # default
subdomains_relay = true  # default
exempt = ["authenticated", "local"]  # default

[srs]
secret_file = "{file.parent}/srs.secret"  # default
hash_length = 8  # default
validity_days = 7

[milter]
listen = "unix:/var/spool/postfix/gatepost/milter.sock"  # default
workers = 2  # default

[policyd]
listen = ["unix:/var/spool/postfix/gatepost/policyd.sock"]  # default
workers = 2  # default
reverse = "map"  # default

# [egress] is not set.

[metrics]
listen = "127.0.0.1:9797"  # default
"""
    )
    assert result.exit_code == 0


def test_what_is_shown_is_a_configuration_that_means_the_same(file: Path) -> None:
    file.write_text(file.read_text() + '[egress]\n[metrics]\nlisten = ""\n[policyd]\nlisten = "inet:[::1]:10041"\n')
    shown = file.with_name("shown.toml")
    shown.write_text(config(file, "show").output)

    def named(loaded: Config) -> Config:
        return replace(loaded, path=file)

    assert named(load(shown)) == named(load(file))


def test_no_secret_is_shown(file: Path) -> None:
    (file.parent / "srs.secret").write_text("very secret\n")
    assert "very secret" not in config(file, "show").output


MANUAL = Path(__file__).parent.parent / "packaging/man/gatepost.toml.5"


def test_every_key_is_in_the_manual_and_in_the_configuration_to_start_from(file: Path) -> None:
    file.write_text(
        'organization = [{name = "a", srs_domain = "srs.a.example", accepted_domain = [{domain = "a.example"}], '
        'connector = [{name = "c", tls_sender_certificate_name = "a.example"}]}]\n[egress]\n'
    )
    keys = set(re.findall(r"^(\w+) = ", config(file, "show").output, flags=re.MULTILINE))
    manual = re.findall(r"^\.It Cm (\w+)", MANUAL.read_text(), flags=re.MULTILINE)
    starting = re.findall(r"^#?(\w+) = ", config(file, "init", "--stdout").output, flags=re.MULTILINE)
    assert keys == set(manual) == set(starting)
