# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: run the named benchmarks, or all, print a table and write JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Effort, Figure

MODULES = {
    "command": "the shell's command: start of Python included",
    "srs": "SRS addresses in one process, against pysrs and Mail::SRS",
    "verdicts": "the relay verdict with 1, 100 and 10,000 organizations",
    "reload": "a reload with 10,000 organizations, under load",
    "memory": "the memory of a whole installation",
    "lookups": "maps and policy requests, against postsrsd",
    "milter": "the milter, against a C milter that does nothing and against opendkim",
    "postfix": "a Postfix with gatepost, against the same without; the egress hop",
    "loader": "the ledger's loader at the milter's full rate (5 minutes)",
    "growth": "how cost grows with organizations, recipients, keys and ledger rows",
}
"""Each is a module with `run(effort) -> Iterable[Figure]`."""


def main() -> int:
    known = "\n".join(f"  {name:10} {text}" for name, text in MODULES.items())
    parser = argparse.ArgumentParser(
        prog="benchmarks/run",
        description=f"Measure gatepost, each pair of programs in turn.\n\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: all of it)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program has its turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a turn is (default: 3)")
    parser.add_argument("--json", type=Path, default=Path("dist/benchmarks.json"), metavar="FILE", help="%(default)s")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(MODULES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(MODULES)}")
    effort = Effort(arguments.rounds, arguments.seconds)
    found: dict[str, list[Figure]] = {}
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name in arguments.names or MODULES:
        print(f"{name}: {MODULES[name]} …", file=sys.stderr, flush=True)
        found[name] = list(importlib.import_module(f"benchmarks.{name}").run(effort))
        console.print(table(name, found[name]))
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document(effort, found), indent=2) + "\n")
    print(f"written: {arguments.json}", file=sys.stderr)
    missed = [figure for figures in found.values() for figure in figures if figure.met is False]
    return 1 if missed else 0


def table(name: str, figures: Iterable[Figure]) -> Table:
    """Return the table of one benchmark: medians, and the spread of the ratios in parentheses."""
    shown = Table(title=name, title_justify="left")
    shown.add_column("what", ratio=1)
    for heading in ("gatepost", "peer", "ratio", "target", ""):
        shown.add_column(heading, justify="right" if heading else "left")
    for figure in figures:
        ratio = ""
        if figure.theirs:
            low, high = min(figure.ratios), max(figure.ratios)
            ratio = f"{figure.result:.2f} ({low:.2f} to {high:.2f})"
        target = "" if figure.target is None else f"{figure.bound} {figure.target:g}"
        peer = f"{_number(statistics.median(figure.theirs))} {figure.peer}" if figure.theirs else ""
        shown.add_row(
            figure.what + (f" ({figure.note})" if figure.note else ""),
            f"{_number(statistics.median(figure.ours))} {figure.unit}",
            peer,
            ratio,
            target,
            {True: "met", False: "MISSED", None: ""}[figure.met],
        )
    return shown


def document(effort: Effort, found: dict[str, list[Figure]]) -> dict[str, Any]:
    """Return what is written as JSON: every value of every round."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "kernel": platform.release(), "cpu": _cpu()},
        "python": platform.python_version(),
        "rounds": effort.rounds,
        "seconds": effort.seconds,
        "benchmarks": {
            name: [{**vars(figure), "result": figure.result, "met": figure.met} for figure in figures]
            for name, figures in found.items()
        },
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    sys.exit(main())
