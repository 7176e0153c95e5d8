# SPDX-License-Identifier: GPL-3.0-or-later
"""Check of the systemd units: they let the daemons see and write what the configuration names."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gatepost.admin.doctor.host import named_files
from gatepost.admin.doctor.model import Check, Circumstances, Edit, Finding, error, ok
from gatepost.admin.doctor.store import sqlite_file
from gatepost.relay import enumeration
from gatepost.service.config import Config
from gatepost.service.paths import DEFAULT_PATH

_UNITS = ("gatepost-milter.service", "gatepost-policyd.service")
_SHOWN = ("Id", "LoadState", "UnitFileState", "ProtectHome", "ProtectSystem", "StateDirectory", "RuntimeDirectory")
_OPENED = ("ReadWritePaths", "BindPaths", "BindReadOnlyPaths")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


def unit(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the daemons' units let them see and write what the configuration names."""
    config = circumstances.config
    if str(config.path) != DEFAULT_PATH:
        return  # another one than the units'
    try:
        command = ["systemctl", "show", "-p", ",".join((*_SHOWN, *_OPENED)), *_UNITS]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return  # no systemd here, as in containers
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    there = [item for item in units if item.get("LoadState") == "loaded" and item.get("UnitFileState") != "disabled"]
    found = list(judged_units(there, *_paths(config)))
    yield from found
    if there and not found:
        yield ok("the units let the daemons read and write what the configuration names")


def _paths(config: Config) -> tuple[list[Path], list[Path]]:
    """Return what the daemons read, and the folders that they write."""
    sockets = [Path(listen.path).parent for listen in (config.milter.listen, *config.policyd.listen) if listen.path]
    store = sqlite_file(config)
    written = [config.state_directory, *([store.parent] if store else []), *sockets]
    return [config.path, config.srs.secret_file, *named_files(config)], list(dict.fromkeys(written))


def judged_units(
    units: Sequence[Mapping[str, str]], read: Sequence[Path], written: Sequence[Path]
) -> Iterator[Finding]:
    """Yield what is to be said of units with these properties (systemctl(1), show), and files and folders."""
    hidden, closed = {item["Id"]: _hidden(item, [*read, *written]) for item in units}, {}
    for item in units:
        closed[item["Id"]] = [path for path in _read_only(item, written) if path not in hidden[item["Id"]]]
    for names, paths in _alike(hidden):
        yield error(
            f"ProtectHome of {enumeration(names)} hides {enumeration(paths)} from the daemons",
            "They do not start, or go on without it.",
            Edit("put it below /etc/gatepost, to read, or /var/lib/gatepost, to write"),
            Edit(f"systemctl edit {' '.join(names)}: [Service] ProtectHome=read-only, if it must be there"),
        )
    for names, paths in _alike(closed):
        yield error(
            f"ProtectSystem of {enumeration(names)} lets the daemons write nothing below {enumeration(paths)}",
            "What is to be kept there is lost, mail is put off, or they do not start.",
            Edit(f"systemctl edit {' '.join(names)}: [Service] ReadWritePaths={' '.join(paths)}"),
            f"systemctl restart {' '.join(names)}",
        )


def _hidden(unit: Mapping[str, str], paths: Sequence[Path]) -> list[Path]:
    """Return which of *paths* the daemon does not see."""
    if unit.get("ProtectHome") not in ("yes", "tmpfs"):
        return []
    bound = _targets(unit, "BindPaths") + _targets(unit, "BindReadOnlyPaths")
    return [path for path in paths if _below(path, _HOMES) and not _below(path, bound)]


def _read_only(unit: Mapping[str, str], folders: Sequence[Path]) -> list[Path]:
    """Return which of *folders* the daemon may not write."""
    if unit.get("ProtectSystem") != "strict":
        return []
    own = [Path("/var/lib", word) for word in unit.get("StateDirectory", "").split()]
    own += [Path("/run", word) for word in unit.get("RuntimeDirectory", "").split()]
    writable = [*own, *_targets(unit, "ReadWritePaths"), *_targets(unit, "BindPaths")]
    return [folder for folder in folders if not _below(folder, writable)]


def _alike(found: Mapping[str, Sequence[Path]]) -> list[tuple[list[str], list[str]]]:
    """Return the units for which the same paths were found, and these."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, paths in found.items():
        if paths:
            names.setdefault(tuple(map(str, paths)), []).append(name.removesuffix(".service"))
    return [(items, list(paths)) for paths, items in names.items()]


def _targets(unit: Mapping[str, str], name: str) -> list[Path]:
    return [_target(word) for word in unit.get(name, "").split()]


def _target(word: str) -> Path:
    """Return where an entry of ReadWritePaths= or BindPaths= is seen."""
    source, _, rest = word.lstrip("-+").partition(":")
    return Path(rest.partition(":")[0] or source)


def _below(path: Path, folders: Sequence[Path]) -> bool:
    real = path.resolve()
    return any(folder.resolve() in (real, *real.parents) for folder in folders)


CHECKS = (Check("unit-sandbox", "Host", unit),)
