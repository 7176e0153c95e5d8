# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost setup sendmail`: what it prints, writes and notes; tests/e2e/sendmail boots a Sendmail with it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.admin.setup.sendmail import FIRST_LINE

EXAMPLE = Path(__file__).parent.parent / "examples/sendmail"
CONTOSO = """
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "here"
sender_ip_addresses = ["127.0.0.0/24"]
"""
APART: Any = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
SOCKET = '[milter]\nlisten = "unix:/run/gatepost/milter.sock"\n'
BY_MILTER = '[srs]\nreverse = "milter"\n'


def setup(folder: Path, text: str, *options: str) -> Result:
    configuration = folder / "gatepost.toml"
    configuration.write_text(text if "[milter]" in text else SOCKET + text)
    return CliRunner(**APART).invoke(main, ["-c", str(configuration), "setup", "sendmail", *options])


def test_example_is_what_it_prints_for_the_configuration_beside_it(tmp_path: Path) -> None:
    result = setup(tmp_path, (EXAMPLE / "gatepost.toml").read_text())
    assert result.exit_code == 0
    assert result.stdout == (EXAMPLE / "gatepost.m4").read_text()


@pytest.mark.parametrize(
    ("milter", "policyd", "filter_address", "map_address"),
    [
        ("unix:/run/a.sock", "unix:/run/b.sock", "local:/run/a.sock", "local:/run/b.sock"),
        ("inet:127.0.0.1:8891", "inet:127.0.0.1:8892", "inet:8891@127.0.0.1", "inet:8892@127.0.0.1"),
        ("inet:[::1]:8891", "inet:[::1]:8892", "inet6:8891@::1", "inet6:8892@::1"),
    ],
)
def test_sockets_are_those_of_the_configuration(
    tmp_path: Path, milter: str, policyd: str, filter_address: str, map_address: str
) -> None:
    listen = f'[milter]\nlisten = "{milter}"\n[policyd]\nlisten = ["{policyd}", "unix:/run/other.sock"]\n'
    printed = setup(tmp_path, BY_MILTER + listen + CONTOSO).stdout
    assert f"\nMAIL_FILTER(`gatepost', `S={filter_address}, F=T, " in printed
    assert f"\nKforward socket -f -q -T<TMPF> {map_address}\nKreverse socket -f -q -T<TMPF> {map_address}\n" in printed
    assert "/run/other.sock" not in printed


def test_rules_have_a_tab_between_their_sides(tmp_path: Path) -> None:
    rules = [line for line in setup(tmp_path, BY_MILTER + CONTOSO).stdout.splitlines() if line.startswith("R")]
    assert len(rules) == 44
    assert all("\t" in rule for rule in rules)


# Notes, on standard error


def notes(result: Result) -> list[str]:
    assert result.exit_code == 0
    return result.stderr.splitlines()


def test_right_configuration_is_told_what_to_put_into_mailertable(tmp_path: Path) -> None:
    assert notes(setup(tmp_path, BY_MILTER + CONTOSO)) == [
        "note: if a server of yours has contoso.com: in mailertable, contoso.com inside:[SERVER]"
    ]


def test_map_without_milter_is_told_who_refuses_nothing(tmp_path: Path) -> None:
    assert notes(setup(tmp_path, CONTOSO))[0] == (
        'note: srs.reverse = "milter" in gatepost.toml lets the milter refuse SRS recipients that are forged or '
        "expired, and mail to them that is no bounce; nothing else here does"
    )


def test_postfixs_folder_is_told_to_be_the_wrong_one(tmp_path: Path) -> None:
    assert notes(setup(tmp_path, f"{BY_MILTER}[milter]\n{CONTOSO}"))[0] == (
        "note: milter.listen, unix:/var/spool/postfix/gatepost/milter.sock, is in Postfix's folder; for Sendmail take "
        "/run/gatepost"
    )


def test_egress_hop_is_told_to_be_postfixs(tmp_path: Path) -> None:
    hop = '[egress]\ntransport = "gatepost-egress:[127.0.0.1]:10027"\n'
    assert notes(setup(tmp_path, BY_MILTER + hop + CONTOSO))[0] == (
        "note: [egress] in gatepost.toml is for Postfix: with it the milter leaves the sender of relayed mail alone"
    )


def test_connectors_without_this_host_are_told_of_sendmail_1(tmp_path: Path) -> None:
    assert notes(setup(tmp_path, BY_MILTER + CONTOSO.replace("127.0.0.0/24", "192.0.2.0/28")))[0] == (
        "note: no connector has 127.0.0.1 in sender_ip_addresses: what programs on this host give to sendmail(1) "
        "comes to the milter from there, and is refused to outside"
    )


# What Sendmail can't do


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[relay]\nenforced_by = "policyd"\n',
            'relay.enforced_by: Sendmail asks no policy daemon, so it must be "milter"',
        ),
        ('[srs]\nreverse = "redirect"\n', 'srs.reverse: Sendmail knows no REDIRECT, so it must be "milter"'),
    ],
)
def test_what_sendmail_cannot_do_is_an_error_of_the_configuration(tmp_path: Path, text: str, problem: str) -> None:
    result = setup(tmp_path, text + CONTOSO)
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines()[-1] == f"gatepost.toml: {problem}"


# --output


def test_file_is_written_and_written_again(tmp_path: Path) -> None:
    output = tmp_path / "gatepost.m4"
    for listen in ("/run/one.sock", "/run/two.sock"):
        text = f'{BY_MILTER}[milter]\nlisten = "unix:{listen}"\n{CONTOSO}'
        result = setup(tmp_path, text, "--output", str(output))
        assert result.stdout == f"{output}: written. The steps stand at its top.\n"
        assert f"S=local:{listen}," in output.read_text()
    assert output.read_text().startswith(FIRST_LINE)


@pytest.mark.parametrize("content", [b"FEATURE(`nocanonify')dnl\n", b"\xff\xfe"])
def test_file_of_somebody_elses_stays(tmp_path: Path, content: bytes) -> None:
    output = tmp_path / "sendmail.mc"
    output.write_bytes(content)
    assert setup(tmp_path, BY_MILTER + CONTOSO, "--output", str(output)).exit_code == 73
    assert output.read_bytes() == content


def test_folder_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    result = setup(tmp_path, BY_MILTER + CONTOSO, "--output", f"{tmp_path}/none/gatepost.m4")
    assert result.exit_code == 73
    assert result.stderr.splitlines()[-1] == f"{tmp_path}/none/gatepost.m4: No such file or directory"
