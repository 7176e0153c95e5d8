# SPDX-License-Identifier: GPL-3.0-or-later
"""Every command in docs/questions.md prints what stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gatepost.admin.command import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```\n\$ gatepost ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = "…\n"
BLOCKS = [found.groups() for found in BLOCK.finditer((ROOT / "docs/questions.md").read_text())]


def test_each_of_the_eight_questions_has_a_command() -> None:
    for part in re.split(r"^## \d\. ", (ROOT / "docs/questions.md").read_text(), flags=re.MULTILINE)[1:]:
        assert BLOCK.search(part), part


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_command_prints_what_is_shown(
    command: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    output = CliRunner().invoke(main, shlex.split(command.replace("\\\n", ""))).output
    pattern = ".*".join(re.escape(part) for part in shown.split(LEFT_OUT))
    assert re.fullmatch(pattern, output, re.DOTALL), output
