# SPDX-License-Identifier: GPL-3.0-or-later
"""Shell completion: what the packages put into the shells' folders, in the shells that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemonprocess import ROOTS


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which `gatepost` is on the PATH."""
    gatepost = tmp_path / "bin" / "gatepost"
    gatepost.parent.mkdir()
    gatepost.write_text(f'#!/bin/sh\nexec {sys.executable} -m gatepost.admin "$@"\n')
    gatepost.chmod(0o755)
    return {**os.environ, "PATH": f"{gatepost.parent}:{os.environ['PATH']}", "PYTHONPATH": ":".join(ROOTS)}


def source(shell: str, environment: dict[str, str]) -> str:
    asked = {**environment, "_GATEPOST_COMPLETE": f"{shell}_source"}
    return subprocess.run(["gatepost"], env=asked, capture_output=True, text=True, check=True, timeout=30).stdout


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last of *words*."""
    ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _gatepost_completion "$1"; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"source /dev/stdin; {ask}", "bash", "gatepost", *words],
        input=source("bash", environment),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("exp",), ["explain"]),
        (("srs", "r"), ["reverse", "rotate"]),
        (("report", "start", "--type", "P"), ["P2SenderAttribution"]),
        (("bypass", "o"), ["on", "off"]),
        (("check", "--certificate"), ["--certificate", "--certificate-file"]),
    ],
)
def test_bash_completes_subcommands_options_and_values(
    environment: dict[str, str], words: tuple[str, ...], offered: list[str]
) -> None:
    assert completed(environment, *words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_each_shell_is_valid(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(source(shell, environment))
    assert "_gatepost_completion" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True, timeout=30)
