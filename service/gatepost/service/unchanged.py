# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads a configuration file again without reading those of its organizations that have not changed.

Reading TOML and checking what it says is most of what a reload takes, and of thousands of organizations few change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Optional

from gatepost.service import config
from gatepost.service.config import Config, RelayConfig
from gatepost.service.tables import ConfigError

_HEADER = "[[organization]]\n"
_warned_of = re.compile(r".*?: organization\[(\d+)\]").match


class Pieces(NamedTuple):
    """A TOML document that was cut before each [[organization]].

    raw: the document, but with an empty table for each organization whose text is known. digests: those of the pieces
    with an organization and nothing else, by the organization's index.
    """

    raw: dict[str, object]
    digests: dict[int, bytes]


def load(path: Path, before: Optional[Config] = None) -> Config:
    """Return the configuration in *path*, the same as `config.load` does. Raises ConfigError.

    before: what this function has returned for *path*; what is unchanged is taken from there.
    """
    try:
        found = _load(path, before)
    except ConfigError:
        found = None
    # In pieces, the numbers of lines and the names of organizations would be missing in messages.
    return found or config.load(path)


def _load(path: Path, before: Optional[Config]) -> Optional[Config]:
    known = before.unchanged if before else {}
    with config.uncollected():
        pieces = cut(config.text(path), known)
        if pieces is None:
            return None
        names = {index: known[digest] for index, digest in pieces.digests.items() if digest in known}
        kept = {index: (before.organizations[name], before.settings[name]) for index, name in names.items() if before}
        found = config.parse(pieces.raw, path, kept)
    if before and kept and _inherited(before.relay) != _inherited(found.relay):
        return _load(path, None)
    return replace(found, unchanged=_unchanged(found, pieces.digests))


def _inherited(relay: RelayConfig) -> tuple[object, ...]:
    """Return what organizations take from [relay]."""
    return relay.mode, relay.enforce_from, relay.action


def _unchanged(found: Config, digests: Mapping[int, bytes]) -> dict[bytes, str]:
    """Return the organizations that depend on nothing but their text, and of which nothing is to be said again."""
    names = list(found.organizations)
    warned = {int(warning[1]) for warning in map(_warned_of, found.warnings) if warning}
    upstream = found.upstream.organization if found.upstream else None
    return {
        digest: names[index]
        for index, digest in digests.items()
        if index not in warned and names[index] != upstream and not found.settings[names[index]].exchange_export.paths
    }


def cut(text: str, known: Mapping[bytes, str]) -> Optional[Pieces]:
    """Return the document *text* in pieces, None where it can't be cut so. Raises ConfigError.

    Each piece is a document by itself, so none begins within a string of several lines.
    """
    head, *rest = f"\n{text}".split(f"\n{_HEADER}")
    raw = config.document(head)
    tables: list[object] = []
    digests = {}
    for index, piece in enumerate(rest):
        digest = hashlib.blake2b(piece.rstrip("\n").encode(), digest_size=16).digest()
        if digest in known:
            digests[index] = digest
            tables.append({})
            continue
        more = config.document(f"{_HEADER}{piece}\n")
        found = more.pop("organization")
        if not isinstance(found, list) or len(found) != 1 or not raw.keys().isdisjoint(more):
            return None
        tables += found
        if more:
            raw.update(more)
        else:
            digests[index] = digest
    if "organization" in raw:
        return None
    if tables:
        raw["organization"] = tables
    return Pieces(raw, digests)
