# SPDX-License-Identifier: GPL-3.0-or-later
"""What a supervisor has loaded, kept in a small file beside its metrics for `gatepost status` and `gatepost doctor`.

The configuration file tells what would be loaded. It may be newer, wrong, or an older one put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Optional

from gatepost.service.organizations import Mode, OrganizationConfig
from gatepost.service.regular import read_regular

ModeSince = tuple[Mode, Optional[datetime]]
"""A mode, and the enforce_from that it goes by instead where there is one."""


@dataclass(frozen=True)
class Loaded:
    """digest: of the configuration file as it was loaded; modes: by organization."""

    digest: str
    modes: dict[str, ModeSince]


def digest_of(path: Path) -> str:
    """Return what tells the content of *path* from others, "" where it can't be read."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except OSError:
        return ""


def modes_of(settings: Mapping[str, OrganizationConfig]) -> dict[str, ModeSince]:
    """Return the organizations' modes."""
    return {name: (item.mode, item.enforce_from) for name, item in settings.items()}


def file_of(folder: Path, supervisor: str) -> Path:
    """The file of a supervisor, by its name, in the folder of the metrics."""
    return folder / f"supervisor.{supervisor}.json"


def keep(file: Path, loaded: Loaded) -> None:
    """Write *loaded*. Where that fails there is no file: that must not stop mail."""
    modes = {name: (mode.value, at.isoformat() if at else None) for name, (mode, at) in loaded.modes.items()}
    fresh = file.with_suffix(".json-new")
    try:
        fresh.write_text(json.dumps({"digest": loaded.digest, "modes": modes}), "utf-8")
        os.replace(fresh, file)
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink()


def read(file: Path) -> Optional[Loaded]:
    """Return what `keep` wrote, None where that can't be told."""
    try:
        found = json.loads(file.read_text("utf-8"))
        modes = {
            name: (Mode(mode), datetime.fromisoformat(at) if at else None)
            for name, (mode, at) in found["modes"].items()
        }
        return Loaded(str(found["digest"]), modes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
