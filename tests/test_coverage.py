# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests of the core run all of it, branch by branch; tests/coverage measures the shells, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent


@pytest.mark.timeout(300)
def test_tests_with_written_out_cases_run_every_branch_of_srs_and_relay() -> None:
    done = subprocess.run(
        [TOP / "tests/coverage", "--core"],
        env={**os.environ, "GATEPOST_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stdout.count("100 %") == 2


@pytest.mark.timeout(300)
def test_mutants_of_a_module_are_all_killed() -> None:
    environment = {**os.environ, "GATEPOST_PYTHON": sys.executable}
    command = [str(TOP / "tests/mutation/run"), "srs/stamp.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "srs/gatepost/srs/stamp.py: {'killed': " in done.stdout
