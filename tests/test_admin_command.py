# SPDX-License-Identifier: GPL-3.0-or-later
"""The `gatepost` command as a shell sees it: help, version, what it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gatepost.admin.command import main
from gatepost.service.version import __version__

ROOT = Path(__file__).parent.parent
ROOTS = ("srs", "relay", "service", "milter", "policyd", "admin")


CONFIG = """
state_directory = "{folder}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*(str(ROOT / root) for root in ROOTS), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_the_version_is_known_without_installation() -> None:
    done = run("-m", "gatepost.admin", "--version")
    assert (done.stdout, done.returncode) == (f"gatepost {__version__}\n", 0)


def test_help_calls_the_command_by_its_name() -> None:
    assert run("-m", "gatepost.admin", "--help").stdout.startswith("Usage: gatepost [OPTIONS] COMMAND [ARGS]...\n")


def loaded_by(*arguments: str) -> set[str]:
    """The names of all modules that a command loads."""
    code = (
        "import sys; there = {*sys.modules}; from gatepost.admin.command import main\n"
        f"try: main({[*arguments]!r})\n"
        "except SystemExit: print(*{*sys.modules} - there)"
    )
    return set(run("-c", code).stdout.splitlines()[-1].split())


def test_help_loads_nothing_but_the_commands_and_their_options() -> None:
    loaded = [name for name in loaded_by("--help") if name.startswith("gatepost")]
    assert sorted(name for name in loaded if not name.startswith("gatepost.admin.command")) == [
        "gatepost",
        "gatepost.admin",
        "gatepost.admin.garbage",
        "gatepost.admin.options",
        "gatepost.service",
        "gatepost.service.paths",
        "gatepost.service.version",
    ]


def test_a_subcommand_loads_no_other_ones_options() -> None:
    loaded = [name for name in loaded_by("check", "--help") if name.startswith("gatepost.admin.command")]
    assert sorted(loaded) == ["gatepost.admin.command", "gatepost.admin.command_check"]


NOT_LOADED = {
    *("asyncio", "concurrent.futures", "cryptography", "csv", "difflib", "dns", "email", "http", "jinja2", "logging"),
    *("milter", "prometheus_client", "random", "rich", "secrets", "socket", "spf", "sqlalchemy", "subprocess", "uuid"),
    *("gatepost.milter", "gatepost.policyd", "gatepost.relay.exchange_export", "gatepost.service.store"),
}
"""Each takes time to load, of the tenth of a second that a short command may take."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["check", "--ip", "192.0.2.5", "--mail-from", "app@vendor.example", "--rcpt", "someone@example.com"],
    ],
    ids=" ".join,
)
def test_a_short_command_loads_no_more_than_it_needs(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "gatepost.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    assert NOT_LOADED & loaded_by("--config", str(config), *arguments) == set()


def test_a_short_command_never_looks_for_garbage_and_a_daemon_as_python_does(tmp_path: Path) -> None:
    code = (
        "import gc; from gatepost.admin import garbage; usual = gc.get_threshold()\n"
        "garbage.look_seldom(); seldom = gc.get_threshold()\n"
        "from gatepost.admin.command import main\n"
        f"try: main(['-c', {str(tmp_path / 'missing.toml')!r}, 'milter'])\n"
        "except SystemExit: print(seldom > usual, gc.get_threshold() == usual)"
    )
    assert run("-c", code).stdout == "True True\n"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    below = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [path, *(item for name, sub in below if sub for item in commands(sub, (*path, name)))]


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], prog_name="gatepost")
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("path", [item for item in commands(main) if item], ids=" ".join)
def test_the_manual_has_every_subcommand(path: tuple[str, ...]) -> None:
    assert " ".join(path) in " ".join((ROOT / "packaging/man/gatepost.8").read_text().split())


def test_wrong_usage_ends_with_64() -> None:
    result = CliRunner().invoke(main, ["bypass", "maybe"])
    assert result.exit_code == 64
    assert result.output.endswith(
        "Error: Invalid value for '[on|off|status]': 'maybe' is not one of 'on', 'off', 'status'.\n"
    )


def test_a_daemon_with_a_wrong_configuration_ends_with_78() -> None:
    done = run("-m", "gatepost.admin", "-c", "/nonexistent.toml", "run")
    assert done.returncode == 78
    assert done.stderr.endswith("error: /nonexistent.toml: cannot be read: No such file or directory\n")
