# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor`: how checks are run, how what they find is shown, and its exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click import unstyle
from click.testing import CliRunner
from doctors import circumstances, texts

from gatepost.admin.command import main
from gatepost.admin.doctor import model
from gatepost.admin.doctor import output as doctor_output
from gatepost.admin.doctor import run as doctor
from gatepost.admin.doctor.model import (
    AbsentError,
    Check,
    Circumstances,
    Edit,
    Finding,
    Severity,
    error,
    info,
    ok,
    warning,
)
from gatepost.admin.sandbox import temporary_root

FOUND = [
    Finding(Severity.OK, "bypass is off", check="bypass"),
    Finding(Severity.WARNING, "the key is 400 days old", "It may be known.", ("gatepost srs rotate",), "key-age"),
    Finding(Severity.ERROR, "no answer at /run/milter.sock", "Mail waits.", ("systemctl start gatepost",), "socket"),
    Finding(Severity.UNKNOWN, "DNS does not answer", check="spf"),
]
GROUPS = {"bypass": "Configuration", "key-age": "Host", "socket": "Postfix", "spf": "DNS"}


def broken(_: Circumstances) -> Iterator[Finding]:
    yield ok("so far")
    raise ValueError("no such thing")


def absent(_: Circumstances) -> Iterator[Finding]:
    raise AbsentError
    yield


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on() -> None:
    checks = [Check("one", "Host", broken), Check("two", "Host", lambda _: iter([ok("well")]))]
    found = doctor.findings(circumstances(), checks)
    assert [(item.check, item.severity, item.what) for item in found] == [
        ("one", Severity.OK, "so far"),
        ("one", Severity.UNKNOWN, "this could not be checked: ValueError: no such thing"),
        ("two", Severity.OK, "well"),
    ]


def test_a_check_of_what_is_absent_is_left_out() -> None:
    assert doctor.findings(circumstances(), [Check("one", "Host", absent)]) == []


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], 0),
        ([ok("a"), info("b")], 0),
        ([ok("a"), Finding(Severity.UNKNOWN, "b")], 1),
        ([warning("a", "b")], 1),
        ([warning("a", "b"), error("c", "d"), ok("e")], 2),
    ],
)
def test_the_worst_finding_decides_the_exit_status(found: list[Finding], status: int) -> None:
    assert doctor.exit_status(found) == status


def test_the_worst_stands_first_with_why_and_what_to_paste() -> None:
    assert (
        unstyle(doctor_output.as_text(FOUND, GROUPS, quiet=False))
        == """\
ERROR socket
  no answer at /run/milter.sock
  Why: Mail waits.
  Do:  systemctl start gatepost

WARNING key-age
  the key is 400 days old
  Why: It may be known.
  Do:  gatepost srs rotate

UNKNOWN spf
  DNS does not answer

Configuration: well
  - bypass is off

1 error, 1 warning, 1 that could not be looked at, 1 well."""
    )


def test_quiet_leaves_out_what_is_well_and_what_is_only_told() -> None:
    text = unstyle(doctor_output.as_text([*FOUND, info("mode monitor")], GROUPS, quiet=True))
    assert "bypass is off" not in text
    assert "mode monitor" not in text
    assert "ERROR socket" in text


def test_a_command_is_never_wrapped() -> None:
    command = "postconf -e 'virtual_alias_maps = " + "x" * 90 + " y'"
    assert f"  Do:  {command}\n" in doctor_output.as_text([error("a", "b", command)], {}, quiet=False)


def test_what_is_to_be_edited_is_told_apart_from_commands() -> None:
    finding = warning("a", "b", Edit("gatepost.toml: c = 1"), Edit("in DNS: d"), "gatepost config check", "reload")
    assert "\n".join(doctor_output.as_text([finding], {}, quiet=True).splitlines()[3:7]) == (
        "  Edit: gatepost.toml: c = 1\n        in DNS: d\n  Do:  gatepost config check\n       reload"
    )
    (row,) = json.loads(doctor_output.as_json([finding], {}, 1))["findings"]
    assert (row["remedy"], row["edit"]) == (
        ["gatepost config check", "reload"],
        ["gatepost.toml: c = 1", "in DNS: d"],
    )


def test_commands_are_for_the_configuration_and_the_instance_that_were_given() -> None:
    here = circumstances(path=Path("/etc/my gatepost.toml"), config_directory=Path("/etc/postfix-out"))
    assert model.again(here) == "gatepost -c '/etc/my gatepost.toml' doctor --config-directory /etc/postfix-out"
    assert model.as_root(here) == f"sudo {model.again(here)}"
    assert model.reload_postfix(here) == "postfix -c /etc/postfix-out reload"
    assert model.again(circumstances(path=Path("/etc/gatepost/gatepost.toml"))) == "gatepost doctor"


def test_json_has_every_finding_in_the_order_of_the_checks() -> None:
    document = json.loads(doctor_output.as_json(FOUND, GROUPS, 2))
    assert (document["severity"], document["exit_status"]) == ("error", 2)
    assert [row["check"] for row in document["findings"]] == ["bypass", "key-age", "socket", "spf"]
    assert document["findings"][2] == {
        "check": "socket",
        "group": "Postfix",
        "severity": "error",
        "what": "no answer at /run/milter.sock",
        "why": "Mail waits.",
        "remedy": ["systemctl start gatepost"],
        "edit": [],
    }


def test_a_configuration_that_cannot_be_used_is_a_finding_a_problem_and_exit_status_78(tmp_path: Path) -> None:
    path = tmp_path / "gatepost.toml"
    path.write_text('colour = "red"\n[relay]\nmode = "off"\n')
    done = CliRunner().invoke(main, ["-c", str(path), "doctor", "--json"])
    document = json.loads(done.stdout)
    assert (done.exit_code, document["exit_status"], document["severity"]) == (78, 78, "error")
    assert [row["what"] for row in document["findings"]] == [
        'gatepost.toml: relay.mode: "off" is not one of "monitor", "enforce"',
        "gatepost.toml: colour: unknown key",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["gatepost.toml", "srs.secret"])
def test_what_this_user_may_not_read_is_unknown_and_the_rest_is_checked(closed: str) -> None:
    with temporary_root() as root:
        (root / "srs.secret").write_text("0123456789abcdef\n")
        (root / "gatepost.toml").write_text(f'state_directory = "{root}"\n')
        (root / "srs.secret").chmod(0o600)
        (root / "gatepost.toml").chmod(0o644)
        (root / closed).chmod(0o600)
        os.setresuid(65534, 65534, 0)
        try:
            done = CliRunner().invoke(main, ["-c", f"{root}/gatepost.toml", "doctor", "--json"])
        finally:
            os.setresuid(0, 0, 0)
    rows = json.loads(done.stdout)["findings"]
    sudo = f"sudo gatepost -c {root}/gatepost.toml doctor"
    if closed == "gatepost.toml":
        assert done.exit_code == 78
        (row,) = rows
        assert (row["check"], row["severity"], row["remedy"]) == ("configuration", "unknown", [sudo])
    else:
        assert done.exit_code in (1, 2)
        assert len(rows) > 5
        (keys,) = [row for row in rows if row["check"] == "keys"]
        assert (keys["severity"], keys["what"]) == ("unknown", f"{root}/srs.secret may not be read by this user")


def test_without_a_configuration_one_can_be_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["-c", f"{tmp_path}/gatepost.toml", "doctor", "--json"])
    (row,) = json.loads(done.stdout)["findings"]
    assert (done.exit_code, row["remedy"]) == (78, [f"gatepost -c {tmp_path}/gatepost.toml config init"])


def test_names_of_checks_are_unique_and_for_programs() -> None:
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in names)


def test_the_manual_has_every_check() -> None:
    manual = (Path(__file__).parents[1] / "packaging/man/gatepost.8").read_text()
    section = manual.partition(".Sh DOCTOR\n")[2].partition("\n.Sh ")[0]
    told = [line[len(".It ") :] for line in section.splitlines() if line.startswith(".It ")]
    assert sorted(told) == sorted(check.name for check in doctor.CHECKS)


# Configuration


def test_configuration_without_warnings_is_well() -> None:
    assert texts(circumstances(), "configuration") == ["ok: gatepost.toml can be used"]


def test_what_config_check_warns_of_is_a_warning() -> None:
    (found,) = texts(circumstances({"policyd": {"tcp_table_forward": ["unix:/run/x"]}}), "configuration")
    assert found.startswith("warning: gatepost.toml: policyd.tcp_table_forward[0]: Postfix asks a tcp_table by TCP")


def test_without_an_organization_gatepost_does_nothing() -> None:
    assert texts(circumstances({"organization": []}), "organizations") == ["warning: no organization is declared"]
    assert texts(circumstances(), "organizations") == ["ok: organizations: contoso"]


def test_mode_monitor_is_told() -> None:
    assert texts(circumstances({"relay": {"mode": "monitor"}}), "mode") == ["info: mode monitor for contoso"]
    assert texts(circumstances(), "mode") == ["ok: mode enforce for every organization"]


def test_a_switch_within_two_weeks_is_told() -> None:
    announced = {"relay": {"mode": "monitor", "enforce_from": datetime(2026, 9, 1, tzinfo=timezone.utc)}}
    assert texts(circumstances(announced, now=1_788_000_000), "enforce-from") == [
        "info: mode enforce from 1 September 2026, 00:00 UTC on for contoso"
    ]
    assert texts(circumstances(announced, now=1_786_000_000), "enforce-from") == []


def test_mode_is_enforce_once_enforce_from_has_come() -> None:
    announced = {"relay": {"mode": "monitor", "enforce_from": datetime(2026, 9, 1, tzinfo=timezone.utc)}}
    assert texts(circumstances(announced, now=1_788_000_000), "mode") == ["info: mode monitor for contoso"]
    assert texts(circumstances(announced, now=1_789_000_000), "mode") == ["ok: mode enforce for every organization"]


def test_bypass_is_a_warning(tmp_path: Path) -> None:
    here = circumstances({"state_directory": str(tmp_path)})
    assert texts(here, "bypass") == ["ok: bypass is off"]
    (tmp_path / "bypass").touch()
    assert texts(here, "bypass") == [f"warning: bypass is on ({tmp_path}/bypass)"]
