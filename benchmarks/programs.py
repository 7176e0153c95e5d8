# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs under measurement: compiled, started, waited for, asked what they use, stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

TIMEOUT_S = 20.0
POLL_S = 0.01


def cache() -> Path:
    """Return the folder below which peers are unpacked and C programs compiled."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatepost"


def unpacked(name: str) -> Path:
    """Return the folder of what packaging/fetch-peers has unpacked as *name*. Raises FileNotFoundError."""
    folders = sorted(cache().glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        raise FileNotFoundError(f"no {cache()}/{name}-*: run packaging/fetch-peers")
    return folders[-1]


def compiled(name: str, *libraries: str) -> Path:
    """Return the program made of benchmarks/*name*.c, which is compiled unless that has been done already."""
    source = Path(__file__).with_name(f"{name}.c")
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = cache() / "benchmarks" / f"{name}-{checksum}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        draft = program.with_name(f"{program.name}.{os.getpid()}")
        options = ["-O2", "-Wall", "-Wextra", "-o", str(draft), str(source)]
        subprocess.run(["gcc", *options, *(f"-l{library}" for library in libraries)], check=True)
        draft.rename(program)  # one that another process has made meanwhile is the same
    return program


def answer(command: Sequence[str], timeout_s: float = 600.0) -> dict[str, Any]:
    """Run a load generator and return the JSON object that it prints. Raises subprocess.CalledProcessError."""
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=timeout_s).stdout))


class Program:
    """A program in a process group of its own, what it prints in *log_file*. A context manager: started, then stopped.

    address: the Unix socket (a path) or TCP port of 127.0.0.1 that it will listen on; `start` waits for that.
    ended_by: SIGKILL for one that takes long to end, as those on libmilter do.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_file: Path,
        *,
        address: Optional[Union[Path, int]] = None,
        environment: Optional[Mapping[str, str]] = None,
        ended_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.command = [str(word) for word in command]
        self.log_file = log_file
        self._address = address
        self._environment = environment
        self._ended_by = ended_by
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Program:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, with an empty log; return when it listens. Raises RuntimeError where it does not."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **(self._environment or {})},
                cwd=self.log_file.parent,  # python -m looks for modules in the current folder first
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if self._address is not None:
            try:
                self.wait_for_address(self._address)
            except RuntimeError:
                self.stop()
                raise

    def stop(self) -> None:
        """End it; whatever is left of its group then is killed."""
        if self._process is None:
            return
        self._process.send_signal(self._ended_by)
        try:
            self._process.wait(TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_S)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_file.read_text(errors="replace")

    def wait_for_address(self, address: Union[Path, int]) -> None:
        """Return when it takes connections at *address*. Raises RuntimeError."""
        self._wait(lambda: listens(address), f"nobody listens at {address}")

    def wait_for_log(self, pattern: str) -> None:
        """Return when a line of the log has *pattern* in it. Raises RuntimeError."""
        self._wait(lambda: re.search(pattern, self.log, re.MULTILINE), f"no line {pattern!r}")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(self.command)}: {what}; its log ends:\n{self.log[-2000:]}")
            time.sleep(POLL_S)

    def processes(self) -> list[int]:
        """Return it and all its descendants."""
        return tree(self.pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds that it and its descendants have used; of those only that still run."""
        return cpu_s(self.processes())

    def pss_bytes(self) -> int:
        """Return the memory that it and its descendants take, what they share counted once."""
        return pss_bytes(self.processes())


def listens(address: Union[Path, int]) -> bool:
    """Tell whether somebody takes connections at a Unix socket or TCP port of 127.0.0.1."""
    unix = isinstance(address, Path)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
        return probe.connect_ex(str(address) if unix else ("127.0.0.1", address)) == 0


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants that run."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes have used, their threads that have ended included; 0 for one that is gone.

    The kernel counts in nanoseconds here (clock_getcpuclockid(3)), and in ticks in /proc/PID/stat.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | 2)
    return total


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size of processes together (proc(5)); 0 for one that is gone."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
