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


def test_help_loads_nothing_but_the_commands_and_their_options() -> None:
    code = "import sys; from gatepost.admin.command import main; print(*(n for n in sys.modules if 'gatepost' in n))"
    loaded = run("-c", code).stdout.split()
    assert sorted(name for name in loaded if not name.startswith("gatepost.admin.command")) == [
        "gatepost",
        "gatepost.admin",
        "gatepost.admin.options",
        "gatepost.service",
        "gatepost.service.paths",
        "gatepost.service.version",
    ]


def test_check_loads_no_heavy_library() -> None:
    code = (
        "import sys; from gatepost.admin.command import main\n"
        "try: main(['-c', 'none', 'check', '--mail-from', '', '--rcpt', 'a@b.example'])\n"
        "except SystemExit: print(*{'rich', 'cryptography', 'prometheus_client', 'dns', 'spf', 'sqlalchemy', 'asyncio',"
        " 'milter'} & {*sys.modules})"
    )
    assert run("-c", code).stdout == "\n"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    return [path, *(item for name, sub in command.commands.items() for item in commands(sub, (*path, name)))]


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
