# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs what comes from Exchange Online's exports: at the start of all, at a reload of those that have changed."""

from __future__ import annotations

from typing import Optional

from gatepost.service import ambiguity, exports, log
from gatepost.service.config import Config

_LINES = 40
"""So many lines of a kind are logged."""


def tell(config: Config, before: Optional[Config] = None) -> None:
    """Log what is taken and left out, and warn of organisations that have no connector left (R6)."""
    if not config.exchange_exports:
        return
    there = before.settings if before else {}
    changed = {
        name: item.exchange_export
        for name, item in config.settings.items()
        if item.exchange_export.paths
        and (name not in there or there[name].exchange_export.records != item.exchange_export.records)
    }
    lines = [line for name, export in changed.items() for line in exports.told(name, export)]
    organizations = {name: config.organizations[name] for name in changed}
    warnings = list(ambiguity.unreachable(organizations, config.settings))
    for tell_one, found in ((log.info, lines), (log.warning, warnings)):
        for line in found[:_LINES]:
            tell_one(line)
        if len(found) > _LINES:
            tell_one(f"and {len(found) - _LINES} more lines on exports, see gatepost config check")
