# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: run targets, print a line for each and every finding in full."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from .daemons import DAEMONS
from .engine import Report, Target, run
from .targets import TARGETS

HANGS_S = 60
MEMORY_OCTETS = 2 << 30
INPUTS_FOR_A_SESSION = 100


def main() -> int:
    """Return the exit status: 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description="Fuzz what reads octets of others.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="targets and daemons, all where none is named")
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="for each target (%(default)s); a daemon gets a session for 100"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same inputs (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the targets and what is checked of each input")
    parser.add_argument("--outcomes", action="store_true", help="say what became of the inputs")
    options = parser.parse_args()
    daemons = {f"{name}-daemon": attack for name, attack in DAEMONS.items()}
    unknown = [name for name in options.names if name not in {*TARGETS, *daemons}]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such target; there are {', '.join((*TARGETS, *daemons))}")
    for name, attack in daemons.items():
        if name in options.names or not (options.names or options.list):
            with TemporaryDirectory(prefix="gatepost-fuzz-") as folder:
                told = attack(Path(folder), options.inputs // INPUTS_FOR_A_SESSION, options.seed)
            print(f"{name}: {told}", flush=True)
    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.append(number))  # a target then tells what it came to so far
    signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_OCTETS, MEMORY_OCTETS))
    found = False
    with TemporaryDirectory(prefix="gatepost-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name in [name for name in options.names if name in TARGETS] if options.names else TARGETS:
            own = Path(folder) / name
            own.mkdir()
            target = TARGETS[name](own)
            if options.list:
                print(f"{name}: {target.what}\n    {target.oracle}")
            else:
                found = _told(target, options, ended) or found
            target.close()
    return int(found)


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"inputs take more than {HANGS_S} s")


def _told(target: Target, options: argparse.Namespace, ended: list[int]) -> bool:
    """Run *target* and say what came of it; return whether anything was found."""

    def goes_on() -> bool:
        signal.alarm(HANGS_S)
        return not ended

    began, before = time.monotonic(), _peak_mib()
    report = run(target, options.inputs, options.seed, goes_on=goes_on)
    signal.alarm(0)
    _print(target, report, time.monotonic() - began, _peak_mib() - before)
    if options.outcomes:
        for outcome, count in report.outcomes.most_common():
            print(f"    {count:9} {outcome.encode('ascii', 'backslashreplace').decode()}")
    return bool(report.findings)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print(target: Target, report: Report, seconds: float, grown_mib: float) -> None:
    print(
        f"{target.name}: {report.inputs:,} inputs in {seconds:.0f} s, {len(report.outcomes)} kinds of outcome, slowest "
        f"{1000 * report.slowest_s:.0f} ms, memory +{grown_mib:.0f} MiB, findings: {len(report.findings)}"
    )
    for finding in report.findings.values():
        print(f"--- {target.name}: {finding.where}\n{_brief(finding.octets)}\n{finding.told}")
    sys.stdout.flush()


def _brief(octets: bytes) -> str:
    return repr(octets) if len(octets) <= 2000 else f"{octets[:1000]!r} … {octets[-500:]!r} ({len(octets)} octets)"


if __name__ == "__main__":
    sys.exit(main())
