# SPDX-License-Identifier: GPL-3.0-or-later
"""Spool files of the ledger for tests, and a configuration for who loads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gatepost.service.config import Config, load
from gatepost.service.ledger import Entry, Record, line

BEGIN = 1_790_000_000.0


def configuration(folder: Path, url: str, ledger: str = "") -> Config:
    """A configuration with its state in *folder*/state, which is made, and the store at *url*."""
    (folder / "state").mkdir(exist_ok=True)
    path = folder / "ledger.toml"
    path.write_text(f'state_directory = "{folder}/state"\n[store]\nurl = "{url}"\n[ledger]\n{ledger}\n')
    return load(path)


def entry(number: int, text: str = "") -> Entry:
    return Entry(f"r{number}", "ann@contoso.com", BEGIN + number, action="pass", subject=text)


def entries(count: int, begin: int = 0, text: str = "") -> list[Record]:
    return [entry(number, text) for number in range(begin, begin + count)]


def spooled(folder: Path, records: Iterable[Record], number: int = 0) -> Path:
    """Write *records* to file *number* of the spool in *folder*, as a worker leaves them that is gone."""
    return spooled_octets(folder, b"".join(map(line, records)), number)


def spooled_octets(folder: Path, octets: bytes, number: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:020d}-1.spool"
    path.write_bytes(octets)
    return path
