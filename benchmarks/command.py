# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell's command: how long `gatepost …` takes from its start to its end, against `python3 -c pass`.

As the packages install it: the six source roots are one folder, the bytecode is there already, and the script is what
the installer writes for an entry point. Each value is the wall time of one run; the two programs take turns.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.figures import AT_MOST, Effort, Figure, in_turn
from benchmarks.installation import ROOTS, TOP

RUNS_A_ROUND = 6
SCRIPT = """
import re
import sys
from gatepost.admin.__main__ import main
if __name__ == "__main__":
    sys.argv[0] = re.sub(r"(-script\\.pyw|\\.exe)?$", "", sys.argv[0])
    sys.exit(main())
"""
CONFIG = """
state_directory = "{folder}"
[[organization]]
name = "contoso"
[[organization.accepted_domain]]
domain = "contoso.com"
default = true
[[organization.connector]]
name = "head office"
sender_ip_addresses = ["192.0.2.0/28"]
"""
SRS_ADDRESS = "bounces+SRS=y3gtqm6c=CB=fabrikam.com=bob@contoso.com"
COMMANDS: tuple[tuple[str, Sequence[str], int, float], ...] = (
    ("--help", ["--help"], 0, 4.0),
    (
        "check",
        ["check", "--ip", "192.0.2.5", "--mail-from", "app@vendor.example", "--rcpt", "someone@example.com"],
        1,
        8.0,
    ),
    ("--version", ["--version"], 0, 0.0),
    ("config check", ["config", "check"], 0, 0.0),
    ("srs reverse", ["srs", "reverse", SRS_ADDRESS], os.EX_DATAERR, 0.0),
)
"""Name, arguments, exit status, and at most how many times `python3 -c pass` (0: for the record)."""


def run(effort: Effort) -> Iterable[Figure]:
    """Yield the wall time of each of COMMANDS in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="gatepost-command-") as name:
        folder = Path(name)
        environment = installed(folder)
        empty = partial(milliseconds, [sys.executable, "-c", "pass"], 0, environment)
        start = [sys.executable, str(folder / "bin" / "gatepost")]
        subprocess.run([*start, "srs", "init"], env=environment, stdout=subprocess.DEVNULL, check=True)
        for command, arguments, status, target in COMMANDS:
            ours = partial(milliseconds, [*start, *arguments], status, environment)
            ours()  # what is read from the disk the first time is in memory then
            times, theirs = in_turn(RUNS_A_ROUND * effort.rounds, ours, empty)
            yield Figure(
                f"gatepost {command}", "ms", times, "python3 -c pass", theirs, target=target or None, bound=AT_MOST
            )


def installed(folder: Path) -> dict[str, str]:
    """Install gatepost and a configuration into *folder*; return the environment that it runs in."""
    for root in ROOTS:
        shutil.copytree(
            TOP / root / "gatepost",
            folder / "lib" / "gatepost",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    compileall.compile_dir(str(folder / "lib"), quiet=1)
    (folder / "bin").mkdir()
    (folder / "bin" / "gatepost").write_text(SCRIPT)
    state, config = folder / "state", folder / "gatepost.toml"
    state.mkdir()
    config.write_text(CONFIG.format(folder=state))
    return {**os.environ, "PYTHONPATH": str(folder / "lib"), "GATEPOST_CONFIG": str(config)}


def milliseconds(command: Sequence[str], status: int, environment: dict[str, str]) -> float:
    """Run *command*; return the wall time. Raises RuntimeError where it does not end with *status*."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    spent = (time.perf_counter() - start) * 1000
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.decode()}")
    return spent
