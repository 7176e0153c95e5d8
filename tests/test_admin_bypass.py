# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost bypass`: on, off, status, and that it works when little else does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatepost.admin.command import main
from gatepost.service.config import parse
from gatepost.service.snapshot import build
from gatepost.srs import Keys

OFF = "Bypass is off: gatepost judges and rewrites mail as it is configured.\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "gatepost.toml"
    file.write_text(f'state_directory = "{tmp_path}"\n')
    return file


def bypass(file: Path, action: str) -> Result:
    return CliRunner().invoke(main, ["-c", str(file), "bypass", action])


def undated(text: str) -> str:
    return re.sub(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "since THEN", text)


def test_on_says_what_it_means(file: Path) -> None:
    result = bypass(file, "on")
    assert (
        undated(result.output)
        == f"""\
Bypass is ON since THEN ({file.parent}/bypass).
Mail passes gatepost untouched: nothing is refused by it, nothing is rewritten by SRS.
Bounces of mail rewritten before still reach the original senders, by the map.
The MTA's own restrictions are in force as before.
Switch it off with: gatepost bypass off
"""
    )
    assert result.exit_code == 0


def test_on_is_what_the_daemons_look_at(file: Path) -> None:
    snapshot = build(parse({"state_directory": str(file.parent)}, file), Keys([b"key"]), 0.0)
    bypass(file, "on")
    assert snapshot.bypassed()
    bypass(file, "off")
    assert not snapshot.bypassed()


def test_on_twice_is_on(file: Path) -> None:
    first = bypass(file, "on")
    second = bypass(file, "on")
    assert (second.exit_code, second.output) == (0, first.output)


def test_off_twice_is_off(file: Path) -> None:
    bypass(file, "on")
    assert bypass(file, "off").output == OFF
    again = bypass(file, "off")
    assert (again.exit_code, again.output) == (0, OFF.rstrip() + " It was off already.\n")


def test_status_tells_by_exit_status(file: Path) -> None:
    off = bypass(file, "status")
    assert (off.exit_code, off.output) == (0, OFF)
    shown = bypass(file, "on").output
    on = bypass(file, "status")
    assert (on.exit_code, on.output) == (1, shown)


@pytest.mark.parametrize("by", ["redirect", "milter"])
def test_without_the_map_bounces_are_lost_meanwhile_and_that_is_said(file: Path, by: str) -> None:
    file.write_text(file.read_text() + f'[srs]\nreverse = "{by}"\n')
    assert (
        f'Bounces of mail rewritten before do NOT reach the original senders (srs.reverse = "{by}").\n'
        in bypass(file, "on").output
    )


def test_where_policyd_enforces_what_it_lets_relay_stops_and_that_is_said(file: Path) -> None:
    file.write_text(file.read_text() + '[relay]\nenforced_by = "policyd"\n')
    assert (
        "Mail that is relayed because policyd answers OK is refused by Postfix meanwhile.\n"
        in bypass(file, "on").output
    )


def test_a_configuration_with_errors_is_no_obstacle(file: Path) -> None:
    file.write_text(file.read_text() + '[relay]\nmode = "off"\n')
    result = bypass(file, "on")
    assert result.output.startswith('warning: gatepost.toml: relay.mode: "off" is not one of "monitor", "enforce"\n')
    assert result.exit_code == 0
    assert (file.parent / "bypass").exists()


def test_without_a_readable_configuration_the_way_by_hand_is_named(tmp_path: Path) -> None:
    result = bypass(tmp_path / "none.toml", "on")
    assert result.output == (
        f"{tmp_path}/none.toml: cannot be read: No such file or directory\n"
        "bypass: no way to tell the state folder; creating a file named bypass in it does the same by hand\n"
    )
    assert result.exit_code == 78


def test_a_missing_state_folder_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.toml"
    file.write_text(f'state_directory = "{tmp_path}/none"\n')
    result = bypass(file, "on")
    assert result.output == (
        f"{tmp_path}/none/bypass: No such file or directory, so bypass was neither read nor changed\n"
    )
    assert result.exit_code == 73
